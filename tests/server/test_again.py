"""What is asked for twice, since an answer was lost, is done once, and says so."""

import json

import proxy
import pytest
import zoos

CHAMPION = {"name": "merged", "alias": "champion"}


def test_a_promotion_again(guarded, second):
    asked = CHAMPION | {"version": second, "expected": "1"}
    first = guarded.request("promote", asked).json
    assert first["sentence"] == f"models:/merged/{second} is champion now, in place of version 1"
    before = guarded.moves
    for more in ({}, {"expected": second}):
        again = guarded.request("promote", asked | more).json
        assert (again["result"], again["before"]) == ("promoted", second)
        assert again["sentence"] == f"models:/merged/{second} is champion already"
    lost = guarded.request("promote", asked | {"expected": "7"}).json
    assert (lost["result"], guarded.champion) == ("lost", second)
    assert guarded.moves == before


def test_a_rollback_again(guarded, second):
    assert guarded.request("promote", CHAMPION | {"version": second}).json["before"] == "1"
    asked = CHAMPION | {"expected": second}
    first = guarded.request("rollback", asked).json
    assert (first["after"], guarded.champion) == ("1", "1")
    before = guarded.moves
    for more in ({}, {"to": "1"}):
        again = guarded.request("rollback", asked | more).json
        assert again["sentence"] == (
            f"merged@champion is back at version 1, from version {second}, already"
        )
        assert (again["before"], again["after"], again["moved"]) == (second, "1", True)
    for more in ({"expected": "7"}, {"expected": None}, {"to": "7"}):
        other = guarded.request("rollback", asked | more).json
        assert (other["moved"], "and was expected at" in other["sentence"]) == (False, True)
    assert guarded.moves == before


def test_a_rollback_whose_answer_was_lost(guarded, second, run):
    run("promote", f"merged/{second}", "--alias", "champion")
    with proxy.running(guarded.uri) as front:
        zoos.use(front.uri)
        front.misbehave("lose", "/breadcrumbs/rollback", times=1)
        said = run("rollback", "merged", "--alias", "champion", code=1)
        assert f"`--expect-current {second}`" in said
        assert guarded.champion == "1"
        again = ("rollback", "merged", "--alias", "champion", "--expect-current", second)
        assert "is back at version 1" in run(*again)
        assert json.loads(run(*again, "--json"))["moved"] is True
        assert guarded.champion == "1"
        elsewhere = run(*again[:-1], "7", code=3)
        assert "not rolled back: merged@champion is at version 1" in elsewhere


@pytest.mark.parametrize("withdraw", [False, True])
def test_an_approval_and_a_recall_again(guarded, withdraw):
    """What was withdrawn already is refused, and says that there is nothing to withdraw."""
    for what in ("approve", "recall"):
        asked = {"name": "top", "version": "1", "user": "dora", "withdraw": withdraw}
        if what == "approve":
            asked |= {"comment": "good"}
        else:
            asked |= {"reason": "bad"}
        if withdraw:
            guarded.request(what, asked | {"withdraw": False})
        first, again = guarded.request(what, asked), guarded.request(what, asked)
        assert first.status == 200, first.text
        if withdraw:
            assert (again.status, "nothing to withdraw" in again.json["error"]) == (400, True)
        else:
            assert again.json["event"] == first.json["event"]
            guarded.request(what, asked | {"withdraw": True})
