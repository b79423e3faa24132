"""A served model and callers who mean no good: MLflow's own scoring server, over HTTP."""

import base64
import contextlib
import json
import os
import threading
import urllib.error
import urllib.request

import bombs
import mlflow
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import uvicorn
from mlflow.pyfunc import scoring_server
from PIL import Image

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.flavor import serving
from mlflow_breadcrumbs.models import task_heads

PNG = bombs.saved(tiny.pixels("red", 1)[0], "png")
REFUSED = (
    "can't be taken: give the bytes of a PNG, JPEG or other image file, or these in base64. A path "
    "is taken where the model is served with a folder of images (BREADCRUMBS_IMAGE_ROOT), and only "
    "of an image in there."
)


def base(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A version with one task, saved."""
    folder = tmp_path_factory.mktemp("saved")
    config = tiny.config(folder)
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    head = task_heads.Head("colours", tuple(tiny.COLOURS), ("{}",), "file", weight)
    flavor.save_model(
        folder / "model", config=config, model=tiny.model(config), heads=[head], code_paths=[]
    )
    return str(folder / "model")


@contextlib.contextmanager
def serving_model(model):
    """MLflow's scoring server in a thread; gives a function that posts, and what it answers."""
    settings = uvicorn.Config(scoring_server.init(model), port=0, log_level="critical")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]

        def post(content, kind="application/json"):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": kind}
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        yield post
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def post(saved):
    with serving_model(mlflow.pyfunc.load_model(saved)) as ask:
        yield ask


def records(image, **more):
    return {"dataframe_records": [{"image": image, **more}]}


def damaged_avif():
    content = bombs.saved(Image.new("RGB", (8, 8)), "avif")
    return base(content[:-20] + b"\xff" * 20)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (records(base(PNG), task=[1]), "The task in row 0 is list; give its name, or nothing"),
        (records(base(PNG), task={"a": 1}), "The task in row 0 is dict; give its name"),
        (records(base(PNG), task=1), "The task in row 0 is int; give its name"),
        (records("é"), f"The image in row 0 {REFUSED}"),
        (records("data:é"), f"The image in row 0 {REFUSED}"),
        (records("a\0b"), f"The image in row 0 {REFUSED}"),
        (records("x" * 100_000), f"The image in row 0 {REFUSED}"),
        (records(damaged_avif()), "The image in row 0 can't be decoded ("),
        (records(base(bombs.header(89_000_000, 1))), "89,000,000 in all; at most 64,000,000 are"),
        (records(base(bombs.png(1, 10_000))), "one side is 10,000 times the other; at most 100"),
        (records(base(PNG)[:-40]), "The image in row 0 can't be decoded ("),
        (records([1, 2]), "The image in row 0 is list; give bytes or base64."),
        (records(None), "The image in row 0 is NoneType; give bytes or base64."),
        ({"dataframe_records": [1]}, "Failed to enforce schema"),
        ({}, "exactly one of the input fields"),
        (b"{", "valid JSON"),
    ],
)
def test_answers_carry_no_stack_trace(post, content, words):
    status, answer = post(content)
    assert status == 400
    assert words in json.loads(answer)["message"]
    assert "stack_trace" not in answer
    assert "Traceback" not in answer
    assert '.py"' not in answer.replace("\\", "")


@pytest.mark.parametrize("body", [b"image\nx", b'"a\n1,2\nb', b"", b"image,image\n1,2,3,4"])
def test_nor_does_mlflows_own_to_a_table_that_it_cannot_parse(post, body):
    """It has a switch for that, which nobody sets."""
    status, answer = post(body, "text/csv")
    assert status == 400
    assert "Traceback" not in answer
    assert "stack_trace" not in answer


def test_a_fault_of_ours_is_logged_and_not_told(saved, caplog):
    loaded = mlflow.pyfunc.load_model(saved)
    head = loaded.get_raw_model().heads["colours"]
    object.__setattr__(head, "weight", torch.ones(3, 5))  # of another length than the features
    with serving_model(loaded) as ask:
        status, answer = ask(records(base(PNG)))
    assert status == 500
    assert "The model could not answer: RuntimeError. Its log says why." in answer
    assert "Traceback" not in answer
    assert "stack_trace" not in answer
    (logged,) = [each for each in caplog.records if each.name == serving.__name__]
    assert logged.getMessage() == "A request could not be answered."
    assert logged.exc_info


@pytest.fixture
def tree(tmp_path):
    """A folder of images, and what a caller would like to know of beside it."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "red.png").write_bytes(PNG)
    (root / "notes.txt").write_text("not an image")
    (root / "broken.png").write_bytes(PNG[:-30])
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "abcd").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(root / "pipe.png")
    return root


def said(model, image):
    with pytest.raises(mlflow.exceptions.MlflowException) as caught:
        model.predict(pd.DataFrame({"image": [image]}))
    return caught.value.message


def test_a_path_is_refused_and_nothing_is_learnt(saved, tree, monkeypatch):
    """With the same words, whether there is such a file or not."""
    monkeypatch.chdir(tree.parent)
    monkeypatch.delenv("BREADCRUMBS_IMAGE_ROOT", raising=False)
    model = mlflow.pyfunc.load_model(saved)
    names = ["secret.png", "root/red.png", "absent.png", "abcd", "efgh", "/etc/passwd", "/etc"]
    for name in (*names, str(tree / "red.png"), str(tree / "absent.png"), "", "x" * 5000):
        assert said(model, name) == f"The image in row 0 {REFUSED}"


@pytest.mark.parametrize("how", ["environment", "logged", "loaded"])
def test_a_folder_opens_itself_and_no_more(saved, tree, monkeypatch, tmp_path, how):
    monkeypatch.delenv("BREADCRUMBS_IMAGE_ROOT", raising=False)
    settings = {}
    if how == "environment":
        monkeypatch.setenv("BREADCRUMBS_IMAGE_ROOT", str(tree))
    elif how == "loaded":
        settings = {"model_config": {"image_root": str(tree)}}
    else:
        plain = flavor.load_model(saved)
        saved = str(tmp_path / "with root")
        flavor.save_model(
            saved,
            config=plain.config,
            model=plain.model,
            heads=plain.heads.values(),
            image_root=tree,
            code_paths=[],
        )
    model = mlflow.pyfunc.load_model(saved, **settings)
    expected = model.predict(pd.DataFrame({"image": [PNG]}))
    for name in ("red.png", "./red.png", str(tree / "red.png")):
        assert model.predict(pd.DataFrame({"image": [name]})).equals(expected)
    names = ["../secret.png", str(tree.parent / "secret.png"), "link.png", "absent.png", "pipe.png"]
    for name in (*names, "notes.txt", "broken.png", ".", "../abcd", "/etc/passwd", "/etc/absent"):
        assert said(model, name) == f"The image in row 0 {REFUSED}"


def test_the_server_has_the_last_word(saved, tree, monkeypatch):
    monkeypatch.setenv("BREADCRUMBS_IMAGE_ROOT", "")
    model = mlflow.pyfunc.load_model(saved, model_config={"image_root": str(tree)})
    assert said(model, "red.png") == f"The image in row 0 {REFUSED}"
    monkeypatch.setenv("BREADCRUMBS_IMAGE_ROOT", str(tree / "absent"))
    with pytest.raises(errors.TaskError, match=r"_ROOT is '.*absent', which is no folder"):
        mlflow.pyfunc.load_model(saved)


def test_a_folder_is_logged_by_its_absolute_path(tmp_path):
    config = tiny.config(tmp_path)
    with pytest.raises(errors.TaskError, match="image_root is 'data'; give an absolute path"):
        flavor.save_model(
            tmp_path / "a", config=config, model=tiny.model(config), image_root="data"
        )
    assert not (tmp_path / "a").exists()


def test_a_request_is_refused_before_one_of_its_images_is_decoded(saved, monkeypatch):
    """The last row's header is looked at before the first row's pixels, which are damaged."""
    monkeypatch.setenv("BREADCRUMBS_MAX_REQUEST_PIXELS", "700")
    model = mlflow.pyfunc.load_model(saved)
    frame = pd.DataFrame({"image": [PNG[:-40], PNG, PNG]})
    with pytest.raises(mlflow.exceptions.MlflowException) as caught:
        model.predict(frame)
    assert caught.value.message == (
        "The 3 images of the request have 768 pixels; at most 700 are taken "
        "(BREADCRUMBS_MAX_REQUEST_PIXELS sets it)."
    )
    assert len(model.predict(frame[1:])) == 2


def test_memory_is_bounded_by_the_batch(run_script, tmp_path):
    """Twelve images of 12 million pixels take no more than one: 48 MB each, once decoded."""
    (seen,) = run_script("peaks", {"what": "request", "folder": str(tmp_path)})
    assert seen["more"] < 40 << 20


def test_batches_of_any_size_give_the_same(saved):
    images = [bombs.saved(picture, "png") for picture in tiny.pixels("green", 5)]
    frame = pd.DataFrame({"image": images})
    found = [
        np.array(
            mlflow.pyfunc.load_model(saved, model_config={"batch_size": size}).predict(frame)[
                "probability"
            ]
        )
        for size in (1, 2, 5, 64)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=1e-5)
