"""What is in force: the same for all workers, until the server is started again."""

import contextlib
import os
import signal
from collections import Counter
from pathlib import Path

import apps
import pytest
from mlflow.environment_variables import _MLFLOW_SGI_NAME

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import events
from mlflow_breadcrumbs.promotion import policies
from mlflow_breadcrumbs.server import in_force, pinning


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A configuration that this process would start a server with; its folder."""
    for name in (_MLFLOW_SGI_NAME.name, in_force.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for variable, text in apps.configuration(tmp_path, apps.PINNED, "overrides: [ann]").items():
        monkeypatch.setenv(variable, text)
    yield tmp_path
    os.environ.pop(in_force.VARIABLE, None)


def test_workers_have_what_the_command_has_read(configured, monkeypatch):
    in_force.hand_over()
    (configured / "server.yaml").write_text("aliases: {'*@other': policy0.yaml}")
    monkeypatch.setenv(_MLFLOW_SGI_NAME.name, "uvicorn")
    in_force.hand_over()
    found = in_force.taken()
    assert [pin.pattern for pin in found.pins.pins] == list(apps.PINNED)
    assert [pin.rules for pin in found.pins.pins] == [
        policies.parse(text) for text in apps.PINNED.values()
    ]
    assert found.pins.overrides == ("ann",)
    assert found.since <= events.now()
    said = found.to_dict()
    assert (said["configuration_digest"], said["since"]) == (found.pins.digest, found.since)


def test_a_command_hands_over_what_its_own_file_says(configured, monkeypatch):
    in_force.hand_over()
    monkeypatch.setenv(pinning.VARIABLE, "")
    in_force.hand_over()
    assert in_force.VARIABLE not in os.environ
    assert in_force.taken() == in_force.InForce(pinning.Pins())
    assert in_force.taken().to_dict() == {
        "configuration_digest": None,
        "since": None,
        "restart_due": False,
    }


def test_a_restart_is_due_where_the_file_says_something_else(configured):
    in_force.hand_over()
    found = in_force.taken()
    file, policy = configured / "server.yaml", configured / "policy1.yaml"
    text, rules = file.read_text(), policy.read_text()
    for path, other, due in (
        (file, text + "\n# a comment\n", False),
        (file, text.replace("[ann]", "[ann, bob]"), True),
        (file, "aliases: [", True),
        (file, text, False),
        (policy, "approvals: 3\n", True),
        (policy, rules, False),
    ):
        path.write_text(other)
        assert found.to_dict()["restart_due"] is due, other
    file.unlink()
    assert found.to_dict()["restart_due"] is True


def test_what_is_too_large_to_be_handed_over_is_refused(configured, monkeypatch):
    monkeypatch.setattr(in_force, "LONGEST", 100)
    with pytest.raises(errors.GuardError, match="100 is the most"):
        in_force.hand_over()


def test_what_was_damaged_on_the_way_is_refused(configured, monkeypatch):
    monkeypatch.setenv(_MLFLOW_SGI_NAME.name, "uvicorn")
    monkeypatch.setenv(in_force.VARIABLE, "bm90aGluZw==")
    with pytest.raises(errors.GuardError, match="start the server anew"):
        in_force.taken()


def workers(folder):
    """The processes that answer for a server of several workers: children of one, without any."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "fd" / "1") == str(folder / "log"):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                parents[int(process.name)] = int(fields[1])
    last = set(parents) - set(parents.values())
    beside = Counter(parents[pid] for pid in last)
    return [pid for pid in last if beside[parents[pid]] > 1]


def test_a_worker_that_follows_another_judges_as_it_did(guarded):
    asked = "/breadcrumbs/guard.json?name=merged&alias=champion"
    first = guarded.ask(asked).json
    assert (first["policy"], first["restart_due"]) == ("average_accuracy: 0.0\n", False)
    file = guarded.folder / "server.yaml"
    before = file.read_text()
    file.write_text("aliases: {'*@other': policy1.yaml}\n")
    try:
        killed = workers(guarded.folder)
        assert len(killed) == 2
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        answers = [guarded.ask(asked).json for _ in range(8)]
        assert not set(killed) & set(workers(guarded.folder))
        assert answers == [first | {"restart_due": True}] * 8
        other = {"name": "merged", "alias": "other", "version": "1"}
        assert guarded.request("promote", other).status == 404
    finally:
        file.write_text(before)
    assert guarded.ask(asked).json == first
    log = (guarded.folder / "log").read_text()
    assert log.count(f"guarded by the configuration {first['configuration_digest']}") == 1
    assert "merged@approved by the policy sha256:" in log
