"""A job that was stopped after it had registered, and the same call again: one version."""

import multiprocessing
import os
import signal

import mlflow
import pytest

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import journal
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.registry import runs, versions
from mlflow_breadcrumbs.sources import finetuning, importing, training


def imported(zoo, name="again", **changes):
    given = {"architecture_name": zoo.architecture, "registered_model": name, "task": "colours"}
    path = zoo.folder / "colours.safetensors"
    return importing.import_checkpoint(str(path), **given | changes)


def tuned(zoo, name="again"):
    return finetuning.finetune(
        zoo.base,
        tasks.find(tasks.load_tasks(zoo.tasks), "colours"),
        registered_model=name,
        settings=training.TrainingSettings(steps=1, batch_size=2),
        device="cpu",
    )


def killed(job, zoo):
    """Run a job in a process of its own that is killed once its version is registered."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        journal.Recording.done = die
        job(zoo)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def check_one(made):
    client = mlflow.MlflowClient()
    (version,) = client.search_model_versions("name = 'again'")
    assert (made.uri, version.status) == ("models:/again/1", "READY")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    assert not client.search_runs([runs.experiment_id()], "attributes.status = 'RUNNING'")
    assert ledger.is_made(made.uri)
    assert [event.phase for event in ledger.history("again")] == ["intent", "done"]
    assert ledger.verify().holds


def test_killed_after_it_had_registered(zoo):
    killed(imported, zoo)
    check_one(imported(zoo))


@pytest.mark.parametrize("job", [imported, tuned])
def test_interrupted_after_it_had_registered(zoo, monkeypatch, job):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal.Recording, "done", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job(zoo)
    made = job(zoo)
    assert made.uri == "models:/again/1"
    assert len(mlflow.MlflowClient().search_model_versions("name = 'again'")) == 1
    assert ledger.is_made(made.uri)


def test_an_import_that_was_not_stopped_and_another_are_two_versions(zoo):
    killed(imported, zoo)
    assert imported(zoo, task="tints").version == "2"  # asks for something else
    assert imported(zoo).version == "1"
    assert imported(zoo).version == "3"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("both 'kinds' of \"quotes\"", "has both kinds of quotes, and MLflow finds no versions by"),
        ("esc\x1b[2J", r"can't name a registered model: it has a control character; leave it out"),
        ("line\nbreak", r"can't name a registered model: it has a control character"),
    ],
)
def test_a_name_that_can_not_be_found_again_registers_nothing(zoo, name, words):
    with pytest.raises(errors.RegistryError, match=words):
        imported(zoo, name)
    found = {model.name for model in mlflow.MlflowClient().search_registered_models()}
    assert name not in found


@pytest.mark.parametrize("name", ["one's", 'the "other"', "a b%_\\c"])
def test_a_name_with_one_kind_of_quotes_is_a_name(zoo, name):
    assert imported(zoo, name).version == "1"
    assert versions.resolve(f"models:/{name}/1").name == name
    assert imported(zoo, name).version == "2"


@pytest.mark.parametrize("way", ["set", "name", "id"])
def test_a_deleted_experiment_is_restored_or_another_is_chosen(zoo, monkeypatch, way):
    experiment = mlflow.set_experiment("gone").experiment_id
    mlflow.tracking.fluent._active_experiment_id = None
    mlflow.delete_experiment(experiment)
    if way == "set":
        mlflow.tracking.fluent._active_experiment_id = experiment
    else:
        value = experiment if way == "id" else "gone"
        monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
        monkeypatch.setenv(f"MLFLOW_EXPERIMENT_{way.upper()}", value)
    with pytest.raises(errors.RegistryError) as raised:
        imported(zoo)
    said = str(raised.value)
    assert "run the same command again" not in said
    assert said.endswith(
        "restore it (`mlflow experiments restore --experiment-id ID`), or choose another one "
        "(MLFLOW_EXPERIMENT_NAME)"
    )
