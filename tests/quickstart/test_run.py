"""The quickstart: real images, a zoo that is made from them, and the whole way through MLflow."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import zoos
from PIL import Image

import mlflow_breadcrumbs
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.quickstart import (
    conclusion,
    contest,
    demo_tasks,
    materials,
    pretrain,
    run,
    settings,
)
from mlflow_breadcrumbs.registry import versions

SMALL = settings.QuickstartSettings(
    corpus_images=2,
    pretrain_steps=4,
    pretrain_batch=16,
    task_images=20,
    finetune_steps=2,
    finetune_batch=8,
    alphas=(0.3, 1.0),
)
"""Too little to learn anything, enough to go the whole way."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A small quickstart in a folder of its own; its store is in use until the module ends."""
    here = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("quickstart"))
    before = mlflow.get_tracking_uri()
    result = run.quickstart("demo", SMALL)
    assert mlflow.get_tracking_uri() == before
    folder = Path.cwd() / "demo"
    zoos.use(f"sqlite:///{folder / 'mlflow.db'}")
    yield folder, result
    zoos.use(before)
    os.chdir(here)


@pytest.mark.slow
def test_the_table_has_the_base_the_sources_and_the_ways_to_merge(shown):
    _, result = shown
    names = [assignment.name for assignment in demo_tasks.ASSIGNMENTS]
    rows = result.rows()
    assert [row["model"] for row in rows] == [
        "base",
        "sources, each its own",
        "weight_average",
        "task_arithmetic, tuned",
        "task_arithmetic",
        "tsv_m",
        "breadcrumbs_calibrated",
        "auto",
        "breadcrumbs, tuned",
        "breadcrumbs",
    ]
    for row in rows:
        assert list(row) == ["model", "alpha", *names, "average", "kept"]
        assert row["average"] == pytest.approx(np.mean([row[name] for name in names]))
    assert {row["alpha"] for row in rows if "tuned" in row["model"]} <= set(SMALL.alphas)
    answer = json.loads(json.dumps(result.to_dict()))
    assert answer["test_images"] == result.examples
    assert answer["conclusion"] == list(result.conclusion)
    assert len(result.conclusion) == 3


@pytest.mark.slow
def test_the_merged_version_came_through_mlflow_run(shown):
    _, result = shown
    resolved = versions.resolve(result.version)
    made = mlflow.get_run(resolved.run_id)
    assert made.data.tags["mlflow.project.entryPoint"] == "main"
    assert made.info.status == "FINISHED"
    last = result.entries[-1]
    assert made.data.params["alpha"] == str(last.alpha)  # nothing was given
    assert made.data.metrics["average_normalized_accuracy"] == last.kept
    # What the pipeline measured from PNG files is what the contest measured from memory.
    for name, value in last.accuracies.items():
        assert made.data.metrics[f"accuracy/{name}"] == value
    base = result.entries[0].accuracies
    assert base == {name: made.data.metrics[f"zero_shot_accuracy/{name}"] for name in base}
    roles = [parent.role for parent in result.lineage.parents]
    assert roles == ["base"] + ["source"] * len(demo_tasks.ASSIGNMENTS)


@pytest.mark.slow
def test_the_commands_to_try_next_can_be_typed(shown, warm_process, monkeypatch):
    folder, result = shown

    def starting(words):
        (found,) = (command for command in result.commands if command.startswith(words))
        return found

    export, lineage = starting("export "), starting("mlflow-breadcrumbs lineage ")
    opened, _, serve = starting("BREADCRUMBS_IMAGE_ROOT=").partition(" ")
    assert serve.startswith("mlflow models serve --model-uri models:/demo-merged@candidate ")
    curl = starting("curl ")
    records = json.loads(curl.split("--data ")[1].strip("'"))["dataframe_records"]
    image = records[0]["image"]
    assert Image.open(image).size == (SMALL.image_size, SMALL.image_size)
    monkeypatch.setenv(*opened.split("="))
    merged = mlflow.pyfunc.load_model("models:/demo-merged@candidate")
    assert len(merged.predict(pd.DataFrame(records))) == 1
    done = subprocess.run(
        ["bash", "-c", f"{export}; {lineage}"],
        cwd=folder.parent,
        env=os.environ | {"PATH": warm_process.path()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "source: models:/demo-greek/1" in done.stdout


@pytest.mark.slow
def test_the_same_seed_makes_the_same_images_and_another_makes_others(tmp_path):
    def content(name, seed):
        made = dataclasses.replace(SMALL, seed=seed, task_images=3)
        demo_tasks.write(tmp_path / name, made, demo_tasks.ASSIGNMENTS[1:3])
        files = sorted((tmp_path / name).rglob("*.png"))
        return {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in files}

    assert content("one", 0) == content("two", 0) != content("three", 1)


def test_every_class_of_every_task_has_images_in_every_split(tmp_path):
    demo_tasks.write(
        tmp_path, dataclasses.replace(SMALL, task_images=40), demo_tasks.ASSIGNMENTS[1:]
    )
    for assignment in demo_tasks.ASSIGNMENTS[1:]:
        for split in demo_tasks.SPLITS:
            found = {path.name for path in (tmp_path / assignment.name / split).iterdir()}
            assert found == set(assignment.classes)


@pytest.mark.parametrize("kind", sorted(materials.CHARACTERS))
def test_a_typeface_draws_every_character(kind):
    """No character comes out as the empty box that stands for a missing glyph."""
    rng = np.random.default_rng(0)
    names = tuple(materials.CHARACTERS[kind])
    drawn, labels = materials.characters(kind, names, 2, 32, pretrain.BARE, rng)
    assert labels == [label for label in range(len(names)) for _ in range(2)]
    assert all(picture.shape == (32, 32, 3) and picture.dtype == np.float32 for picture in drawn)
    assert all(0 <= picture.min() < picture.max() <= 1 for picture in drawn)


def test_an_average_counts_every_task_alike():
    entry = contest.Contender("x", None, {"a": 1.0, "b": 0.0, "c": 0.5}, kept=0.5)
    assert entry.average == 0.5


def entry(name, *accuracies, alpha=None, kept=1.0):
    own = dict(zip(("cars", "signs"), accuracies, strict=True))
    return contest.Contender(name, alpha, own, kept)


def test_the_end_says_what_is_kept_what_is_lost_and_what_is_next():
    base = entry("base", 0.4, 0.6, kept=0.55)
    sources = entry("sources, each its own", 0.8, 1.0)
    merged = entry("breadcrumbs", 0.6, 0.5, alpha=0.5, kept=0.62)
    others = entry("weight_average", 0.5, 0.5), entry("task_arithmetic", 0.7, 0.5, alpha=0.3)
    kept, gained, then = conclusion.conclude(
        (base, sources, *others, merged), "models:/m@candidate", "--tasks demo/tasks.yaml"
    )
    assert kept == (
        "The merged model (breadcrumbs, nothing tuned) keeps 62% of the accuracy of two fine-tuned "
        "models, on average over their tasks, in one model instead of two and without training; "
        "the base has 55% of it."
    )
    assert gained == (
        "Its average accuracy is 0.550, the base's 0.500: it is better than the base on one of two "
        "tasks and worse on signs (0.500, the base 0.600); ahead of it task_arithmetic with 0.600."
    )
    assert "blame models:/m@candidate --task signs --tasks demo/tasks.yaml`" in then


def test_the_end_of_a_merge_that_loses_nothing_names_the_task_that_keeps_least():
    base, sources = entry("base", 0.4, 0.4), entry("sources, each its own", 0.8, 1.0)
    _, gained, then = conclusion.conclude(
        (base, sources, entry("breadcrumbs", 0.7, 0.4, alpha=1.0)), "models:/m/1", "--tasks t.yaml"
    )
    assert "better than the base on one of two tasks and worse on none." in gained
    assert "its weakest task, signs" in then


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(errors.QuickstartError, match="holds something that the quickstart did not"):
        run.quickstart(tmp_path, SMALL)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(errors.QuickstartError, match="give another --folder"):
        run.quickstart(tmp_path / "thesis.tex", SMALL)


def test_a_package_without_its_project_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_breadcrumbs, "__file__", str(tmp_path / "site" / "pkg" / "x.py"))
    with pytest.raises(errors.QuickstartError, match=r"no MLproject in .*clone its repository"):
        run.quickstart(tmp_path / "demo", SMALL)
    assert not (tmp_path / "demo").exists()
