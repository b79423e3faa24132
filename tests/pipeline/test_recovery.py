"""A merge that is stopped at any point, and the same call again: one version, and nothing else."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow
import pytest

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.ledger import events, stores
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import registering, runs, versions
from mlflow_breadcrumbs.support import processes, scratch


def stopped_everywhere(run_script, zoo, folder, signal, first, step):
    """What `faults` saw: one record per point at which the command was stopped."""
    listed = [part for source in zoo.sources for part in ("--source", source)]
    arguments = ["merge", "--base", zoo.base, *listed, "--registered-model", "merged"]
    arguments += ["--alias", "candidate", "--backend", "reference", "--device", "cpu"]
    settings = {
        "arguments": arguments,
        "database": str(zoo.folder / "mlflow.db"),
        "folder": str(folder),
        "signal": signal,
        "first": first,
        "step": step,
    }
    return run_script("faults", settings)


def check(found):
    """Exactly one version, whole, with its alias; nothing that looks unfinished."""
    assert found["again"] == 0, found
    ((version, source, status, _),) = found["versions"]
    assert (version, status) == (1, "FINISHED"), found
    assert found["aliases"] == [["candidate", 1]], found
    ((model, _, linked),) = found["models"]
    assert model == source, found
    assert [entry["name"] for entry in json.loads(linked)] == ["merged"], found
    assert found["running"] == [], found
    assert found["folders"] == [], found


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "first", "step"), [("SIGKILL", 0, 1), ("SIGINT", 1, 4)])
def test_stopped_between_any_two_steps(run_script, filled, tmp_path, signal, first, step):
    seen = stopped_everywhere(run_script, filled, tmp_path, signal, first, step)
    for found in seen:
        check(found)
    *stopped, whole = seen
    assert whole["stopped"] == 0
    assert all(found["stopped"] == (-9 if signal == "SIGKILL" else 1) for found in stopped)
    assert len({found["versions"][0][3] for found in seen}) == 1
    if step == 1:
        assert {found["where"] for found in stopped} >= {
            "create_run",
            "create_logged_model",
            "finalize_logged_model",
            "create_registered_model",
            "create_model_version",
            "set_logged_model_tags",
            "set_registered_model_alias",
            "update_run_info",
        }


# The pieces, in this process.


class Stopped(KeyboardInterrupt):
    """What Ctrl-C raises."""


@pytest.fixture
def left(zoo, monkeypatch):
    """A merge that was interrupted after its model was logged, and before it was registered."""

    def stop(*arguments, **keywords):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(registering, "register", stop)
        with pytest.raises(Stopped):
            flow.merge(request(zoo))
    (model,) = models()
    return model


def request(zoo, **changes):
    settings = {"base": zoo.base, "sources": zoo.sources[:2], "registered_model": "merged"}
    settings |= {"recipe": recipe.MergeRecipe.from_method("task_arithmetic", sources=2)}
    settings |= {"device": "cpu", "backend": "reference", "alias": "candidate"}
    return flow.MergeRequest(**(settings | changes))


def models():
    return mlflow.MlflowClient().search_logged_models(
        [runs.experiment_id()], filter_string="tags.`breadcrumbs.kind` = 'merge'"
    )


def status(run_id):
    return mlflow.get_run(run_id).info.status


def test_a_logged_model_is_taken_up(zoo, left):
    assert status(left.source_run_id) == "KILLED"
    result = flow.merge(request(zoo))
    assert (result.version.model_id, result.version.run_id) == (left.model_id, left.source_run_id)
    assert result.reused
    assert status(left.source_run_id) == "FINISHED"
    assert versions.resolve("models:/merged@candidate").version == "1"


def test_a_model_that_is_taken_up_is_in_the_history(zoo, left):
    version = flow.merge(request(zoo)).version
    assert [(event.kind, event.phase) for event in ledger.history("merged")] == [
        ("merge", "intent"),
        ("merge", "failed"),
        ("merge", "done"),
        ("alias", "intent"),
        ("alias", "done"),
    ]
    made = ledger.history("merged")[2]
    assert (made.subject, made.run_id) == (version.uri, left.source_run_id)
    assert made.details == {
        "weights_digest": version.weights_digest,
        "taken_up": True,
        "begun_by": made.actor,
    }
    flow.merge(request(zoo))
    assert len([event for event in ledger.history("merged") if event.kind == "merge"]) == 3
    assert ledger.verify().holds


def test_a_version_that_a_killed_job_registered_has_one_event(zoo, left):
    # Its intent is open, as if the process had been killed right after it registered the version.
    uri = "models:/merged/1"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    details = {"host": socket.gethostname(), "pid": gone.pid}
    fields = {"actor": "ann@here", "kind": "merge", "phase": events.INTENT, "name": "merged"}
    draft = events.Draft(**fields, run_id=left.source_run_id, details=details)
    with stores.opened() as opened, opened.writing() as connection:
        intent = events.append(connection, draft)
    mlflow.register_model(f"models:/{left.model_id}", "merged", tags=left.tags)
    assert flow.merge(request(zoo)).version.uri == uri
    made = next(event for event in ledger.history("merged") if event.phase == "done")
    assert (made.kind, made.subject, made.intent) == ("merge", uri, intent.sequence)
    assert made.details["settled"]
    assert ledger.is_made(uri)


def test_a_call_that_asks_for_something_else_makes_its_own(zoo, left):
    result = flow.merge(request(zoo, registered_model="other"))
    assert result.version.model_id != left.model_id
    assert flow.merge(request(zoo)).version.model_id == left.model_id


def test_a_logged_model_that_is_damaged_is_deleted(zoo, left):
    weights = Path(left.artifact_location.removeprefix("file://"), "open_clip_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = flow.merge(request(zoo))
    assert not result.reused
    (only,) = models()
    assert only.model_id == result.version.model_id != left.model_id


def test_a_job_that_may_be_running_is_left_alone(zoo, left):
    client = mlflow.MlflowClient()
    for process in (processes.own(), "another-machine/1/2/3"):
        client.update_run(left.source_run_id, status="RUNNING")
        client.set_tag(left.source_run_id, runs.TAG_PROCESS, process)
        result = flow.merge(request(zoo, force=True))
        assert result.version.model_id != left.model_id
        assert status(left.source_run_id) == "RUNNING"
    assert len(models()) == 3


def test_the_run_of_a_killed_process_is_ended_by_the_next_job_of_any_kind(zoo):
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = processes._started(gone.pid)
    gone.communicate()
    with mlflow.start_run() as run:
        mlflow.set_tag(runs.TAG_PROCESS, f"{processes.machine()}/{gone.pid}/{started}")
    mlflow.MlflowClient().update_run(run.info.run_id, status="RUNNING")
    with runs.run("evaluate something", "evaluate"):
        assert status(run.info.run_id) == "KILLED"


def test_a_process_is_gone_when_it_has_ended_and_not_before():
    assert not processes.is_gone(processes.own())
    assert not processes.is_gone("another-machine/1/2/3")
    assert not processes.is_gone("")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{processes.machine()}/{child.pid}/{processes._started(child.pid)}"
    assert not processes.is_gone(name)
    assert processes.is_gone(f"{name}1")  # the number is another process's now
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.is_gone(name)  # a zombie works no more
    child.wait()
    assert processes.is_gone(name)


def test_a_folder_that_a_killed_process_left_is_removed_and_a_live_one_is_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"{scratch.PREFIX}dead").mkdir()
    (tmp_path / "another").mkdir()
    with scratch.folder() as one, scratch.folder() as two:
        (one / "file").touch()
        assert {*tmp_path.iterdir()} == {one, two, tmp_path / "another"}
    assert {*tmp_path.iterdir()} == {tmp_path / "another"}
