"""Every command that makes runs puts them where `--experiment` says."""

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.registry import runs


def run(*arguments, code=0):
    """What a command printed."""
    result = CliRunner().invoke(cli.main, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.output


def kinds(name):
    """What the runs of an experiment are of."""
    found = mlflow.MlflowClient().get_experiment_by_name(name)
    if found is None:
        return []
    listed = mlflow.search_runs([found.experiment_id], output_format="list")
    return [each.data.tags["breadcrumbs.kind"] for each in listed]


def materials(zoo, *more):
    return ["--base", zoo.base, "--sources", ",".join(zoo.sources[:2]), *more]


COMMANDS = {
    "import": lambda zoo: [
        *("import", zoo.folder / "base.safetensors", "--architecture", zoo.architecture),
        *("--registered-model", "again"),
    ],
    "finetune": lambda zoo: [
        *("finetune", "--base", zoo.base, "--tasks", zoo.tasks, "--task", "colours"),
        *("--registered-model", "tuned", "--steps", "1", "--batch-size", "4", "--device", "cpu"),
    ],
    "merge": lambda zoo: [
        *("merge", *materials(zoo, "--registered-model", "merged")),
        *("--method", "breadcrumbs"),
    ],
    "compare": lambda zoo: ["compare", *materials(zoo, "--log")],
    "evaluate": lambda zoo: ["evaluate", zoo.sources[0], "--tasks", zoo.tasks, "--device", "cpu"],
    "sweep": lambda zoo: [
        *("sweep", *materials(zoo, "--tasks", zoo.tasks, "--alpha", "0.5", "--density", "0.2")),
        *("--no-robustness", "--device", "cpu"),
    ],
    "scaling": lambda zoo: [
        *("scaling", *materials(zoo, "--tasks", zoo.tasks, "--methods", "breadcrumbs")),
        *("--smallest", "1", "--device", "cpu"),
    ],
}
"""A call of each, by the kind of its run."""


@pytest.mark.parametrize("kind", COMMANDS)
def test_its_runs_are_in_the_experiment_that_is_named(zoo, kind):
    before = len(kinds("zoo"))
    run(*COMMANDS[kind](zoo), "--experiment", "team a/b")
    assert kind in kinds("team a/b")
    assert len(kinds("zoo")) == before
    (model,) = mlflow.search_logged_models(
        experiment_ids=[mlflow.get_experiment_by_name("team a/b").experiment_id],
        output_format="list",
    ) or [None]
    assert (model is not None) == (kind in {"import", "finetune", "merge"})


def test_it_holds_for_the_command_alone(zoo):
    call = COMMANDS["compare"](zoo)
    run(*call, "--experiment", "once")
    run(*call)
    run(*call, "--experiment", "")
    assert (kinds("once"), kinds("zoo").count("compare")) == (["compare"], 2)


def test_mlflows_own_variable_names_one_too(zoo, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by name")
    call = COMMANDS["compare"](zoo)
    run(*call)
    run(*call, "--experiment", "by option")
    assert (kinds("by name"), kinds("by option")) == (["compare"], ["compare"])


def test_bad_input_makes_no_experiment(zoo):
    run("merge", *materials(zoo, "--experiment", "new"), code=2)
    run("evaluate", zoo.base, "--tasks", "none.yaml", "--experiment", "new", code=1)
    assert mlflow.get_experiment_by_name("new") is None


def test_an_experiment_that_was_deleted_takes_no_runs(zoo):
    mlflow.delete_experiment(mlflow.create_experiment("gone"))
    said = run(*COMMANDS["compare"](zoo), "--experiment", "gone", code=1)
    assert "mlflow experiments restore" in said


def test_the_run_of_a_project_stays_where_it_is(zoo, monkeypatch):
    with mlflow.start_run() as project:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", project.info.run_id)
    call = COMMANDS["compare"](zoo)
    said = run(*call, "--experiment", "elsewhere", code=1)
    assert "belongs to the experiment 'zoo', not to 'elsewhere'" in said
    assert "--experiment-name" in said
    assert mlflow.get_experiment_by_name("elsewhere") is None
    with runs.in_experiment("zoo"):
        assert runs.experiment_id() == project.info.experiment_id
