"""An alias is moved by one process at a time, from where it was expected; the others are told."""

import dataclasses
import datetime
import multiprocessing
import os
import signal
import time

import mlflow
import pytest
import registered

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import alias_moves, events, journal, settling, stores
from mlflow_breadcrumbs.registry import aliases

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def three(store, ledger_uri):
    """A model with three versions, without files, and an empty ledger of either kind."""
    for _ in range(3):
        registered.version("m")
    return "m"


def at(alias="champion"):
    return aliases.version_at("m", alias)


def told():
    return [(event.phase, event.details) for event in ledger.history("m")]


def directly(version, alias="champion"):
    """What a click in MLflow does."""
    mlflow.MlflowClient().set_registered_model_alias("m", alias, version)


def test_a_move_says_from_where_to_where_and_why(three):
    details = {"decision": "r", "policy_digest": "sha256:1"}
    assert ledger.move(three, "champion", "1", because="promote", expected=None) is None
    assert (
        ledger.move(three, "champion", "2", because="promote", expected="1", details=details) == "1"
    )
    assert at() == "2"
    (_, _), (_, first), (_, intended), (_, second) = told()
    assert first == {"alias": "champion", "before": None, "after": "1", "because": "promote"}
    moved = {"alias": "champion", "before": "1", "after": "2", "because": "promote", **details}
    assert second == moved
    assert intended.items() >= moved.items()
    assert ledger.verify(in_mlflow=False).holds


def test_an_alias_can_be_removed(three):
    ledger.set_alias(three, "champion", "1")
    ledger.move(three, "champion", None, because="recheck", expected="1")
    assert at() is None
    last = ledger.history(three)[-1]
    assert (last.subject, last.details["before"], last.details["after"]) == (
        "models:/m/1",
        "1",
        None,
    )
    ledger.move(three, "champion", None, because="user")  # it is not there, and stays so
    assert [move.after for move in ledger.alias_changes(three)] == ["1", None]


def test_a_lost_race_names_the_winner_and_its_event(three):
    ledger.move(three, "champion", "1", because="promote", expected=None)
    with pytest.raises(errors.RaceError) as lost:
        ledger.move(three, "champion", "2", because="promote", expected=None)
    winner = ledger.history(three)[-1]
    assert str(lost.value) == (
        "m@champion is at version 1, and was expected at no version: "
        f"{winner.actor} moved it at {winner.time} (event 2)"
    )
    assert at() == "1"
    assert len(told()) == 2  # nothing was intended


def test_an_alias_that_was_changed_in_mlflow_itself_is_told_as_that(three):
    ledger.set_alias(three, "champion", "1")
    directly("3")
    with pytest.raises(errors.RaceError, match=r"at version 3.*it was changed in MLflow itself"):
        ledger.move(three, "champion", "2", because="promote", expected="1")
    assert at() == "3"


def test_a_change_in_mlflow_while_it_is_moved_is_no_success(three, monkeypatch):
    def overtaken(name, alias, version, set_alias=aliases.point):
        set_alias(name, alias, version)
        directly("3")

    monkeypatch.setattr(aliases, "point", overtaken)
    with pytest.raises(errors.RaceError, match="was moved to version 2, and is at version 3 now"):
        ledger.move(three, "champion", "2", because="promote", expected=None)
    phase, details = told()[-1]
    assert (phase, details["found"]) == ("failed", "3")
    assert ledger.alias_changes(three) == []


def test_other_aliases_and_other_models_are_not_in_the_way(three):
    registered.version("other")
    with stores.opened() as opened, opened.writing() as connection:
        events.append(connection, intent("champion"))
    ledger.set_alias(three, "candidate", "2")
    ledger.set_alias("other", "champion", "1")
    assert at("candidate") == "2"


def intent(alias="champion", **details):
    """What a process on another machine says before it moves the alias."""
    said = {"alias": alias, "before": None, "after": "1", "host": "there", "pid": 1} | details
    return events.Draft(
        actor="ann@there",
        kind="alias",
        phase=events.INTENT,
        name="m",
        subject="models:/m/1",
        details=said,
    )


def test_one_that_another_machine_is_moving_is_waited_for_and_then_told(three, monkeypatch):
    monkeypatch.setattr(alias_moves, "PATIENCE", 0.3)
    with stores.opened() as opened, opened.writing() as connection:
        events.append(connection, intent())
    with pytest.raises(errors.PromotionError, match=r"is being moved by ann@there.*\(event 1\)"):
        ledger.move(three, "champion", "2", because="promote")
    assert at() is None


@pytest.mark.parametrize(
    ("stands_at", "phase", "found"),
    [(None, "abandoned", None), ("1", "done", "-"), ("3", "abandoned", "3")],
)
def test_one_that_was_given_up_is_settled_by_where_the_alias_stands(
    three, monkeypatch, stands_at, phase, found
):
    with stores.opened() as opened, opened.writing() as connection:
        events.append(connection, intent(because="promote", decision="r"))
    if stands_at:
        directly(stands_at)
    monkeypatch.setattr(settling, "ALIAS_TIMEOUT", datetime.timedelta())
    assert settling.settle() == 1
    outcome = ledger.history(three)[-1]
    assert (outcome.phase, outcome.intent) == (phase, 1)
    assert outcome.details["decision"] == "r"
    assert outcome.details["settled"] is True
    assert outcome.details.get("found", "-") == found
    assert "pid" not in outcome.details


def killed(before):
    """Move the alias in a process that is killed there."""
    if before:
        aliases.point = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    else:
        journal._finish = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    ledger.move("m", "champion", "1", because="promote", expected=None)


@pytest.mark.parametrize(("before", "phase"), [(True, "abandoned"), (False, "done")])
def test_killed_before_and_after_it_moved(three, before, phase):
    process = FORK.Process(target=killed, args=(before,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    expected = None if before else "1"
    assert at() == expected
    ledger.move(three, "champion", "2", because="promote", expected=expected)
    assert [said for said, _ in told()] == ["intent", phase, "intent", "done"]
    assert [move.after for move in ledger.alias_changes(three)] == (["2"] if before else ["1", "2"])
    assert ledger.verify(in_mlflow=False).holds


def held(ready):
    def slowly(*arguments):
        ready.set()
        time.sleep(60)

    aliases.point = slowly
    ledger.move("m", "champion", "1", because="promote")


def test_a_live_process_is_waited_for_until_it_is_gone(three):
    ready = FORK.Event()
    process = FORK.Process(target=held, args=(ready,))
    process.start()
    assert ready.wait(30)
    waiting = FORK.Process(target=ledger.set_alias, args=(three, "champion", "2"))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    assert at() is None
    process.kill()
    waiting.join(30)
    assert (waiting.exitcode, at()) == (0, "2")
    assert [said for said, _ in told()] == ["intent", "abandoned", "intent", "done"]


def test_an_interruption_leaves_the_outcome_to_be_found_out(three, monkeypatch):
    def interrupted(name, alias, version, set_alias=aliases.point):
        set_alias(name, alias, version)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(aliases, "point", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ledger.move(three, "champion", "1", because="promote")
    assert [said for said, _ in told()] == ["intent"]
    monkeypatch.setattr(settling, "ALIAS_TIMEOUT", datetime.timedelta())
    assert settling.settle() == 1
    assert [move.after for move in ledger.alias_changes(three)] == ["1"]


def test_a_server_that_is_gone_is_asked_again_later(three, monkeypatch):
    with stores.opened() as opened, opened.writing() as connection:
        events.append(connection, intent())
    monkeypatch.setattr(settling, "ALIAS_TIMEOUT", datetime.timedelta())
    with monkeypatch.context() as patch:

        def gone(name, alias):
            raise errors.UnreachableError("no answer")

        patch.setattr(aliases, "version_at", gone)
        assert settling.settle() == 0
    assert settling.settle() == 1


def test_older_events_that_have_no_after_are_read(three):
    old = dataclasses.replace(intent(), details={"alias": "champion", "host": "there", "pid": 1})
    done = {"actor": "ann@there", "kind": "alias", "phase": "done", "name": "m"}
    with stores.opened() as opened, opened.writing() as connection:
        events.append(connection, old)
        said = {"alias": "champion", "before": "3"}
        events.append(connection, events.Draft(**done, subject="models:/m/1", details=said))
        events.append(connection, old)
        said = {"weights_digest": "sha256:1", "settled": True}
        settled = events.Draft(**done, subject="models:/m/2", intent=3, details=said)
        events.append(connection, settled)
    first, second = ledger.alias_changes(three, "champion")
    assert (first.before, first.after, first.cause) == ("3", "1", "set")
    assert (second.alias, second.after) == ("champion", "2")
    assert ledger.alias_changes(three, "other") == []


def promoter(number, results):
    try:
        ledger.move("m", "champion", str(number), because="promote", expected=None)
        results.put((number, "won"))
    except errors.RaceError as error:
        results.put((number, str(error)))


def test_of_several_at_once_one_wins_and_the_others_are_told(three):
    results = FORK.Queue()
    processes = [FORK.Process(target=promoter, args=(n, results)) for n in (1, 2, 3, 1, 2, 3)]
    for process in processes:
        process.start()
    told_them = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    (winner,) = [number for number, what in told_them if what == "won"]
    assert at() == str(winner)
    assert all(f"at version {winner}, and was" in what for _, what in told_them if what != "won")
    (move,) = ledger.alias_changes(three)
    assert move.after == str(winner)
    assert ledger.verify(in_mlflow=False).holds
