"""Promotions that are stopped at every step, and many at once: one alias, one history."""

import os
import uuid

import mlflow
import postgres
import pytest
import zoos

from mlflow_breadcrumbs.promotion import policies, promote

RULES = "average_accuracy: 0"

pytestmark = pytest.mark.slow


def again(count):
    """More versions of `merged`, with the same files; their numbers."""
    client = mlflow.MlflowClient()
    first = client.get_model_version("merged", "1")
    return [
        str(
            client.create_model_version(
                "merged", first.source, first.run_id, tags=first.tags
            ).version
        )
        for _ in range(count)
    ]


def promoted(*numbers):
    for number in numbers:
        request = promote.PromotionRequest(
            f"models:/merged/{number}", "champion", policies.parse(RULES)
        )
        assert promote.promote(request).result == "promoted"


def command(number, rules, *more):
    arguments = ["promote", "merged", "--version", number, "--alias", "champion"]
    return [*arguments, "--policy", str(rules), *more]


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


def stopped_everywhere(run_script, family, tmp_path, arguments, signals):
    """One record per point, and by each signal one of a command that was not stopped."""
    files = [str(family.folder / name) for name in ("mlflow.db", zoos.LEDGER)]
    folder = str(tmp_path / "points")
    return run_script(
        "promoters",
        {"arguments": arguments, "files": files, "folder": folder, "signals": signals},
    )


def check_whole(found):
    """Nothing looks unfinished."""
    assert (found["waiting"], found["holds"]) == (0, [True, None]), found
    assert "RUNNING" not in found["runs"], found
    assert "Traceback" not in found["log"]


def test_a_promotion_that_is_stopped_anywhere(run_script, family, tmp_path, rules):
    (two,) = again(1)
    promoted("1")
    signals = [("SIGKILL", 0, 1), ("SIGINT", 1, 5)]
    seen = stopped_everywhere(run_script, family, tmp_path, command(two, rules), signals)
    for found in seen:
        check_whole(found)
        assert (found["again"], found["at"]) == (0, two), found
        assert found["moves"] == [[None, "1", "promote"], ["1", two, "promote"]], found
        # The first promotion, perhaps the one that was stopped, the one again.
        assert found["decisions"][-1] == ["promotion", "done", "promoted"]
        expected = 0 if not found["where"] else -9 if found["signal"] == "SIGKILL" else 1
        assert found["stopped"] == expected, found
    killed = [found for found in seen if found["signal"] == "SIGKILL" and found["where"]]
    places = [found["where"] for found in killed]
    assert set(places) == {
        "append",
        "create_run",
        "log_artifact",
        "log_batch",
        "log_inputs",
        "set_registered_model_alias",
        "set_model_version_tag",
        "set_tag",
        "update_run_info",
    }
    # The one that was stopped says what became of it: promoted, once the alias was moved.
    moved = places.index("set_registered_model_alias")
    for point, found in enumerate(killed):
        if len(found["decisions"]) == 3:
            assert (found["decisions"][1][2] == "promoted") == (point > moved), found


def test_a_rollback_that_is_stopped_anywhere_goes_back_once(run_script, family, tmp_path):
    two, three = again(2)
    promoted("1", two, three)
    arguments = ["rollback", "merged", "--alias", "champion"]
    seen = stopped_everywhere(run_script, family, tmp_path, arguments, [("SIGKILL", 0, 1)])
    for found in seen:
        check_whole(found)
        assert found["again"] == 0, found
        backwards = [move for move in found["moves"] if move[2] == "rollback"]
        # Once; the last record is of a command that was not stopped, and then ran again.
        once = [[three, two, "rollback"]]
        if found["where"] not in ("", "delete_model_version_tag", "set_model_version_tag"):
            assert backwards == once, found
        assert backwards[:1] == once, found


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_and_ledger(request, tmp_path, empty_database, monkeypatch):
    """MLflow and the ledger in one kind of database; both are empty."""
    monkeypatch.chdir(tmp_path)
    previous = mlflow.get_tracking_uri()
    if request.param == "sqlite":
        (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
        # MLflow's own connections wait five seconds for a lock, unless told otherwise.
        tracking, events = f"sqlite:///{tmp_path}/mlflow.db?timeout=120", None
    else:
        server = request.getfixturevalue("postgres_server")
        short = uuid.uuid4().hex[:12]
        tracking = postgres.schema(server, f"mlflow_{short}")
        events = postgres.schema(server, f"events_{short}")
        monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", events)
    zoos.use(tracking)
    mlflow.set_experiment("race")
    yield tracking
    zoos.use(previous)


EACH = int(os.environ.get("PROMOTERS", "8"))
"""Promoters at once; PROMOTERS=200 takes minutes and proves the same."""
ROUNDS = 3 if EACH < 50 else 1


def test_many_promoters_at_once_and_one_wins(run_script, registry_and_ledger, tmp_path, rules):
    zoos.merge_family(zoos.fill(tmp_path, registry_and_ledger))
    numbers = iter(again(ROUNDS * EACH))
    rounds = [[next(numbers) for _ in range(EACH)] for _ in range(ROUNDS)]
    commands = [
        [command(version, rules, "--expect-current", "CHAMPION") for version in versions]
        for versions in rounds
    ]
    (tmp_path / "rounds").mkdir()
    folder = str(tmp_path / "rounds")
    seen = run_script(
        "promoters", {"uri": registry_and_ledger, "folder": folder, "rounds": commands}
    )
    winners = []
    for versions, found in zip(rounds, seen, strict=True):
        assert sorted(found["codes"]) == [0] + [3] * (EACH - 1), found["logs"]
        winners.append(versions[found["codes"].index(0)])
        assert found["at"] == winners[-1]
        assert [move[1] for move in found["moves"]] == winners
        assert (found["waiting"], found["holds"]) == (0, [True, None])
        for code, log in zip(found["codes"], found["logs"], strict=True):
            assert "Traceback" not in log
            told = f"merged@champion is at version {winners[-1]}, and was expected at"
            assert (told in log) == (code == 3), log
    verdicts = [verdict for _, _, verdict in seen[-1]["decisions"]]
    assert verdicts.count("promoted") == ROUNDS
    assert verdicts.count("lost") == ROUNDS * (EACH - 1)
