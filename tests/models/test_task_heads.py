"""Heads from the text tower, from a probe, and from files."""

import json

import open_clip
import pytest
import safetensors.torch
import tiny
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import scoring
from mlflow_breadcrumbs.models import architecture, task_heads, tasks


@pytest.fixture
def config(tmp_path):
    return tiny.config(tmp_path)


@pytest.fixture
def task(tmp_path):
    return tasks.load_tasks(tiny.task_file(tmp_path, count=10))[0]


def head(weight=None, classes=("a", "b"), task="t"):
    weight = torch.eye(2, 3) if weight is None else weight
    return task_heads.Head(task, tuple(classes), ("a {}.",), "file", weight)


def test_the_zero_shot_head_is_open_clips(config):
    """An independent implementation: open_clip's build_zero_shot_classifier."""
    model, tokenizer = tiny.model(config), architecture.tokenizer(config)
    templates = ("a photo of a {}.", "a drawing of a {}.")
    task = tasks.Task("t", templates, ("cat", "dog", "fir tree"))
    ours = task_heads.zero_shot_head(model, tokenizer, task)
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, task.classes, templates)
    scale = model.logit_scale.exp().detach()
    torch.testing.assert_close(ours.weight, theirs.T * scale)
    assert ours.kind == "zero-shot"
    assert model.training
    assert not ours.weight.is_inference()
    assert torch.equal(ours.weight, task_heads.zero_shot_head(model, tokenizer, task).weight)


def test_the_probe_learns_and_is_deterministic(config, task):
    model, preprocess = tiny.model(config), architecture.preprocess(config)
    probe = task_heads.probe_head(model, preprocess, task)
    assert scoring.accuracy(model, probe, task.images("test"), preprocess).value > 0.9
    assert torch.equal(probe.weight, task_heads.probe_head(model, preprocess, task).weight)


def test_a_probe_for_two_classes_has_two_rows(config, tmp_path):
    tiny.image_tree(tmp_path / "two", 10)
    for file in (tmp_path / "two/red").iterdir():
        file.unlink()
    (tmp_path / "two/red").rmdir()
    (tmp_path / "two.yaml").write_text("tasks: [{name: t, images: {folder: two}}]")
    (task,) = tasks.load_tasks(tmp_path / "two.yaml")
    model, preprocess = tiny.model(config), architecture.preprocess(config)
    probe = task_heads.probe_head(model, preprocess, task)
    assert probe.weight.shape == (2, 12)
    assert scoring.accuracy(model, probe, task.images("test"), preprocess).value == 1


def test_a_probe_needs_images_of_every_class(config, tmp_path):
    tiny.image_tree(tmp_path / "images/train", 3)
    tiny.image_tree(tmp_path / "images/test", 3)
    for file in (tmp_path / "images/train/green").iterdir():
        file.unlink()
    (tmp_path / "tasks.yaml").write_text("tasks: [{name: t, images: {folder: images}}]")
    (task,) = tasks.load_tasks(tmp_path / "tasks.yaml")
    with pytest.raises(errors.TaskError, match="no training images of green"):
        task_heads.probe_head(tiny.model(config), architecture.preprocess(config), task)


def test_probabilities_are_a_softmax():
    found = head(torch.tensor([[1.0, 0, 0], [0, 2, 0]])).probabilities(
        torch.tensor([[0.6, 0.8, 0]])
    )
    assert found.sum().item() == pytest.approx(1)
    assert found[0, 1] / found[0, 0] == pytest.approx(torch.tensor(1.0).exp().item())


def test_writing_and_reading(tmp_path):
    one, other = head(task="one", classes=("ä", "b")), head(torch.randn(2, 3), task="two.v2")
    task_heads.write(tmp_path, [other, one])
    again = task_heads.read(tmp_path)
    assert list(again) == ["one", "two.v2"]
    assert again["one"].classes == ("ä", "b")
    assert torch.equal(again["two.v2"].weight, other.weight)
    assert again["two.v2"].templates == other.templates
    assert task_heads.read(tmp_path / "nowhere") == {}


def test_damaged_heads(tmp_path):
    task_heads.write(tmp_path, [head()])
    path = tmp_path / "tasks/t.json"
    content = json.loads(path.read_text())
    del content["classes"]
    path.write_text(json.dumps(content))
    with pytest.raises(errors.TaskError, match=r"t\.json' doesn't describe a head: 'classes' must"):
        task_heads.read(tmp_path)
    task_heads.write(tmp_path, [head()])
    (tmp_path / "tasks/t.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(errors.TaskError, match="is not a safetensors file"):
        task_heads.read(tmp_path)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.eye(3), "has 3 rows for 2 classes"),
        (torch.ones(2), r"float32 of shape \(2,\); it must be float32 \[classes, embed_dim\]"),
        (torch.eye(2).half(), "is torch.float16"),
        (torch.tensor([[1.0], [float("nan")]]), "has a NaN or infinity"),
    ],
)
def test_impossible_heads(weight, words):
    with pytest.raises(errors.TaskError, match=words):
        head(weight)
    with pytest.raises(errors.TaskError, match="can't name a task"):
        head(task="../x")


def test_a_head_from_a_file(tmp_path):
    task = tasks.Task("t", declared_classes=("a", "b"))
    path = tmp_path / "head.safetensors"
    safetensors.torch.save_file({"weight": torch.randn(2, 3).half()}, path)
    found = task_heads.read_head_file(path, task, embed_dim=3)
    assert found.kind == "file"
    assert found.weight.dtype == torch.float32
    with pytest.raises(errors.TaskError, match="features of length 3, but the model gives 5"):
        task_heads.read_head_file(path, task, embed_dim=5)
    (tmp_path / "head.json").write_text('{"classes": ["b", "a"]}')
    with pytest.raises(errors.TaskError, match="has the classes b, a, but task 't' has a, b"):
        task_heads.read_head_file(path, task)
    safetensors.torch.save_file({"w": torch.ones(1)}, path)
    with pytest.raises(errors.TaskError, match=r"must have one tensor, 'weight' .*it has w"):
        task_heads.read_head_file(path, task)
    with pytest.raises(errors.TaskError, match="is not a safetensors file"):
        task_heads.read_head_file(tmp_path / "absent.safetensors", task)


def test_selecting():
    both = {"a": head(task="a"), "b": head(task="b")}
    assert task_heads.select(both, "a", whose="'x'") is both["a"]
    assert task_heads.select({"a": both["a"]}, None, whose="'x'") is both["a"]
    with pytest.raises(errors.TaskError, match=r"'x' has 2 tasks \(a, b\): say which one"):
        task_heads.select(both, None, whose="'x'")
    with pytest.raises(errors.TaskError, match="'x' has no task 'c'; it has a, b"):
        task_heads.select(both, "c", whose="'x'")
