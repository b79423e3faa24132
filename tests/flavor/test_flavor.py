"""The flavor: what it writes, that open_clip reads it, and that it predicts and serves."""

import base64
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import open_clip
import pandas as pd
import pytest
import safetensors.torch
import tiny
import torch
import yaml
import zoos
from PIL import Image

import mlflow_breadcrumbs
from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.flavor import requirements
from mlflow_breadcrumbs.models import task_heads


@pytest.fixture
def config(tmp_path):
    return tiny.config(tmp_path)


@pytest.fixture(scope="module")
def folder_of_store(tmp_path_factory, empty_database):
    return tiny.new_store(tmp_path_factory.mktemp("store"), empty_database)


@pytest.fixture
def store(folder_of_store, monkeypatch):
    """A real SQLite store, one for this module: making one takes seconds."""
    monkeypatch.chdir(folder_of_store)
    previous = mlflow.get_tracking_uri()
    tiny.use_store(folder_of_store)
    yield folder_of_store
    zoos.use(previous)


def head(task="colours", classes=tuple(tiny.COLOURS), seed=0):
    weight = torch.randn(len(classes), 12, generator=torch.Generator().manual_seed(seed))
    return task_heads.Head(task, classes, ("a {} thing.",), "file", weight)


def png(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tiny.pixels(colour, 1)[0]).save(buffer, format="png")
    return buffer.getvalue()


def assert_equal_weights(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_saved_version_loads_in_open_clip_to_the_bit(config, tmp_path):
    model = tiny.model(config).eval()
    flavor.save_model(tmp_path / "saved", config=config, model=model, heads=[head()])
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/saved")
    assert_equal_weights(theirs, model)
    pixels = torch.stack([preprocess(image) for image, _ in tiny.image_set(3)])
    texts = open_clip.get_tokenizer(f"local-dir:{tmp_path}/saved")(["a cat", "a dog"])
    with torch.inference_mode():
        theirs.eval()
        assert torch.equal(theirs.encode_image(pixels), model.encode_image(pixels))
        assert torch.equal(theirs.encode_text(texts), model.encode_text(texts))


def test_the_layout(config, tmp_path):
    flavor.save_model(
        tmp_path / "saved",
        config=config,
        model=tiny.model(config),
        heads=[head("b"), head("a")],
        extra_files={"lineage.json": b"{}"},
    )
    top = {path.name for path in (tmp_path / "saved").iterdir()}
    assert top == {
        "MLmodel",
        "code",
        "conda.yaml",
        "lineage.json",
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "python_env.yaml",
        "requirements.txt",
        "tasks",
    }
    recorded = mlflow.models.Model.load(str(tmp_path / "saved")).flavors["breadcrumbs"]
    assert recorded["tasks"] == ["a", "b"]
    assert recorded["architecture"] == "tiny"
    weights = tmp_path / "saved" / recorded["weights"]
    assert recorded["weights_digest"] == checkpoints.weights_digest(weights)
    assert recorded["weights_digest"] == checkpoints.state_dict_digest(
        tiny.model(config).state_dict()
    )


def test_ready_weights_are_copied_and_not_loaded(config, tmp_path):
    model = tiny.model(config)
    flavor.write_weights(model.state_dict(), tmp_path / "merged.safetensors")
    flavor.save_model(tmp_path / "saved", config=config, weights=tmp_path / "merged.safetensors")
    copied = tmp_path / "saved/open_clip_model.safetensors"
    assert copied.read_bytes() == (tmp_path / "merged.safetensors").read_bytes()
    assert copied.stat().st_ino != (tmp_path / "merged.safetensors").stat().st_ino
    assert_equal_weights(flavor.load_model(str(tmp_path / "saved")).model, model)


def test_exactly_one_of_model_and_weights(config, tmp_path):
    with pytest.raises(TypeError, match="exactly one of 'model' and 'weights'"):
        flavor.save_model(tmp_path / "saved", config=config)
    assert not (tmp_path / "saved").exists()


def test_weights_in_another_form(config, tmp_path):
    torch.save({}, tmp_path / "merged.pt")
    with pytest.raises(errors.CheckpointError, match=r"merged\.pt' is not a \.safetensors file"):
        flavor.save_model(tmp_path / "a", config=config, weights=tmp_path / "merged.pt")
    with pytest.raises(errors.CheckpointError, match="There is no checkpoint"):
        flavor.save_model(tmp_path / "b", config=config, weights=tmp_path / "no.safetensors")


def test_heads_that_do_not_fit(config, tmp_path):
    short = task_heads.Head("t", ("a", "b"), ("{}",), "file", torch.ones(2, 5))
    with pytest.raises(errors.TaskError, match="features of length 5, but the model gives 12"):
        flavor.save_model(tmp_path / "a", config=config, model=tiny.model(config), heads=[short])
    with pytest.raises(errors.TaskError, match="two heads for colours"):
        flavor.save_model(
            tmp_path / "b", config=config, model=tiny.model(config), heads=[head(), head()]
        )


def test_tied_weights_are_written_once_per_name(config, tmp_path):
    """Plain safetensors refuses tensors that share memory."""
    model = tiny.model(config)
    model.ln_final.bias = model.visual.ln_post.bias = torch.nn.Parameter(torch.randn(16))
    with pytest.raises(RuntimeError, match="share memory"):
        safetensors.torch.save_file(model.state_dict(), tmp_path / "plain.safetensors")
    flavor.write_weights(model.state_dict(), tmp_path / "tied.safetensors")
    again = safetensors.torch.load_file(tmp_path / "tied.safetensors")
    assert torch.equal(again["ln_final.bias"], again["visual.ln_post.bias"])
    assert checkpoints.weights_digest(
        tmp_path / "tied.safetensors"
    ) == checkpoints.state_dict_digest(model.state_dict())


def test_a_model_with_tied_weights_makes_the_round_trip(tmp_path):
    content = {**tiny.MODEL, "text_cfg": {**tiny.TEXT, "width": 16}}
    config = tiny.config(tmp_path, content)
    model = tiny.model(config)
    model.ln_final.weight = model.visual.ln_post.weight
    flavor.save_model(tmp_path / "saved", config=config, model=model)
    assert_equal_weights(flavor.load_model(str(tmp_path / "saved")).model, model)


def test_loading_leaves_the_random_numbers_alone(config, tmp_path):
    flavor.save_model(tmp_path / "saved", config=config, model=tiny.model(config))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    flavor.load_model(str(tmp_path / "saved"))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("allow", ["true", "false"])
def test_registered_and_loaded_by_every_kind_of_uri(config, store, monkeypatch, allow):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", allow)
    name, model = f"pickle-{allow}", tiny.model(config)
    with mlflow.start_run():
        info = flavor.log_model(
            "model",
            config=config,
            model=model,
            heads=[head()],
            registered_model_name=name,
            tags={"breadcrumbs.task": "colours"},
        )
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(name, "champion", "1")
    assert client.get_model_version(name, "1").tags["breadcrumbs.task"] == "colours"
    for uri in (f"models:/{name}/1", f"models:/{name}@champion", info.model_uri):
        loaded = flavor.load_model(uri)
        assert_equal_weights(loaded.model, model)
        assert not loaded.model.training
        assert loaded.heads["colours"].classes == ("red", "green", "blue")
        assert loaded.config == config
    written = list((store / "artifacts").rglob("registered_model_meta"))
    assert not any(info.model_id in str(path) for path in written), "loading wrote into the store"
    frame = pd.DataFrame({"image": [png()]})
    predicted = mlflow.pyfunc.load_model(f"models:/{name}/1").predict(frame)
    expected = loaded.classify([Image.open(io.BytesIO(png()))])
    # The one runs on a GPU where there is one, the other here.
    assert predicted["probability"][0] == pytest.approx(expected.max().item(), rel=1e-6)


@pytest.mark.parametrize("name", ["a b", "größe", "50%", "%2F", "日本", "it's", "a.b"])
def test_names_with_odd_characters_work(config, store, name):
    with mlflow.start_run():
        flavor.log_model(
            "model", config=config, model=tiny.model(config), registered_model_name=name
        )
    assert flavor.load_model(f"models:/{name}/1").config == config
    assert mlflow.pyfunc.load_model(f"models:/{name}/1")


@pytest.mark.parametrize("name", ["a/b", "a:b", "", "  ", "x" * 257])
def test_names_that_the_registry_refuses_are_refused_before_any_work(config, store, name):
    with (
        pytest.raises(errors.RegistryError, match=r"can't name a registered model: 1 to 256 char"),
        mlflow.start_run() as run,
    ):
        flavor.log_model(
            "model", config=config, model=tiny.model(config), registered_model_name=name
        )
    found = mlflow.MlflowClient().get_run(run.info.run_id)
    assert not found.outputs.model_outputs


def test_unknown_versions(store):
    with pytest.raises(errors.RegistryError, match="cannot resolve models:/nobody/1"):
        flavor.load_model("models:/nobody/1")
    with pytest.raises(errors.RegistryError, match="can't be fetched"):
        flavor.load_model("runs:/0123456789abcdef0123456789abcdef/model")
    (store / "empty").mkdir()
    with pytest.raises(errors.RegistryError, match="is not an MLflow model"):
        flavor.load_model(str(store / "empty"))


def test_another_flavors_version(store):
    class Echo(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str]):
            return model_input

    mlflow.pyfunc.save_model("echo", python_model=Echo(), pip_requirements=["mlflow"])
    with pytest.raises(
        errors.RegistryError, match=r"logged by another flavor \(python_function\).*import"
    ):
        flavor.load_model("echo")


def test_weights_that_do_not_fit_the_configuration(config, tmp_path):
    flavor.save_model(tmp_path / "saved", config=config, model=tiny.model(config))
    path = tmp_path / "saved/open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["vision_cfg"]["layers"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(errors.CheckpointError, match=r"doesn't fit its open_clip_config\.json"):
        flavor.load_model(str(tmp_path / "saved"))


def test_no_pickle_is_ever_read(config, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    flavor.save_model(tmp_path / "saved", config=config, model=tiny.model(config))
    content = pickle.dumps(Payload())
    (tmp_path / "saved/open_clip_model.safetensors").write_bytes(content)
    (tmp_path / "saved/open_clip_model.bin").write_bytes(content)
    with pytest.raises(errors.CheckpointError):
        flavor.load_model(str(tmp_path / "saved"))
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def served(config, tmp_path):
    """A pyfunc with two tasks, and a folder of images."""
    flavor.save_model(
        tmp_path / "saved",
        config=config,
        model=tiny.model(config),
        heads=[head(), head("mood", ("calm", "wild"), 1)],
        image_root=tmp_path,
    )
    return mlflow.pyfunc.load_model(str(tmp_path / "saved"))


def test_images_as_paths_bytes_and_base64_are_the_same(served, tmp_path):
    (tmp_path / "red.png").write_bytes(png())
    encoded = base64.b64encode(png()).decode()
    images = [str(tmp_path / "red.png"), png(), encoded, f"data:image/png;base64,{encoded}"]
    found = served.predict(pd.DataFrame({"image": images, "task": ["colours"] * 4}))
    assert found["task"].tolist() == ["colours"] * 4
    assert found["label"].nunique() == 1
    assert np.allclose(found["probability"], found["probability"][0], rtol=1e-6)
    first = found["probabilities"][0]
    assert list(first) == ["red", "green", "blue"]
    assert sum(first.values()) == pytest.approx(1)
    assert first[found["label"][0]] == max(first.values()) == found["probability"][0]


def test_every_row_is_answered_for_its_own_task(served):
    frame = pd.DataFrame(
        {"image": [png()] * 3, "task": ["mood", "colours", "mood"]}, index=[7, 8, 9]
    )
    found = served.predict(frame)
    assert found.index.tolist() == [7, 8, 9]
    assert [set(row) for row in found["probabilities"]] == [
        {"calm", "wild"},
        {"red", "green", "blue"},
        {"calm", "wild"},
    ]


def test_no_rows_give_no_rows(served):
    found = served.predict(pd.DataFrame({"image": [], "task": []}, dtype=object))
    assert list(found.columns) == ["task", "label", "probability", "probabilities"]
    assert len(found) == 0


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ({"image": [png()]}, r"has 2 tasks \(colours, mood\): say which one in the column 'task'"),
        ({"image": [png()], "task": ["x"]}, "no task 'x'; it has colours, mood"),
        (
            {"image": ["nowhere.png"], "task": ["mood"]},
            "The image in row 0 can't be taken: give the",
        ),
        ({"image": [b"abc"], "task": ["mood"]}, r"The image in row 0 can't be decoded \(3 bytes\)"),
        ({"image": ["QUJD"], "task": ["mood"]}, "The image in row 0 can't be taken"),
        ({"image": [3], "task": ["mood"]}, "The image in row 0 is int; give bytes or base64"),
    ],
)
def test_bad_requests(served, frame, words):
    with pytest.raises(mlflow.exceptions.MlflowException, match=words) as caught:
        served.predict(pd.DataFrame(frame))
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_the_device_and_batch_are_settings_of_the_pyfunc(config, tmp_path):
    flavor.save_model(tmp_path / "saved", config=config, model=tiny.model(config), heads=[head()])
    settings = {"device": "cpu", "batch_size": 2}
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "saved"), model_config=settings)
    assert len(loaded.predict(pd.DataFrame({"image": [png()] * 5}))) == 5
    raw = loaded.get_raw_model()
    assert raw.device == "cpu"


def test_classify(config, tmp_path):
    flavor.save_model(
        tmp_path / "saved", config=config, model=tiny.model(config), heads=[head(), head("b")]
    )
    model = flavor.load_model(str(tmp_path / "saved"), device="cpu")
    images = [image for image, _ in tiny.image_set(2)]
    found = model.classify(images, "colours")
    assert found.shape == (6, 3)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(6))
    with pytest.raises(errors.TaskError, match=r"has 2 tasks \(b, colours\)"):
        model.classify(images)


def test_the_requirements_are_pinned_and_complete():
    """Every distribution that loading and predicting import from is pinned."""
    code = (
        "import sys, ast, pathlib, importlib.metadata as md\n"
        "import mlflow_breadcrumbs.flavor\n"
        "tops = set()\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.partition('.')[0] != 'mlflow_breadcrumbs': continue\n"
        "    for node in ast.parse(pathlib.Path(module.__file__).read_text()).body:\n"
        "        if isinstance(node, ast.Import):\n"
        "            tops |= {a.name.split('.')[0] for a in node.names}\n"
        "        if isinstance(node, ast.ImportFrom): tops.add(node.module.split('.')[0])\n"
        "owners = md.packages_distributions()\n"
        "print(*sorted({d.lower() for t in tops - sys.stdlib_module_names\n"
        "    for d in owners.get(t, [])[:1]}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed = {name.replace("_", "-") for name in done.stdout.split()} - {"mlflow-skinny"}
    needed -= {"mlflow-breadcrumbs", "mlflow-tracing"}
    pinned = requirements.default_pip_requirements()
    names = {line.partition("==")[0].replace("_", "-").lower() for line in pinned if "==" in line}
    assert needed <= names, needed - names
    assert all("==" in line or " @ " in line for line in pinned)
    assert not any("+" in line.partition("==")[2] for line in pinned if "==" in line)


@pytest.mark.parametrize(
    ("direct_url", "requirement"),
    [
        (None, "mlflow-breadcrumbs==0.1.0"),
        (
            '{"url": "https://x.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            "mlflow-breadcrumbs @ git+https://x.org/r.git@abc",
        ),
        ('{"url": "file:///r", "dir_info": {"editable": true}}', None),
        ('{"url": "file:///r", "dir_info": {}}', None),
        ('{"url": "file:///x.whl", "archive_info": {}}', None),
    ],
)
def test_where_this_package_comes_from_decides_how_it_is_shipped(direct_url, requirement):
    found, code = requirements.requirement("0.1.0", direct_url, ["here"])
    assert found == requirement
    assert code == ([] if requirement else ["here"])


def test_a_version_that_ships_the_code_loads_without_the_package(config, tmp_path):
    flavor.save_model(tmp_path / "saved", config=config, model=tiny.model(config), heads=[head()])
    shipped = tmp_path / "saved/code/mlflow_breadcrumbs.zip"
    if not shipped.is_file():
        pytest.skip("this package is installed from an index or a commit, so it is not shipped")
    (tmp_path / "red.png").write_bytes(png())
    code = (
        "import mlflow, pandas as pd\n"
        f"settings = {{'image_root': {str(tmp_path)!r}}}\n"
        f"model = mlflow.pyfunc.load_model({str(tmp_path / 'saved')!r}, model_config=settings)\n"
        "print(model.predict(pd.DataFrame({'image': ['red.png']}))['task'][0])\n"
        "import mlflow_breadcrumbs; print(mlflow_breadcrumbs.__file__)\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=env,
    )
    label, origin = done.stdout.split()
    assert (label, origin) == ("colours", f"{shipped}/mlflow_breadcrumbs/__init__.py")


def test_the_archive_of_the_code_is_whole_and_the_same_for_every_version(tmp_path):
    package = Path(mlflow_breadcrumbs.__file__).parent
    first, second = (tmp_path / name / requirements.write_code(tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        init = archive.read("mlflow_breadcrumbs/__init__.py")
    assert init == (package / "__init__.py").read_bytes()
    modules = {path.relative_to(package.parent).as_posix() for path in package.rglob("*.py")}
    assert names >= modules | {"mlflow_breadcrumbs/lineage/lineage.schema.json"}
    assert not any("__pycache__" in name or "/static/" in name for name in names)


def test_code_that_runs_from_an_archive_is_passed_on_and_keeps_a_ledger(tmp_path):
    """A process that loaded a version with its code, saves another, and writes an event."""
    archive = tmp_path / "first" / requirements.write_code(tmp_path / "first")
    code = (
        "import pathlib, sys\n"
        f"sys.path.insert(0, {str(archive)!r})\n"
        "from mlflow_breadcrumbs.flavor import requirements\n"
        f"print(requirements.__file__, requirements.write_code(pathlib.Path({str(tmp_path)!r})))\n"
        "from mlflow_breadcrumbs import ledger\n"
        "with ledger.using('sqlite:///ledger.db'):\n"
        "    with ledger.recording('merge', 'merged') as job:\n"
        "        job.add(seen=True)\n"
        "    print([event.phase for event in ledger.history('merged')])\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    assert done.stdout.startswith(str(archive))
    assert done.stdout.endswith("['intent', 'done']\n")
    assert (tmp_path / requirements.CODE).read_bytes() == archive.read_bytes()


def test_a_version_of_before_that_ships_a_folder_of_code_loads(config, tmp_path):
    package = Path(mlflow_breadcrumbs.__file__).parent
    saved = tmp_path / "saved"
    flavor.save_model(
        saved, config=config, model=tiny.model(config), heads=[head()], code_paths=[str(package)]
    )
    record = yaml.safe_load((saved / "MLmodel").read_text())
    assert record["flavors"]["python_function"]["code"] == "code"
    code = (
        f"import mlflow\nmlflow.pyfunc.load_model({str(saved)!r})\n"
        "import mlflow_breadcrumbs; print(mlflow_breadcrumbs.__file__)\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    assert done.stdout.strip() == str(saved / "code/mlflow_breadcrumbs/__init__.py")


@pytest.mark.slow
def test_mlflow_models_serve(config, store):
    """A real server, asked over HTTP with base64 images; a bad request says why."""
    with mlflow.start_run():
        flavor.log_model(
            "model",
            config=config,
            model=tiny.model(config),
            heads=[head(), head("mood", ("calm", "wild"), 1)],
            registered_model_name="tiny",
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny/1"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    env = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    with (store / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=env, cwd=store, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", server, store / "server.log")
        image = base64.b64encode(png()).decode()
        records = [{"image": image, "task": "colours"}, {"image": image, "task": "mood"}]
        answer = _post(port, {"dataframe_records": records})
        assert [row["task"] for row in answer["predictions"]] == ["colours", "mood"]
        assert set(answer["predictions"][1]["probabilities"]) == {"calm", "wild"}
        local = flavor.load_model("models:/tiny/1").classify(
            [Image.open(io.BytesIO(png()))], "mood"
        )
        assert answer["predictions"][1]["probability"] == pytest.approx(local.max().item())
        with pytest.raises(urllib.error.HTTPError) as refused:
            _post(port, {"dataframe_records": [{"image": image}]})
        assert refused.value.code == 400
        assert "has 2 tasks (colours, mood)" in refused.value.read().decode()
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def _post(port, content):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def _wait_for(url, server, log):
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
