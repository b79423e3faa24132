"""The run of `mlflow run`: it is the job's own, or it says where the result is."""

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENTRY_POINT, MLFLOW_RUN_NOTE

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.registry import tag_keys

LEFT = "zealous-kit-682"


@pytest.fixture
def project(monkeypatch):
    """Run a command as `mlflow run` does, in a run that it made before; that run afterwards."""

    def run(*arguments, code=0):
        client = mlflow.MlflowClient()
        experiment = mlflow.get_experiment_by_name("zoo").experiment_id
        tags = {MLFLOW_PROJECT_ENTRY_POINT: "main"}
        made = client.create_run(experiment, run_name=LEFT, tags=tags).info.run_id
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_RUN_ID", made)
            result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return client.get_run(made)

    return run


def merge(zoo, *more):
    sources = [part for uri in zoo.sources[:2] for part in ("--source", uri)]
    return ("merge", "--base", zoo.base, *sources, "--registered-model", "new", *more)


def check_points(found, name, *, version, run_id):
    """That a run is named, and that its tags and its description lead to the result."""
    assert found.info.run_name == name
    assert found.data.tags[tag_keys.RESULT] == version
    assert found.data.tags[tag_keys.RESULT_RUN] == run_id
    model, number = version.removeprefix("models:/").split("/")
    note = found.data.tags[MLFLOW_RUN_NOTE]
    assert f"- [{version}](#/models/{model}/versions/{number})" in note
    experiment = mlflow.get_run(run_id).info.experiment_id
    assert f"](#/experiments/{experiment}/runs/{run_id})" in note


def test_a_merge_is_the_projects_run_and_one_that_exists_is_pointed_at(zoo, project):
    first = project(*merge(zoo))
    version = mlflow.MlflowClient().get_model_version("new", "1")
    assert version.run_id == first.info.run_id
    assert first.info.run_name == "merge new"
    assert tag_keys.RESULT not in first.data.tags
    again = project(*merge(zoo))
    check_points(again, "merge new", version="models:/new/1", run_id=first.info.run_id)
    assert "This merge exists already: it is models:/new/1." in again.data.tags[MLFLOW_RUN_NOTE]
    assert tag_keys.KIND not in again.data.tags


def test_a_merge_with_a_choice_is_the_projects_run(zoo, project):
    found = project(*merge(zoo, "--choose", "--tasks", zoo.tasks))
    version = mlflow.MlflowClient().get_model_version("new", "1")
    assert version.run_id == found.info.run_id
    assert found.info.run_name == "merge new"


def test_a_sweep_that_was_done_is_pointed_at(zoo, project):
    given = ("sweep", "--base", zoo.base, "--sources", ",".join(zoo.sources[:2]))
    given += ("--tasks", zoo.tasks, "--alpha", "0.5", "--no-robustness")
    first = project(*given)
    assert first.info.run_name == "sweep of 1 recipe"
    again = project(*given)
    assert again.info.run_name == "sweep of 1 recipe"
    assert again.data.tags[tag_keys.RESULT_RUN] == first.info.run_id


def test_a_decision_is_pointed_at(family, project, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("average_accuracy: 0.0\n")
    given = ("--alias", "champion", "--policy", policy)
    found = project("promote", "--uri", family.merged, *given)
    decided = mlflow.search_runs(experiment_names=["breadcrumbs-promotions"], output_format="list")[
        0
    ]
    name = f"promote {family.merged} to champion"
    check_points(found, name, version=family.merged, run_id=decided.info.run_id)
    assert f"{family.merged} is champion now" in found.data.tags[MLFLOW_RUN_NOTE]
    again = project("recheck", "merged@champion", "--tasks", family.tasks)
    assert again.info.run_name == f"recheck {family.merged}"
    assert mlflow.get_run(again.data.tags[tag_keys.RESULT_RUN]).info.run_name == again.info.run_name


def test_what_is_in_the_versions_run_is_pointed_at(family, project):
    found = project("report", family.merged)
    check_points(found, f"report {family.merged}", version=family.merged, run_id=family.run_id)
    found = project("blame", family.merged, "--task", "colours", "--tasks", family.tasks)
    check_points(found, f"blame {family.merged}", version=family.merged, run_id=family.run_id)


def test_an_audit_says_what_it_found(family, project):
    found = project("verify", family.merged)
    assert found.info.run_name == f"verify {family.merged}"
    assert found.data.tags[MLFLOW_RUN_NOTE].startswith("All is as recorded.")
    family.file(family.sources[2]).write_bytes(b"")
    found = project("verify", "--all", code=3)
    assert found.info.run_name == "verify 6 versions"
    assert (
        f"Not as recorded: {family.sources[2]}, {family.top}." in (found.data.tags[MLFLOW_RUN_NOTE])
    )


def test_without_a_project_nothing_is_pointed_at(zoo):
    for _ in range(2):
        assert CliRunner().invoke(cli.main, merge(zoo)).exit_code == 0
    (run,) = mlflow.search_runs(
        filter_string="attributes.run_name = 'merge new'", output_format="list"
    )
    assert tag_keys.RESULT not in run.data.tags
