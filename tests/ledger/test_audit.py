"""One version against the ledger, and the ledger against what MLflow keeps of it."""

import mlflow
import pytest
import sqlalchemy as sql
from registered import register

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import anchors, events, journal, schema, stores

DIGEST = "sha256:1"


@pytest.fixture
def versions(zoo, ledger_uri):
    """Three versions of `m` that the ledger saw being made."""
    for _ in range(3):
        with (
            mlflow.start_run() as run,
            ledger.recording("merge", "m", run_id=run.info.run_id) as job,
        ):
            job.done(register("m", run.info.run_id))


def statuses(uri="models:/m/2", digest=DIGEST):
    return {check.what: check.status for check in ledger.check_version(uri, digest)}


def execute(statement):
    with stores.opened() as opened, opened.writing() as connection:
        connection.execute(statement)


def test_a_version_as_it_was_made_is_ok(versions):
    assert statuses() == {"ledger event": "ok", "event chain": "ok", "ledger head": "ok"}
    verdict = ledger.verify()
    assert statuses() == {
        check.what: check.status for check in ledger.check_version("models:/m/2", DIGEST, verdict)
    }


def test_other_weights_are_a_change(versions):
    check, *_ = ledger.check_version("models:/m/2", "sha256:2")
    assert check.status == "changed"
    assert "has the weights sha256:1; they are now sha256:2" in check.message


def test_a_version_that_the_ledger_never_saw_is_unknown(versions, zoo):
    check, chain, head = ledger.check_version(zoo.base, "sha256:0")
    assert (check.status, chain.status, head.status) == ("unknown", "ok", "unknown")
    assert "no event says that models:/tiny/1 was made" in check.message
    assert "head of another ledger" in head.message


def test_a_decision_about_a_version_that_mlflow_alone_registered_asks_for_no_more(versions):
    made = register("plain", mlflow.start_run().info.run_id)
    mlflow.end_run()
    journal.note("approve", "plain", subject=made.uri)
    check, chain, head = ledger.check_version(made.uri, DIGEST)
    assert (check.status, chain.status, head.status) == ("unknown", "ok", "ok")
    assert "it may have been made elsewhere" in check.message
    # The event of an own version that was taken out is missed, whatever was decided since.
    journal.note("approve", "m", subject="models:/m/3")
    execute(sql.delete(schema.EventRow).where(schema.EventRow.sequence == 6))
    assert statuses("models:/m/3")["ledger event"] == "missing"


def test_a_cut_tail_is_found_by_the_heads_in_mlflow(versions):
    execute(sql.delete(schema.EventRow).where(schema.EventRow.sequence > 4))
    verdict = ledger.verify()
    assert verdict.problem.startswith(
        "event 5 is missing: the tail was cut off. models:/m/3 has the head 6:sha256:"
    )
    assert ledger.verify(in_mlflow=False).holds
    assert statuses("models:/m/3")["ledger head"] == "changed"
    assert statuses("models:/m/3")["ledger event"] == "missing"


def test_a_history_written_anew_is_found_by_the_heads_in_mlflow(versions):
    with stores.opened() as opened, opened.writing() as connection:
        old = events.of_name(connection, "m")
        connection.execute(sql.delete(schema.EventRow))
        for event in old:
            fields = {
                name: getattr(event, name)
                for name in ("kind", "phase", "name", "subject", "run_id", "details")
            }
            events.append(connection, events.Draft(actor="bob@here", **fields))
    assert ledger.verify(in_mlflow=False).holds
    assert "event 2 is not the one that it was: the chain was rewritten" in ledger.verify().problem


def test_a_damaged_tag_is_found(versions):
    mlflow.MlflowClient().set_model_version_tag("m", "2", anchors.TAG_HEAD, "nonsense")
    assert ledger.verify().problem == (
        "models:/m/2 carries 'nonsense', which is no head of a ledger"
    )
    assert statuses()["ledger head"] == "changed"


def test_the_head_of_an_outsider_is_held_against_the_chain(versions):
    head = str(ledger.head())
    assert ledger.verify(head, in_mlflow=False).holds
    ledger.set_alias("m", "best", "1")
    assert ledger.verify(head).holds
    with pytest.raises(errors.LedgerError, match="'7' is no head of a ledger"):
        ledger.verify("7")
