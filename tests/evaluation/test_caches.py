"""Accuracies that are kept, and what makes two of them different."""

import dataclasses
import json
import sys

import pytest
import tiny
import torch

from mlflow_breadcrumbs.evaluation import caches, scoring
from mlflow_breadcrumbs.models import task_heads

FOUND = scoring.Accuracy(
    task="colours",
    image_set="colours/test",
    correct=3,
    total=4,
    head_kind="file",
    dataset_digest="sha256:0",
    batch_size=64,
    seconds=0.5,
    classes=("red", "green"),
    outcomes=((0, 0, 2), (1, 0, 1), (1, 1, 1)),
)


def head(seed=0):
    weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed))
    return task_heads.Head("colours", tuple(tiny.COLOURS), ("{}",), "file", weight)


def test_what_is_kept_comes_back(tmp_path):
    kept = caches.Cache(tmp_path)
    assert kept.get({"a": 1}) is None
    kept.put({"a": 1}, FOUND)
    assert kept.get({"a": 1}) == FOUND
    assert kept.get({"a": 2}) is None
    assert [path.suffix for path in tmp_path.rglob("*.*")] == [".json"]  # no temporary file


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": {"a": 1}, "accuracy": {}}'])
def test_a_damaged_entry_is_measured_again(tmp_path, content, caplog):
    kept = caches.Cache(tmp_path)
    kept.put({"a": 1}, FOUND)
    (path,) = tmp_path.rglob("*.json")
    path.write_text(content)
    assert kept.get({"a": 1}) is None
    assert "measuring again" in caplog.text
    kept.put({"a": 1}, FOUND)
    assert kept.get({"a": 1}) == FOUND


def test_an_entry_of_another_key_is_not_taken(tmp_path):
    kept = caches.Cache(tmp_path)
    kept.put({"a": 1}, FOUND)
    (path,) = tmp_path.rglob("*.json")
    path.write_text(json.dumps({"key": {"a": 2}, "accuracy": dataclasses.asdict(FOUND)}))
    assert kept.get({"a": 1}) is None


def test_a_folder_that_cannot_be_written_to_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    caches.Cache(tmp_path / "file").put({"a": 1}, FOUND)
    assert "cannot keep an accuracy" in caplog.text


def test_the_folder_is_the_variables_or_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("BREADCRUMBS_CACHE", str(tmp_path))
    assert caches.default().folder == tmp_path
    monkeypatch.delenv("BREADCRUMBS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert caches.default().folder == tmp_path / "mlflow_breadcrumbs"
    if sys.platform == "linux":
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert caches.default().folder == tmp_path / ".cache" / "mlflow_breadcrumbs"


def test_everything_that_changes_the_numbers_changes_the_key(tmp_path):
    config, images = tiny.config(tmp_path), tiny.image_set(2)
    other_config = tiny.config(tmp_path, tiny.MODEL | {"embed_dim": 16})
    settings = {"device": "cpu", "batch_size": 64}
    keys = [
        caches.key("sha256:1", config, head(), images, **settings),
        caches.key("sha256:2", config, head(), images, **settings),
        caches.key("sha256:1", other_config, head(), images, **settings),
        caches.key("sha256:1", config, head(1), images, **settings),
        caches.key("sha256:1", config, head(), tiny.image_set(3), **settings),
        caches.key("sha256:1", config, head(), images, device="cpu", batch_size=32),
    ]
    assert len({json.dumps(key) for key in keys}) == len(keys)
    assert keys[0] == caches.key("sha256:1", config, head(), images, **settings)
