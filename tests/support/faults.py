"""Runs the real command many times: stopped somewhere, or several at once.

Runs in a fork of `warm`, which has imported everything; prints a JSON line per result. Nothing is
computed or connected here, and each command runs in a fork of its own.
"""

import functools
import itertools
import json
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from pathlib import Path

import mlflow
import mlflow.pyfunc
import mlflow.store.artifact.local_artifact_repo as artifacts
import mlflow.store.model_registry.sqlalchemy_store as registries
import mlflow.store.tracking.sqlalchemy_store as trackings

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.pipeline import flow  # noqa: F401 - all that a job imports
from mlflow_breadcrumbs.sources import importing  # noqa: F401

BOUNDARIES = {
    trackings.SqlAlchemyStore: (
        "create_run",
        "update_run_info",
        "log_batch",
        "set_tag",
        "log_inputs",
        "log_outputs",
        "create_logged_model",
        "finalize_logged_model",
        "set_logged_model_tags",
        "delete_logged_model",
    ),
    registries.SqlAlchemyStore: (
        "create_registered_model",
        "create_model_version",
        "set_registered_model_alias",
        "delete_model_version",
    ),
    artifacts.LocalArtifactRepository: ("log_artifact", "log_artifacts"),
    os: ("replace", "link"),
}
"""The calls that change something, of the stores and of the disk."""


def stop_at(point, number, boundaries=BOUNDARIES):
    """Send a signal to this process right before one of these calls; so after the one before."""
    counter = itertools.count()

    def watched(function, name):
        @functools.wraps(function)
        def call(*arguments, **keywords):
            if next(counter) == point:
                os.write(3, name.encode())
                os.kill(os.getpid(), number)
            return function(*arguments, **keywords)

        return call

    for owner, names in boundaries.items():
        for name in names:
            setattr(owner, name, watched(getattr(owner, name), name))


def meet(folder, number):
    """Hold this process back before it registers, until as many others have come as far."""
    register = mlflow.register_model

    def together(*arguments, **keywords):
        (folder / f"here-{os.getpid()}").touch()
        latest = time.monotonic() + 120  # one of the others failed before
        while len(list(folder.glob("here-*"))) < number and time.monotonic() < latest:
            time.sleep(0.01)
        return register(*arguments, **keywords)

    mlflow.register_model = together


def start(arguments, folder, uri, prepare=None):
    """Run the command line in a fork; its process, and a pipe with what `prepare` tells."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.dup2(writing, 3)
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(folder)
            tempfile.tempdir = str(folder / "tmp")
            # What a shell starts in the background ignores it, and so do all its children.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_REGISTRY_URI"] = uri
            if prepare:
                prepare()
            cli.main(arguments)
            code = 0
        except SystemExit as error:
            code = error.code or 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


def wait(started):
    """The exit code of a command (negative: the signal), and what it told."""
    child, reading = started
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return os.waitstatus_to_exitcode(status), pipe.read()


def state(folder):
    """What is in the store, read without MLflow."""
    connection = sqlite3.connect(folder / "mlflow.db")

    def rows(query):
        return [list(row) for row in connection.execute(query)]

    found = {
        "versions": rows(
            "SELECT v.version, v.source, r.status, "
            "(SELECT value FROM model_version_tags t WHERE t.name = v.name "
            "AND t.version = v.version AND key = 'breadcrumbs.weights_digest') "
            "FROM model_versions v JOIN runs r ON r.run_uuid = v.run_id "
            "WHERE v.name = 'merged' AND current_stage != 'Deleted_Internal'"
        ),
        "aliases": rows("SELECT alias, version FROM registered_model_aliases"),
        "models": rows(
            "SELECT 'models:/' || m.model_id, m.status, "
            "(SELECT tag_value FROM logged_model_tags t WHERE t.model_id = m.model_id "
            "AND tag_key = 'mlflow.modelVersions') "
            "FROM logged_models m JOIN logged_model_tags k ON k.model_id = m.model_id "
            "WHERE k.tag_key = 'breadcrumbs.kind' AND k.tag_value = 'merge' "
            "AND m.lifecycle_stage = 'active'"
        ),
        "running": rows("SELECT run_uuid FROM runs WHERE status = 'RUNNING'"),
        "folders": [path.name for path in (folder / "tmp").glob("mlflow_breadcrumbs-*")],
    }
    connection.close()
    return found


def stop_everywhere(settings):
    """One line per point: the command is stopped there, then run again."""
    number = getattr(signal, settings["signal"])
    for point in itertools.count(settings["first"], settings["step"]):
        folder = Path(settings["folder"], str(point))
        (folder / "tmp").mkdir(parents=True)
        shutil.copy(settings["database"], folder / "mlflow.db")
        uri = f"sqlite:///{folder}/mlflow.db"
        stop = functools.partial(stop_at, point, number)
        stopped, where = wait(start(settings["arguments"], folder, uri, stop))
        again, _ = wait(start(settings["arguments"], folder, uri))
        seen = {"point": point, "where": where, "stopped": stopped, "again": again}
        seen["log"] = (folder / "log").read_text()
        print(json.dumps(seen | state(folder)), flush=True)
        if not where:
            return


def run_together(settings):
    """One line: several commands at once, held back until all are about to register."""
    folder = Path(settings["folder"])
    (folder / "tmp").mkdir(parents=True)
    commands = settings["together"]
    prepare = functools.partial(meet, folder, len(commands)) if settings["meet"] else None
    started = [start(each, folder, settings["uri"], prepare) for each in commands]
    codes = [wait(each)[0] for each in started]
    print(json.dumps({"codes": codes, "log": (folder / "log").read_text()}))


def main(settings):
    """Do what the settings are for."""
    (run_together if "together" in settings else stop_everywhere)(settings)
