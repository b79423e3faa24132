"""Several processes at once: the same merge, different merges, a database that is new."""

import shutil

import mlflow
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def together(run_script):
    """Run commands at once, if asked held back until all are about to register; their outputs."""

    def run(uri, folder, commands, *, meet):
        settings = {"uri": uri, "folder": str(folder), "together": commands, "meet": meet}
        (seen,) = run_script("faults", settings)
        return seen

    return run


def merge(zoo, *more):
    listed = [part for source in zoo.sources[:2] for part in ("--source", source)]
    fixed = ["--base", zoo.base, *listed, "--registered-model", "at-once"]
    return ["merge", *fixed, "--alias", "candidate", "--backend", "reference", *more]


def versions():
    found = mlflow.MlflowClient().search_model_versions("name = 'at-once'")
    return sorted(int(version.version) for version in found)


def check_the_same_merge_is_one_version(together, zoo, folder, uri):
    found = together(uri, folder, [merge(zoo), merge(zoo)], meet=True)
    assert found["codes"] == [0, 0], found["log"]
    assert found["log"].count("models:/at-once/1 ") >= 2
    assert versions() == [1]
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("at-once", "candidate")
    assert str(version.version) == "1"
    experiment = client.get_run(version.run_id).info.experiment_id
    kind = "tags.`breadcrumbs.kind` = 'merge'"
    models = client.search_logged_models([experiment], filter_string=kind)
    assert version.source in {f"models:/{model.model_id}" for model in models}
    runs = client.search_runs([experiment], kind)
    assert {run.info.status for run in runs} == {"FINISHED"}
    return models


def test_the_same_merge_twice_at_once_is_one_version(together, zoo, tmp_path):
    models = check_the_same_merge_is_one_version(together, zoo, tmp_path / "both", zoo.tracking_uri)
    assert len(models) == 1


def test_different_merges_at_once_are_different_versions(together, zoo, tmp_path):
    commands = [merge(zoo, "--alpha", str(alpha)) for alpha in (0.5, 1, 2)]
    found = together(zoo.tracking_uri, tmp_path / "three", commands, meet=True)
    assert found["codes"] == [0, 0, 0], found["log"]
    assert versions() == [1, 2, 3]


def test_over_a_server_too(together, on_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "at-once")
    mlflow.set_experiment("at-once")
    uri = on_server.tracking_uri
    check_the_same_merge_is_one_version(together, on_server, tmp_path / "both", uri)


def test_a_new_database_that_several_processes_open_first(together, tmp_path):
    """MLflow alone leaves tables here that lack columns, and tracebacks."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    found = together(uri, tmp_path / "all", [["lineage", "models:/none/1"]] * 3, meet=False)
    assert found["codes"] == [1, 1, 1]
    assert found["log"].count("Error: cannot resolve models:/none/1: ") == 3
    assert "Traceback" not in found["log"]


def test_a_database_whose_tables_are_incomplete_is_named(together, empty_database, tmp_path):
    import sqlite3

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("DROP TABLE alembic_version")
        connection.execute("DROP TABLE experiments")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    found = together(uri, tmp_path / "one", [["lineage", "models:/none/1"]], meet=False)
    assert found["codes"] == [1]
    assert f"Error: MLflow can't open its database {uri}: " in found["log"]
    assert "`python -m mlflow db upgrade URI`" in found["log"]
