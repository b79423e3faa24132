"""What the registry's own server tells of aliases: one event each, in whatever order they come."""

import datetime
import itertools
import uuid

import mlflow
import pytest
import registered

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.ledger import (
    alias_glances,
    alias_history,
    alias_told,
    alias_watch,
    events,
    stores,
    turns,
    witnessed,
)


@pytest.fixture
def either(store, ledger_uri):
    """A model with three versions, with a ledger in each kind of database that knows it."""
    for _ in range(3):
        registered.version("m")
    ledger.look()
    return mlflow.MlflowClient()


def ago(seconds):
    now = datetime.datetime.now(datetime.UTC)
    return alias_history.utc(now - datetime.timedelta(seconds=seconds))


def told(before, after, seconds=5.0, account=None, **more):
    identifier = f"{alias_watch.SERVERS}{uuid.uuid4()}"
    return alias_told.Told(
        identifier, "m", "champion", before, after, ago(seconds), account, **more
    )


def history():
    return [(move.before, move.after, move.how) for move in ledger.alias_changes("m")]


def test_who_did_it_is_who_the_server_knew(either):
    assert alias_told.tell([told(None, "1", account="ann"), told("1", None)]) == []
    first, second = ledger.alias_changes("m")
    assert (first.actor.partition("@")[0], first.cause, first.how) == ("ann", "direct", "server")
    assert (second.actor, second.cause) == (None, "direct")
    event = ledger.history("m")[-2]
    assert event.details[events.VOUCHED] is True
    assert first.earliest == first.latest == event.details["changed"]


def test_a_move_waits_for_the_one_before_it(either, monkeypatch):
    """Which another worker has yet to tell; later ones of the alias wait with it."""
    monkeypatch.setattr(alias_told, "PATIENCE", datetime.timedelta(hours=1))
    late, later = told("1", "2", seconds=0), told("2", "3", seconds=0)
    alias_told.tell([told(None, "1")])
    alias_told.tell([told("1", "3", seconds=4)])
    assert alias_told.tell([late, later]) == [late, later]
    assert alias_told.tell([told("3", "1", seconds=3)]) == []
    assert alias_told.tell([late, later]) == []
    expected = [None, "1", "3", "1", "2", "3"]
    assert history() == [
        (before, after, "server") for before, after in itertools.pairwise(expected)
    ]


def test_what_nobody_told_shows_in_between(either):
    alias_told.tell([told(None, "1", seconds=60), told("2", "3", account="ann")])
    assert history() == [(None, "1", "server"), ("1", "2", "server"), ("2", "3", "server")]
    _, unseen, known = ledger.alias_changes("m")
    assert (unseen.actor, known.actor.partition("@")[0]) == (None, "ann")


def test_what_comes_too_late_is_there_and_back(either):
    alias_told.tell([told(None, "2", seconds=2)])
    alias_told.tell([told(None, "1", seconds=9)])
    moves = [(before, after) for before, after, _ in history()]
    assert moves == [(None, "2"), (None, "1"), ("1", "2")]


@pytest.mark.parametrize("first", ["server", "webhook"])
def test_a_webhook_tells_the_same_once(either, first):
    """Of moves there and back as well, whichever of the two is faster."""
    steps = [(None, "1", 9), ("1", "2", 8), ("2", "1", 7), ("1", "2", 6)]
    either.set_registered_model_alias("m", "champion", "2")

    def by_server():
        alias_told.tell([told(before, after, seconds) for before, after, seconds in steps])

    def by_webhook():
        for _, after, seconds in steps:
            identifier = f"id-{uuid.uuid4()}"
            ledger.take(ledger.Delivery(identifier, "m", "champion", after, ago(seconds)))

    for tell in (by_server, by_webhook) if first == "server" else (by_webhook, by_server):
        tell()
        assert [after for _, after, _ in history()] == ["1", "2", "1", "2"]
    assert ledger.look(["m"]) == []


def test_our_own_moves_are_not_told_again(either):
    ledger.set_alias("m", "champion", "1")
    assert alias_told.tell([told(None, "1", seconds=0)]) == []
    with ledger.recording("alias", "m", details={"alias": "champion", "after": "2"}):
        assert alias_told.tell([told("1", "2", seconds=0)]) == []
    assert [how for _, _, how in history()] == [None, None]


def test_a_client_that_has_the_turn_says_itself_what_it_did(store, tmp_path, monkeypatch):
    """With a ledger of its own, whose letter is taken up; one that never comes is told anyhow."""
    for _ in range(3):
        registered.version("m")
    monkeypatch.setenv(stores.VARIABLE, f"sqlite:///{tmp_path}/server.db")
    ledger.look()
    own = f"sqlite:///{tmp_path}/client.db"
    monkeypatch.setattr(alias_told, "TURN", datetime.timedelta(hours=1))
    with stores.serving(), stores.using(own), turns.taken("m", "champion"):
        move = told(None, "1", seconds=0, turn=True)
        with stores.using(f"sqlite:///{tmp_path}/server.db"):
            assert alias_told.tell([move]) == [move]
    with stores.serving():
        with stores.using(own):
            ledger.set_alias("m", "champion", "1")
        assert alias_told.tell([move]) == []
        (found,) = ledger.alias_changes("m")
        assert (found.cause, found.how) == ("merge", None)
        assert alias_told.tell([told("1", "2", turn=True)]) == []  # the turn was given back
        assert ledger.alias_changes("m")[-1].how == "server"


def test_one_glance_for_all_workers(either):
    assert alias_glances.claim(60)
    assert not alias_glances.claim(60)
    assert alias_glances.claim(0)


def test_a_glance_sees_what_differs(either):
    alias_told.tell([told(None, "1")])
    assert alias_glances.differing({"m": {"champion": "1"}}) == set()
    assert alias_glances.differing({"m": {"champion": "2"}}) == {"m"}
    assert alias_glances.differing({}) == {"m"}
    assert alias_glances.differing({"m": {"champion": "1"}, "n": {"x": "1"}}) == {"n"}


def registration(number, account, digest, copy_of=None):
    return witnessed.Registration("m", number, account, digest, copy_of)


def test_who_registered_what(either):
    witnessed.keep(
        [
            registration("1", "ann", "sha256:1"),
            registration("2", "bob", "sha256:1", "models:/m/1"),  # only copied it
            registration("3", "cleo", "sha256:2", "models:/m/1"),  # with another digest
            registration("3", "dora", None),
        ]
    )
    history = ledger.history("m")

    def who(number, digest):
        found = witnessed.registrants(history, f"models:/m/{number}", digest)
        return [actor.partition("@")[0] for actor in found]

    assert who(1, "sha256:1") == ["ann"]
    assert who(2, "sha256:1") == ["ann"]
    assert who(3, "sha256:2") == ["cleo", "dora"]
    assert who(4, None) == []


def test_a_copy_of_what_nobody_saw_registered_counts(either):
    witnessed.keep([registration("2", "bob", "sha256:1", "models:/m/1")])
    found = witnessed.registrants(ledger.history("m"), "models:/m/2", "sha256:1")
    assert [actor.partition("@")[0] for actor in found] == ["bob"]
