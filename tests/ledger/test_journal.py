"""What a job leaves in the history, however it ends."""

import multiprocessing
import os
import signal

import mlflow
import pytest
from registered import register

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import evaluating
from mlflow_breadcrumbs.ledger import anchors, events, settling, stores
from mlflow_breadcrumbs.pipeline import flow

RECIPE = recipe.MergeRecipe.from_method("breadcrumbs", sources=2)


def merge(zoo, name="merged", **changes):
    settings = {
        "base": zoo.base,
        "sources": zoo.sources[:2],
        "registered_model": name,
        "recipe": RECIPE,
        "device": "cpu",
    }
    return flow.merge(flow.MergeRequest(**(settings | changes)))


def history(name):
    return [(event.kind, event.phase, event.subject) for event in ledger.history(name)]


def test_a_merge_its_alias_and_its_evaluation_are_in_the_history(zoo):
    made = merge(zoo, alias="candidate").version
    evaluating.evaluate_version(made.uri, zoo.tasks, only=["colours"], device="cpu")
    assert history("merged") == [
        ("merge", "intent", None),
        ("alias", "intent", made.uri),
        ("alias", "done", made.uri),
        ("merge", "done", made.uri),
        ("evaluate", "intent", made.uri),
        ("evaluate", "done", made.uri),
    ]
    _, _, alias, done, _, evaluated = ledger.history("merged")
    assert alias.details["alias"] == "candidate"
    assert alias.details["before"] is None
    assert done.details["weights_digest"] == made.weights_digest
    assert done.details["recipe_digest"] == RECIPE.digest
    assert done.run_id == made.run_id
    assert set(evaluated.details["metrics"]) == {
        "accuracy/colours",
        "accuracy_low/colours",
        "accuracy_high/colours",
        "average_accuracy",
    }


def test_the_head_goes_into_mlflow_with_every_event(zoo):
    made = merge(zoo)
    client = mlflow.MlflowClient()
    on_run = client.get_run(made.version.run_id).data.tags[anchors.TAG_HEAD]
    on_version = client.get_model_version("merged", "1").tags[anchors.TAG_HEAD]
    assert on_run.startswith("1:sha256:")
    assert on_version == ledger.head().tag()
    verdict = ledger.verify()
    assert (verdict.holds, verdict.heads, verdict.foreign) == (True, 1, 4)  # the zoo's own ledger


def test_a_merge_that_exists_already_is_no_event(zoo):
    merge(zoo)
    before = ledger.head()
    assert merge(zoo).reused
    assert ledger.head() == before


def test_a_job_that_fails_is_recorded_with_why(zoo):
    with (
        pytest.raises(ZeroDivisionError),
        mlflow.start_run() as run,
        ledger.recording("merge", "m", run_id=run.info.run_id),
    ):
        _ = 1 / 0
    *_, failed = ledger.history("m")
    assert (failed.phase, failed.subject, failed.intent) == ("failed", None, 1)
    assert failed.details["error"] == "ZeroDivisionError: division by zero"


def test_a_failure_after_the_registration_names_the_version(zoo):
    with (
        pytest.raises(ZeroDivisionError),
        mlflow.start_run() as run,
        ledger.recording("merge", "m", run_id=run.info.run_id),
    ):
        _ = register("m", run.info.run_id), 1 / 0
    assert history("m")[-1] == ("merge", "failed", "models:/m/1")


def test_a_ledger_that_cannot_be_reached_stops_a_merge_before_it_begins(zoo, monkeypatch):
    monkeypatch.setenv(stores.VARIABLE, "postgresql://ann:secret@127.0.0.1:9/x")
    runs = len(mlflow.search_runs(search_all_experiments=True, output_format="list"))
    with pytest.raises(errors.LedgerError, match=r"the ledger .*127.0.0.1:9/x can't be used"):
        merge(zoo)
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == runs
    assert not mlflow.MlflowClient().search_model_versions("name = 'merged'")


def test_a_ledger_that_is_gone_at_the_end_undoes_nothing_and_is_settled(zoo, tmp_path, caplog):
    path, away = tmp_path / stores.FILE, tmp_path / "away"
    with mlflow.start_run() as run, ledger.recording("merge", "m", run_id=run.info.run_id) as job:
        path.rename(away)
        path.mkdir()  # SQLite can't open a folder
        job.done(register("m", run.info.run_id))
    assert "the outcome of event 1 was not written; the next call settles it" in caplog.text
    path.rmdir()
    away.rename(path)
    assert settling.settle() == 1
    (_, settled) = ledger.history("m")
    assert (settled.phase, settled.subject, settled.intent) == ("done", "models:/m/1", 1)
    assert settled.details == {"weights_digest": "sha256:1", "settled": True}


def killed(kind, act):
    """A job in a process of its own that is killed right after it acted."""
    with mlflow.start_run() as run, ledger.recording(kind, "m", run_id=run.info.run_id):
        if act:
            register("m", run.info.run_id)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("act", "phase", "subject"),
    [(False, "abandoned", None), (True, "done", "models:/m/1")],
)
def test_a_killed_job_is_settled_by_the_next_call(zoo, act, phase, subject):
    process = multiprocessing.get_context("fork").Process(target=killed, args=("merge", act))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert history("m") == [("merge", "intent", None)]
    ledger.set_alias("tiny", "base", "1")
    assert history("m") == [("merge", "intent", None), ("merge", phase, subject)]
    assert ledger.verify().holds
    assert settling.settle() == 0


def test_a_job_on_another_machine_is_settled_when_its_run_has_ended(zoo, monkeypatch):
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        draft = events.Draft(
            actor="ann@there",
            kind="merge",
            phase=events.INTENT,
            name="m",
            run_id=run.info.run_id,
            details={"host": "there", "pid": 1},
        )
        with stores.opened() as opened, opened.writing() as connection:
            events.append(connection, draft)
        assert settling.settle() == 0
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert settling.settle() == 1
    assert history("m")[-1] == ("merge", "abandoned", None)


def test_a_job_that_still_runs_is_left_alone(zoo):
    with mlflow.start_run() as run, ledger.recording("merge", "m", run_id=run.info.run_id) as job:
        assert settling.settle() == 0
        job.add(score=float("nan"), scores={"a": [float("inf"), 1.0]})
    assert history("m")[-1] == ("merge", "done", None)
    assert ledger.history("m")[-1].details == {"score": "nan", "scores": {"a": ["inf", 1.0]}}


def test_an_alias_that_was_not_set_is_a_failure(zoo):
    with pytest.raises(errors.RegistryError):
        ledger.set_alias("tiny", "best", "9")
    assert history("tiny")[-2:] == [
        ("alias", "intent", "models:/tiny/9"),
        ("alias", "failed", "models:/tiny/9"),
    ]


def test_an_alias_that_moves_is_recorded_with_where_it_was(zoo):
    merge(zoo, alias="best")
    merge(zoo, alias="best", force=True)
    moves = [event for event in ledger.history("merged") if event.kind == "alias"]
    assert [move.details.get("before") for move in moves if move.phase == "done"] == [None, "1"]
