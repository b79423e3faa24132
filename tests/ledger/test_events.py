"""The chain: what it notices by itself, and what only a head kept elsewhere does."""

import datetime
import json
import shutil

import pytest
import sqlalchemy as sql
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import chain, events, schema, stores
from mlflow_breadcrumbs.support import canonical

EVENTS = schema.table(schema.EventRow)


def add(opened, count=1, **changes):
    for number in range(count):
        fields = {"actor": "ann@here", "kind": "merge", "phase": "done", "name": f"m{number}"}
        with opened.writing() as connection:
            head = events.append(connection, events.Draft(**(fields | changes)))
    return head


def judged(opened, kept=None):
    with opened.reading() as connection:
        return chain.verify(connection, kept)


def change(opened, statement, **values):
    with opened.writing() as connection:
        assert connection.execute(sql.text(statement), values).rowcount > 0


@pytest.fixture
def opened(ledger_uri):
    with stores.opened() as ledger:
        add(ledger, 6)
        yield ledger


def body_of(opened, sequence):
    with opened.reading() as connection:
        return connection.scalar(sql.select(EVENTS.c.body).where(EVENTS.c.sequence == sequence))


def rewrite(opened, start, **changes):
    """Write the chain anew from an event on, as someone would who knows how it is made."""
    with opened.writing() as connection:
        ledger = connection.scalar(sql.select(schema.LedgerRow.id))
        rows = connection.execute(sql.select(EVENTS).order_by(EVENTS.c.sequence)).all()
        connection.execute(sql.delete(EVENTS))
        previous = events.genesis(ledger)
        for row in rows:
            content = json.loads(row.body) | {"previous": previous}
            content |= changes if row.sequence == start else {}
            body = canonical.dumps(content)
            values = {**row._mapping, "previous": previous, "body": body.decode()}
            previous = canonical.sha256(body)
            connection.execute(sql.insert(EVENTS).values(**values | {"hash": previous}))


def test_a_chain_that_nobody_touched_holds(opened):
    verdict = judged(opened)
    assert (verdict.holds, verdict.head.sequence, verdict.clock) == (True, 6, ())
    with opened.reading() as connection:
        first, *_ = events.of_name(connection, "m0")
        assert first.previous == events.genesis(verdict.head.ledger)


def test_one_byte_of_an_event_is_noticed(opened):
    body = body_of(opened, 3).replace("ann@here", "bob@here")
    change(opened, "UPDATE breadcrumbs_events SET body = :body WHERE sequence = 3", body=body)
    assert judged(opened).problem.startswith("event 3 was changed: its hash is sha256:")


def test_an_event_whose_hash_was_made_to_fit_is_noticed_by_the_next(opened):
    body = body_of(opened, 3).replace("ann@here", "bob@here")
    change(
        opened,
        "UPDATE breadcrumbs_events SET body = :body, hash = :hash WHERE sequence = 3",
        body=body,
        hash=canonical.sha256(body.encode()),
    )
    assert judged(opened).problem.startswith(
        "event 3 was changed, with a new hash: event 4 follows an event 3 with the hash sha256:"
    )


def test_a_column_beside_the_content_is_noticed(opened):
    change(opened, "UPDATE breadcrumbs_events SET name = 'other' WHERE sequence = 5")
    assert judged(opened).problem == "event 5 was changed: its columns differ from its content"


def test_content_that_cannot_be_read_is_noticed(opened):
    change(opened, "UPDATE breadcrumbs_events SET body = '{' WHERE sequence = 2")
    assert judged(opened).problem == "event 2 was changed: its content can't be read"


@pytest.mark.parametrize("sequence", [1, 4])
def test_a_deleted_event_is_noticed(opened, sequence):
    change(opened, "DELETE FROM breadcrumbs_events WHERE sequence = :sequence", sequence=sequence)
    assert judged(opened).problem == (
        f"event {sequence} is missing: event {sequence + 1} comes after event {sequence - 1}"
    )


def test_a_deleted_event_is_noticed_where_the_others_were_renumbered(opened):
    change(opened, "DELETE FROM breadcrumbs_events WHERE sequence = 4")
    for sequence in (5, 6):
        change(
            opened,
            "UPDATE breadcrumbs_events SET sequence = :to WHERE sequence = :at",
            to=sequence - 1,
            at=sequence,
        )
    assert judged(opened).problem == (
        "event 4 was moved: what is stored there says that it is event 5"
    )


def test_reordered_events_are_noticed(opened):
    for at, to in ((2, 99), (3, 2), (99, 3)):
        change(
            opened,
            "UPDATE breadcrumbs_events SET sequence = :to WHERE sequence = :at",
            to=to,
            at=at,
        )
    assert judged(opened).problem == (
        "event 2 was moved: what is stored there says that it is event 3"
    )


def test_a_tail_that_was_cut_is_noticed_by_a_head_kept_elsewhere(opened):
    kept = str(judged(opened).head)
    change(opened, "DELETE FROM breadcrumbs_events WHERE sequence > 4")
    assert judged(opened).holds
    problem = judged(opened, {"the notary": kept}).problem
    assert problem.startswith(
        "event 5 is missing: the tail was cut off. the notary has the head 6:"
    )


def test_a_chain_that_was_rewritten_is_noticed_by_a_head_kept_elsewhere(opened):
    kept = str(judged(opened).head)
    rewrite(opened, 2, actor="bob@here")
    assert judged(opened).holds
    problem = judged(opened, {"the notary": kept}).problem
    assert problem.startswith("event 6 is not the one that it was: the chain was rewritten, or")


def test_two_histories_that_forked_are_told_apart_by_their_heads(tmp_path):
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    with stores.opened(f"sqlite:///{one}") as opened:
        add(opened, 3)
    shutil.copy(one, two)
    with stores.opened(f"sqlite:///{one}") as first, stores.opened(f"sqlite:///{two}") as second:
        add(first, 1, actor="ann@here")
        head = add(second, 1, actor="bob@here")
        assert judged(first).holds
        assert judged(second, {"second": head.tag()}).holds
        assert "event 4 is not the one that it was" in judged(first, {"second": head.tag()}).problem


def test_a_clock_set_back_is_shown_and_changes_nothing_else(opened, monkeypatch):
    class Past(datetime.datetime):
        @classmethod
        def now(cls, zone=None):
            return cls(2001, 1, 1, tzinfo=zone)

    monkeypatch.setattr(events.datetime, "datetime", Past)
    add(opened)
    monkeypatch.undo()
    verdict = judged(opened)
    assert (verdict.holds, verdict.clock, verdict.head.sequence) == (True, (7,), 7)


def test_heads_of_other_ledgers_say_nothing(opened):
    head = events.ChainHead(9, "sha256:" + "0" * 64, "00000000-0000-4000-8000-000000000000")
    verdict = judged(opened, {"models:/m/1": head.tag()})
    assert (verdict.holds, verdict.heads, verdict.foreign) == (True, 0, 1)
    damaged = judged(opened, {"models:/m/1": "9:sha256:zz"})
    assert damaged.problem == "models:/m/1 carries '9:sha256:zz', which is no head of a ledger"


@pytest.mark.parametrize(
    "text", ["", "7", "7:abc", "7:sha256:" + "0" * 63, "-1:sha256:" + "0" * 64]
)
def test_what_is_no_head_is_said_so(text):
    with pytest.raises(errors.LedgerError, match=r"is no head of a ledger; write SEQUENCE:sha256"):
        events.ChainHead.parse(text)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), byte=st.integers(32, 126), at=st.integers(1, 3))
def test_no_single_character_can_be_changed(tmp_path_factory, place, byte, at):
    folder = tmp_path_factory.mktemp("chain")
    with stores.opened(f"sqlite:///{folder}/ledger.db") as opened:
        add(opened, 3)
        body = body_of(opened, at)
        place %= len(body)
        changed = body[:place] + chr(byte) + body[place + 1 :]
        if changed == body:
            return
        change(
            opened, "UPDATE breadcrumbs_events SET body = :b WHERE sequence = :s", b=changed, s=at
        )
        assert not judged(opened).holds
