"""Which task file is taken: the one that is named, the variable's, or the one of before."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.registry import versions


def run(*arguments, code=0):
    done = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


def merged(zoo, name, *more):
    """A merge by the command, for `name`; the result and what was said beside it."""
    sources = ",".join(zoo.sources[:2])
    done = run(
        *("merge", "--base", zoo.base, "--sources", sources, "--method", "breadcrumbs"),
        *("--registered-model", name, "--json", *more),
    )
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def recorded(zoo, tmp_path):
    """The zoo with a base that was imported by the command, from a task file beside it."""
    shutil.copy(zoo.tasks, tmp_path / "tasks.yaml")
    imported = run(
        *("import", zoo.folder / "base.safetensors", "--architecture", zoo.architecture),
        *("--registered-model", "clip", "--tasks", "tasks.yaml", "--json"),
    )
    return json.loads(imported.stdout)["uri"]


def test_the_variable_is_taken_for_the_option(zoo, tmp_path, monkeypatch):
    assert not merged(zoo, "bare")[0]["metrics"]
    for name in ("variable.yaml", "option.yaml"):
        shutil.copy(zoo.tasks, tmp_path / name)
    monkeypatch.setenv("BREADCRUMBS_TASKS", "variable.yaml")
    for given in ((), ("--tasks", "")):  # as `mlflow run` passes it
        done = run("evaluate", zoo.base, *given, "--task", "tints")
        assert "Tasks: variable.yaml, which $BREADCRUMBS_TASKS names.\n" in done.stderr
        assert "tints" in done.stdout
    assert "Tasks:" not in run("evaluate", zoo.base, "--tasks", "option.yaml").stderr
    assert "Tasks:" not in run("--quiet", "evaluate", zoo.base).stderr
    made, _ = merged(zoo, "measured")
    assert made["metrics"]
    _, stated = contents.read_statement(versions.resolve("measured/1"))
    assert stated.task_file == str(tmp_path / "variable.yaml")
    made, said = merged(zoo, "unmeasured", "--tasks", "none")
    assert not made["metrics"]
    assert "Tasks:" not in said


def test_without_either_it_is_what_the_merge_recorded_or_its_base(recorded, zoo, tmp_path):
    file = str(tmp_path / "tasks.yaml")
    done = run("evaluate", recorded, "--task", "tints")
    assert f"Tasks: {file}, which {recorded} was made with.\n" in done.stderr
    merge = ("merge", "--base", recorded, "--sources", ",".join(zoo.sources[:2]))
    done = run(*merge, "--registered-model", "out", "--method", "breadcrumbs")
    assert f"Tasks: {file}, which {recorded} was made with.\n" in done.stderr
    assert "average" in done.stdout
    done = run("blame", "out/1", "--task", "tints", "--finalists", "0")
    assert f"Tasks: {file}, which models:/out/1 was made with.\n" in done.stderr
    moved = shutil.copy(file, tmp_path / "moved.yaml")
    Path(file).unlink()
    usage = run("evaluate", "out/1", "--tasks", "none", code=2).stderr
    assert "--tasks none names none" in " ".join(usage.split())
    usage = run("evaluate", "out/1", code=2).stderr
    assert "Missing option '--tasks' (or $BREADCRUMBS_TASKS, and models:/out/1 recorded" in usage
    run(*merge, "--registered-model", "later", "--method", "breadcrumbs")
    mlflow.MlflowClient().set_model_version_tag("later", "1", "breadcrumbs.base", zoo.base)
    run("evaluate", "later/1", code=2)
    assert "Tasks:" not in run("evaluate", "later/1", "--tasks", moved).stderr


@pytest.mark.parametrize(
    "said", ["https://tasks.example.org/tasks.yaml", "s3://bucket/tasks.yaml", "no/such/file.yaml"]
)
def test_what_somebody_recorded_elsewhere_is_not_fetched(zoo, said):
    mlflow.MlflowClient().log_param(versions.resolve(zoo.base).run_id, "import.tasks", said)
    assert "Missing option '--tasks'" in run("evaluate", zoo.base, code=2).stderr
