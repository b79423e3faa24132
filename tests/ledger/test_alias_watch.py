"""Aliases that are moved past this package: found once, by whatever looks first."""

import datetime
import os
import socket
import threading

import ledgers
import mlflow
import postgres
import pytest
import registered
import sqlalchemy as sql

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import alias_state, alias_watch, anchors, events, schema, stores
from mlflow_breadcrumbs.support import canonical


@pytest.fixture
def either(store, ledger_uri):
    """As `model`, with a ledger in each kind of database."""
    return known()


@pytest.fixture
def model(store):
    """A model with three versions; the ledger has looked at the registry before."""
    return known()


def known():
    for _ in range(3):
        registered.version("m")
    ledger.look()
    return mlflow.MlflowClient()


def told(found):
    return [(move.alias, move.before, move.after, cause(move), move.how) for move in found]


def cause(move):
    """The cause; of all moves of ours the same."""
    return move.cause if move.how else "ours"


def history(alias=None):
    return told(ledger.alias_changes("m", alias))


def delivery(version, changed=None, alias="champion", identifier=None):
    return ledger.Delivery(
        identifier or f"id-{os.urandom(4).hex()}", "m", alias, version, changed or ledger.now()
    )


def test_a_direct_change_is_noticed_once(either):
    either.set_registered_model_alias("m", "champion", "1")
    before = ledger.now()
    assert told(ledger.look()) == [("champion", None, "1", "direct", "sync")]
    assert ledger.look(["m"], "watch") == []
    assert ledger.sync().noticed == ()
    either.set_registered_model_alias("m", "champion", "2")
    assert told(ledger.look(["m"], "watch")) == [("champion", "1", "2", "direct", "watch")]
    assert history() == [
        ("champion", None, "1", "direct", "sync"),
        ("champion", "1", "2", "direct", "watch"),
    ]
    first, second = ledger.alias_changes("m")
    assert first.earliest < before < first.latest  # known as an interval, from look to look
    assert first.latest < second.earliest < second.latest
    assert (first.actor, first.noticed_by) == (None, events.actor())
    assert ledger.verify().holds


def test_the_head_goes_into_mlflow_with_what_was_noticed(model):
    model.set_registered_model_alias("m", "champion", "2")
    ledger.look()
    assert model.get_model_version("m", "2").tags[anchors.TAG_HEAD] == ledger.head().tag()


def test_what_stood_at_the_first_look_is_no_change(store):
    registered.version("m")
    mlflow.MlflowClient().set_registered_model_alias("m", "champion", "1")
    assert told(ledger.look()) == [("champion", None, "1", "first seen", "sync")]
    assert ledger.look() == []


def test_one_model_alone_is_looked_at(model):
    registered.version("other")
    for name in ("m", "other"):
        model.set_registered_model_alias(name, "champion", "1")
    assert [move.name for move in ledger.look(["other"])] == ["other"]
    assert [move.name for move in ledger.look()] == ["m"]


def test_a_name_that_nobody_knows(model):
    with pytest.raises(errors.RegistryError, match="has no model 'n', and the ledger never knew"):
        ledger.look(["n"])


def test_an_alias_that_is_removed_directly(model):
    ledger.set_alias("m", "champion", "1")
    model.delete_registered_model_alias("m", "champion")
    assert told(ledger.look()) == [("champion", "1", None, "direct", "sync")]
    assert ledger.look() == []


def test_aliases_that_go_with_their_version_or_their_model(model):
    ledger.set_alias("m", "champion", "1")
    ledger.set_alias("m", "candidate", "2")
    model.delete_model_version("m", "1")
    assert told(ledger.look()) == [("champion", "1", None, "direct", "sync")]
    model.delete_registered_model("m")
    assert told(ledger.look(["m"])) == [("candidate", "2", None, "direct", "sync")]


def test_a_move_of_ours_is_no_direct_change(model):
    ledger.set_alias("m", "champion", "1")
    ledger.set_alias("m", "champion", "2")
    assert ledger.look() == []
    assert history() == [
        ("champion", None, "1", "ours", None),
        ("champion", "1", "2", "ours", None),
    ]


def test_a_move_of_ours_brings_to_light_what_came_before(either):
    ledger.set_alias("m", "champion", "1")
    either.set_registered_model_alias("m", "champion", "3")
    ledger.set_alias("m", "champion", "2")
    assert history() == [
        ("champion", None, "1", "ours", None),
        ("champion", "1", "3", "direct", "move"),
        ("champion", "3", "2", "ours", None),
    ]
    assert ledger.look() == []
    assert ledger.verify().holds


def begin(version, alias="champion"):
    """The intent of a job that still runs."""
    draft = events.Draft(
        actor="ann@here",
        kind="alias",
        phase=events.INTENT,
        name="m",
        subject=f"models:/m/{version}",
        details={"alias": alias, "host": socket.gethostname(), "pid": os.getpid()},
    )
    with stores.opened() as opened, opened.writing() as connection:
        return events.append(connection, draft), draft


def end(intent, draft, before):
    details = {"alias": draft.details["alias"], "before": before}
    outcome = events.Draft(
        **(vars(draft) | {"phase": events.DONE, "intent": intent.sequence, "details": details})
    )
    with stores.opened() as opened, opened.writing() as connection:
        events.append(connection, outcome)


def test_a_move_of_ours_that_is_under_way_is_no_direct_change(model):
    begun = begin("2")
    model.set_registered_model_alias("m", "champion", "2")
    assert ledger.look() == []
    assert ledger.take(delivery("2")) == []
    end(*begun, None)
    assert ledger.look() == []
    assert history() == [("champion", None, "2", "ours", None)]


def test_a_direct_change_beside_a_move_of_ours_is_one(model):
    begun = begin("2")
    model.set_registered_model_alias("m", "champion", "3")
    assert told(ledger.look()) == [("champion", None, "3", "direct", "sync")]
    end(*begun, "3")
    assert [cause(move) for move in ledger.alias_changes("m")] == ["direct", "ours"]


def test_two_moves_of_ours_at_once_are_no_direct_change_in_whatever_order(model):
    ledger.set_alias("m", "champion", "1")
    first, second = begin("2"), begin("3")
    model.set_registered_model_alias("m", "champion", "2")
    model.set_registered_model_alias("m", "champion", "3")
    end(*second, "2")  # it took effect last, and is written first
    end(*first, "1")
    assert told(ledger.look()) == [("champion", "2", "3", "order", "sync")]
    assert ledger.look() == []
    assert not any(move.is_direct for move in ledger.alias_changes("m"))


def test_what_is_written_while_the_registry_is_read_is_not_judged(model, monkeypatch):
    ledger.set_alias("m", "champion", "1")
    read = alias_watch._read

    def slowly(names):
        found = read(names)
        ledger.set_alias("m", "champion", "2")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(alias_watch, "_read", slowly)
        assert ledger.look() == []
    assert [move.after for move in ledger.alias_changes("m")] == ["1", "2"]


def test_several_that_look_at_once_make_one_event(either):
    either.set_registered_model_alias("m", "champion", "1")
    gate = threading.Barrier(4)

    def act(number):
        gate.wait()
        if number % 2:
            ledger.look()
        else:
            ledger.take(delivery("1"))

    threads = [threading.Thread(target=act, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(move.before, move.after) for move in ledger.alias_changes("m")] == [(None, "1")]
    assert ledger.verify().holds


def test_a_ledger_of_the_first_release_is_taken_over(store, ledger_uri):
    registered.version("m")
    mlflow.MlflowClient().set_registered_model_alias("m", "champion", "1")
    ledgers.place(1, ledger_uri, empty=True)
    write_as_the_first_release_did(ledger_uri)
    with stores.opened() as opened, opened.reading() as connection:
        assert alias_state.known(connection) == {
            ("m", "champion"): alias_state.Known("1", "2026-03-03T14:00:00.000+00:00", 2)
        }
    assert ledger.look() == []


def write_as_the_first_release_did(uri):
    """A move that was killed and settled, when there was no table of aliases."""
    previous = "sha256:" + "0" * 64
    rows = [("intent", {"alias": "champion"}, None), ("done", {"settled": True}, 1)]
    table = sql.table("events", *map(sql.column, schema.table(schema.EventRow).c.keys()))
    with postgres.engine(uri).connect() as connection:
        for number, (phase, details, intent) in enumerate(rows, 1):
            event = events.Event(
                actor="ann@here",
                kind="alias",
                phase=phase,
                name="m",
                subject="models:/m/1",
                intent=intent,
                details=details,
                sequence=number,
                previous=previous,
                time="2026-03-03T14:00:00.000+00:00",
            )
            body = canonical.dumps(event.to_dict())
            stored = {"previous": previous, "hash": (previous := canonical.sha256(body))}
            row = {"sequence": number, "name": "m", "subject": "models:/m/1"}
            connection.execute(sql.insert(table).values(**row, **stored, body=body.decode()))


# What webhooks tell.


def test_a_webhook_tells_of_a_direct_change_and_when_it_was(model):
    model.set_registered_model_alias("m", "champion", "1")
    ((head, draft),) = ledger.take(delivery("1", changed="2026-03-03T14:00:00.000+00:00"))
    assert (head.sequence, draft.kind) == (1, "alias_observed")
    (move,) = ledger.alias_changes("m")
    assert move.earliest == move.latest == "2026-03-03T14:00:00.000+00:00"
    assert ledger.look() == []
    model.delete_registered_model_alias("m", "champion")
    ledger.take(delivery(None))
    assert ledger.look() == []
    assert history() == [
        ("champion", None, "1", "direct", "webhook"),
        ("champion", "1", None, "direct", "webhook"),
    ]


def test_a_delivery_is_taken_once(either):
    either.set_registered_model_alias("m", "champion", "1")
    ledger.take(delivery("1", identifier="same"))
    with pytest.raises(errors.ReplayError, match="the delivery same was taken before"):
        ledger.take(delivery("2", identifier="same"))
    assert len(ledger.alias_changes("m")) == 1


def test_the_webhook_of_a_move_of_ours_or_of_what_a_look_found_is_known(model):
    ledger.set_alias("m", "champion", "1")
    assert ledger.take(delivery("1")) == []
    model.set_registered_model_alias("m", "champion", "2")
    told_at = ledger.now()
    ledger.look()
    assert ledger.take(delivery("2", told_at)) == []
    assert len(ledger.alias_changes("m")) == 2


def test_a_late_webhook_of_a_move_of_ours_is_known(model):
    ledger.set_alias("m", "champion", "1")
    first = ledger.now()
    ledger.set_alias("m", "champion", "2")
    second = ledger.now()
    assert ledger.take(delivery("2", second)) == []
    assert ledger.take(delivery("1", first)) == []
    assert ledger.look() == []


def test_a_second_direct_change_to_the_same_version_is_another(model):
    ledger.set_alias("m", "champion", "1")
    ledger.take(delivery("1"))
    ledger.set_alias("m", "champion", "2")
    ledger.take(delivery("2"))
    model.set_registered_model_alias("m", "champion", "1")
    ledger.take(delivery("1"))
    assert history()[-1] == ("champion", "2", "1", "direct", "webhook")


def test_a_change_there_and_back_is_kept_though_it_is_past(model):
    ledger.set_alias("m", "champion", "1")
    model.set_registered_model_alias("m", "champion", "3")
    changed = ledger.now()
    model.set_registered_model_alias("m", "champion", "1")
    assert ledger.take(delivery("1")) == []  # the second comes first
    assert len(ledger.take(delivery("3", changed))) == 2
    assert history()[1:] == [
        ("champion", "1", "3", "direct", "webhook"),
        ("champion", "3", "1", "direct", "webhook"),
    ]
    assert ledger.look() == []


def test_a_webhook_is_believed_while_the_registry_does_not_answer(model, monkeypatch):
    def down(*_):
        raise mlflow.exceptions.MlflowException("API request to x failed")

    monkeypatch.setattr(mlflow.MlflowClient, "get_registered_model", down)
    assert len(ledger.take(delivery("2"))) == 1


# The watch.


@pytest.mark.parametrize("kind", [errors.UnreachableError, errors.RegistryError])
def test_a_watch_says_once_that_the_server_is_gone_and_goes_on(model, monkeypatch, caplog, kind):
    answers = iter([True, False, False, True])
    look = alias_watch._read

    def read(names):
        if next(answers):
            return look(names)
        raise kind("the tracking server does not answer")

    monkeypatch.setattr(alias_watch, "_read", read)
    rounds = ledger.watch(interval=0.01)
    assert next(rounds) == []
    model.set_registered_model_alias("m", "champion", "1")
    assert told(next(rounds)) == [("champion", None, "1", "direct", "watch")]
    assert [record.message for record in caplog.records] == [
        "the tracking server does not answer. Trying every 0.01 s",
        "the registry and the ledger answer again",
    ]


# What the history answers for a time.


def test_which_version_it_was_then(model):
    ledger.set_alias("m", "champion", "1")
    between = moment()
    model.set_registered_model_alias("m", "champion", "2")
    meanwhile = moment()
    ledger.look()
    (before,) = ledger.standings("m", between)
    assert (before.version, before.certain) == ("1", False)  # the change was after the last look
    assert before.possible == ("1", "2")
    (unsure,) = ledger.standings("m", meanwhile, "champion")
    assert unsure.possible == ("1", "2")
    ledger.look()
    (sure,) = ledger.standings("m", moment(-0.02))
    assert sure.possible[-1] == "2"
    assert ledger.standings("m", between, "none")[0].possible == ()


def moment(offset=0.0):
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset)


def test_a_time_that_has_not_come_yet(model):
    with pytest.raises(errors.LedgerError, match="Z has not come yet; choose a time past"):
        ledger.standings("m", moment(100))
