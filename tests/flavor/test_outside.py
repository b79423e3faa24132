"""Versions that somebody else put into the registry, loaded in every way that there is."""

import dataclasses
import json
import os
import pathlib

import hub
import mlflow
import pytest
import tiny

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import evaluating
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.sources import finetuning, importing


@pytest.fixture
def hostile(store, light, tmp_path):
    """Registers a version with a good model's weights and another text and image tower."""
    honest = tiny.config(tmp_path)

    def register(name, model_cfg, **settings):
        config = dataclasses.replace(honest, model_cfg=model_cfg)
        with mlflow.start_run():
            flavor.log_model(
                "model",
                config=config,
                model=tiny.model(honest),
                registered_model_name=name,
                **settings,
            )
        return f"models:/{name}/1"

    return register


@pytest.fixture
def program(tmp_path):
    """A folder with code that says so when it has run; `--` names it as a repository."""
    folder = tmp_path / "program"
    folder.mkdir()
    names = {"auto_map": {"AutoTokenizer": [f"{folder}--tok.T", None]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "tok.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizer\n"
        "class T(PreTrainedTokenizer): pass\n"
    )
    return folder


def opened_in_every_way(uri, base, folder):
    """What reads a version's configuration; each as a user would call it."""
    task_file = tiny.task_file(folder)
    (task,) = tasks.load_tasks(task_file)
    merge = recipe.MergeRecipe.from_method("task_arithmetic", sources=1)
    config = pathlib.Path(versions.resolve(uri).location.removeprefix("file://"))
    yield lambda: flavor.load_model(uri)
    yield lambda: mlflow.pyfunc.load_model(uri)
    yield lambda: evaluating.evaluate_version(uri, task_file, device="cpu")
    yield lambda: finetuning.finetune(uri, task, registered_model="tuned", device="cpu")
    yield lambda: flow.merge(flow.MergeRequest(uri, (base,), "merged", merge, device="cpu"))
    yield lambda: flow.merge(flow.MergeRequest(base, (uri,), "merged", merge, device="cpu"))
    yield lambda: importing.import_checkpoint(
        str(config / flavor.WEIGHTS_FILE),
        architecture_name=str(config / "open_clip_config.json"),
        registered_model="imported",
        device="cpu",
    )


def test_a_version_names_no_code(hostile, program, tmp_path):
    kwargs = {"trust_remote_code": True, "subfolder": os.path.relpath(program, "/tmp/x")}
    text_cfg = {**tiny.TEXT, "hf_tokenizer_name": "x", "tokenizer_kwargs": kwargs}
    uri = hostile("code", {**tiny.MODEL, "text_cfg": text_cfg})
    base = hostile("honest", tiny.MODEL)
    for number, call in enumerate(opened_in_every_way(uri, base, tmp_path)):
        with pytest.raises(errors.ArchitectureError) as caught:
            call()
        assert "tokenizer_kwargs.trust_remote_code' (True): not a key that it may have" in (
            str(caught.value)
        ), number
    assert not (tmp_path / "ran").exists()
    assert not mlflow.MlflowClient().search_model_versions("name = 'merged'")


@pytest.mark.parametrize(
    ("model_cfg", "words"),
    [
        (
            {**tiny.MODEL, "vision_cfg": {"timm_model_name": "hf-hub:evil/x", "image_size": 16}},
            "'vision_cfg.timm_model_name' ('hf-hub:evil/x'): not a plain name",
        ),
        (
            {**tiny.MODEL, "text_cfg": {"hf_model_name": "evil/x"}},
            "'text_cfg.hf_model_name' ('evil/x'): no architecture of open_clip has that name",
        ),
    ],
)
def test_a_version_names_no_repository(hostile, tmp_path, monkeypatch, model_cfg, words):
    uri, base = hostile("hub", model_cfg), hostile("honest", tiny.MODEL)
    with hub.counting(monkeypatch, str(tmp_path / "cache")) as asked:
        for number, call in enumerate(opened_in_every_way(uri, base, tmp_path)):
            with pytest.raises(errors.ArchitectureError) as caught:
                call()
            assert words in str(caught.value), number
    assert asked == []


def test_the_head_of_a_version_names_no_path(hostile, tmp_path):
    uri = hostile("head", tiny.MODEL, extra_files={})
    folder = pathlib.Path(versions.resolve(uri).location.removeprefix("file://"))
    (folder / "tasks").mkdir()
    head = {"task": "../../x", "classes": ["a", "b"], "templates": ["{}"], "kind": "file"}
    (folder / "tasks/a.json").write_text(json.dumps(head))
    with pytest.raises(errors.TaskError, match=r"a\.json' .* its 'task' must be 'a', as"):
        flavor.load_model(uri)
