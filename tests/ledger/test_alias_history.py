"""Events read as moves, and the answer to "which version was it at that time"."""

import datetime

import pytest

from mlflow_breadcrumbs.ledger import alias_history, events


class History:
    """Events of one model, each a minute after the one before unless told otherwise."""

    def __init__(self):
        self.events = []

    def add(self, phase="done", *, kind="alias", time=None, subject=None, intent=None, **details):
        number = len(self.events) + 1
        self.events.append(
            events.Event(
                actor="ann@here",
                kind=kind,
                phase=phase,
                name="m",
                subject=subject,
                intent=intent,
                details=details,
                sequence=number,
                previous="",
                time=time or at(number),
            )
        )
        return number

    def move(self, before, after, alias="champion", **details):
        """A move of ours: the intent, and a minute later the outcome."""
        intent = self.add("intent", alias=alias, after=after)
        return self.add(intent=intent, alias=alias, before=before, after=after, **details)

    def observe(self, before, after, alias="champion", **details):
        found = {"alias": alias, "before": before, "after": after, "how": "sync"} | details
        found.setdefault("noticed", at(len(self.events) + 1))
        return self.add(kind="alias_observed", **found)


def at(minute, second=0):
    return f"2026-03-03T14:{minute:02d}:{second:02d}.000+00:00"


@pytest.fixture
def history():
    return History()


def stood(history, time, seen=None, alias="champion"):
    found = alias_history.standing(alias_history.read(history.events), alias, time, seen)
    return found.version, found.certain, found.possible


def test_a_move_of_ours_has_its_cause_its_evidence_and_its_interval(history):
    history.move(None, "1", because="promote", decision="run", policy_digest="sha256:p")
    (move,) = alias_history.read(history.events)
    assert (move.before, move.after, move.cause, move.event) == (None, "1", "promote", 2)
    assert (move.earliest, move.latest, move.actor) == (at(1), at(2), "ann@here")
    assert (move.decision, move.policy_digest, move.is_direct) == ("run", "sha256:p", False)


def test_older_events_name_the_target_by_their_subject_alone(history):
    history.add("intent", alias="champion", subject="models:/m/3")
    history.add(intent=1, alias="champion", before="2", subject="models:/m/3")
    (move,) = alias_history.read(history.events)
    assert (move.before, move.after, move.cause) == ("2", "3", "set")


def test_a_settled_move_takes_from_its_intent_what_it_does_not_say(history):
    history.move(None, "1")
    history.add("intent", alias="champion", subject="models:/m/2")
    history.add(intent=3, subject="models:/m/2", settled=True)
    assert [(move.before, move.after) for move in alias_history.read(history.events)] == [
        (None, "1"),
        ("1", "2"),
    ]


def test_what_failed_or_was_abandoned_or_changed_nothing_is_no_move(history):
    history.add("intent", alias="champion", after="1")
    history.add("failed", intent=1, alias="champion", after="1")
    history.add("abandoned", alias="champion", after="1")
    history.move(None, "1")
    history.move("1", "1")
    history.add(kind="merge", subject="models:/m/2")
    assert [move.event for move in alias_history.read(history.events)] == [5]


def test_only_one_alias_where_it_is_asked_for(history):
    history.move(None, "1")
    history.move(None, "2", alias="candidate")
    assert [move.alias for move in alias_history.read(history.events)] == ["champion", "candidate"]
    assert [move.after for move in alias_history.read(history.events, "candidate")] == ["2"]


def test_where_it_was_between_two_moves_is_certain(history):
    history.move(None, "1", decision="run", policy_digest="sha256:p")  # between 14:01 and 14:02
    history.move("1", "2")  # between 14:03 and 14:04
    assert stood(history, at(2, 30)) == ("1", True, ("1",))
    assert stood(history, at(2)) == ("1", True, ("1",))
    found = alias_history.standing(alias_history.read(history.events), "champion", at(2, 30), None)
    assert (found.event, found.decision, found.policy_digest) == (2, "run", "sha256:p")
    assert found.because == "set to 1 by ann@here (set), 2026-03-03T14:02:00Z, event 2"


def test_while_a_move_was_under_way_both_are_possible(history):
    history.move(None, "1")
    history.move("1", "2")
    assert stood(history, at(3, 30)) == ("1", False, ("1", "2"))


def test_in_the_interval_of_a_direct_change_both_are_possible(history):
    history.move(None, "1")
    history.observe("1", "7", since=at(10), noticed=at(20))
    assert stood(history, at(9)) == ("1", True, ("1",))
    assert stood(history, at(15)) == ("1", False, ("1", "7"))
    assert stood(history, at(20), seen=at(30)) == ("7", True, ("7",))
    found = alias_history.standing(alias_history.read(history.events), "champion", at(15), None)
    assert found.because == (
        "set to 7 directly in MLflow, noticed by sync, "
        "between 2026-03-03T14:10:00Z and 2026-03-03T14:20:00Z, event 3"
    )


def test_a_webhook_tells_the_moment(history):
    history.observe("1", "7", since=at(5), changed=at(10, 7), how="webhook", noticed=at(11))
    (move,) = alias_history.read(history.events)
    assert (move.earliest, move.latest, move.is_direct) == (at(10, 7), at(10, 7), True)
    assert move.actor is None
    assert move.noticed_by == "ann@here"
    assert stood(history, at(10, 6)) == ("1", False, ("1",))
    assert stood(history, at(10, 7), seen=at(12)) == ("7", True, ("7",))


def test_after_the_last_look_the_answer_is_as_far_as_is_known(history):
    history.move(None, "1")
    assert stood(history, at(30), seen=at(20)) == ("1", False, ("1",))
    assert stood(history, at(20), seen=at(20)) == ("1", True, ("1",))
    found = alias_history.standing(alias_history.read(history.events), "champion", at(30), at(20))
    assert found.because.endswith("last seen so at 2026-03-03T14:20:00Z, `ledger sync` looks again")


def test_of_the_time_before_the_first_look_nothing_is_known(history):
    history.observe(None, "4", first=True, since=None, noticed=at(20))
    (move,) = alias_history.read(history.events)
    assert (move.cause, move.is_direct) == ("first seen", False)
    assert stood(history, at(10)) == (None, False, ())
    assert stood(history, at(25), seen=at(30)) == ("4", True, ("4",))
    assert stood(history, at(25), alias="other") == (None, False, ())


def test_of_the_time_before_the_first_move_it_says_so(history):
    history.move(None, "1")
    assert stood(history, at(0)) == (None, False, (None,))


def test_an_alias_that_was_removed_is_not_set(history):
    history.move(None, "1")
    history.move("1", None, because="user")
    history.move(None, "2")
    assert stood(history, at(4, 30)) == (None, True, (None,))
    assert alias_history.described(alias_history.read(history.events)[1]) == (
        "removed by ann@here (user), 2026-03-03T14:04:00Z, event 4"
    )


def test_there_and_back_of_a_delivery_that_came_late(history):
    history.move(None, "1")
    history.observe("1", "7", changed=at(10), since=None, how="webhook", noticed=at(30))
    history.observe("7", "1", since=at(10), until=at(20), how="webhook", noticed=at(30))
    assert stood(history, at(9)) == ("1", True, ("1",))
    assert stood(history, at(15)) == ("7", False, ("7", "1"))
    assert stood(history, at(20), seen=at(30)) == ("1", True, ("1",))


def test_a_time_without_a_zone_is_utc():
    naive = datetime.datetime(2026, 3, 3, 14)
    zone = datetime.timezone(datetime.timedelta(hours=1))
    assert alias_history.utc(naive) == at(0)
    assert alias_history.utc(datetime.datetime(2026, 3, 3, 15, tzinfo=zone)) == at(0)
