"""Runs promotions and rollbacks: stopped somewhere, or hundreds at once.

Runs in a fork of `warm`; prints a JSON line per point or per round. Each command runs in a fork of
its own, as in `faults`, and so does each look at what it left.
"""

import functools
import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import faults
import mlflow

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.ledger import events, stores
from mlflow_breadcrumbs.promotion import promote, rollback  # noqa: F401
from mlflow_breadcrumbs.registry import aliases

BOUNDARIES = {
    faults.trackings.SqlAlchemyStore: (
        "create_experiment",
        "create_run",
        "update_run_info",
        "log_batch",
        "set_tag",
        "log_inputs",
    ),
    faults.registries.SqlAlchemyStore: (
        "set_registered_model_alias",
        "set_model_version_tag",
        "delete_model_version_tag",
    ),
    faults.artifacts.LocalArtifactRepository: ("log_artifact",),
    events: ("append",),
}
"""The calls that change something: MLflow's, and every event of the ledger."""

NAME, ALIAS = "merged", "champion"


def look(folder, uri, wanted):
    """What is in MLflow and in the ledger, read by a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.environ["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_REGISTRY_URI"] = uri
            os.chdir(folder)
            os.write(writing, json.dumps(wanted()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    return json.loads(found)


def state():
    """The alias, its moves, and whether anything looks unfinished."""
    with stores.opened() as opened, opened.reading() as connection:
        waiting = len(events.open_intents(connection))
        told = events.of_name(connection, NAME)
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.`breadcrumbs.kind` = 'promotion'",
        output_format="list",
    )
    verdict = ledger.verify()
    return {
        "at": aliases.version_at(NAME, ALIAS),
        "moves": [[m.before, m.after, m.cause] for m in ledger.alias_changes(NAME, ALIAS)],
        "decisions": [
            [event.kind, event.phase, event.details.get("verdict")]
            for event in told
            if event.kind in ("promotion", "rollback") and event.phase != events.INTENT
        ],
        "waiting": waiting,
        "holds": [verdict.holds, verdict.problem],
        "runs": sorted(run.info.status for run in runs),
    }


def stop_everywhere(settings):
    """One line per point: the command is stopped there, then run again."""
    for kind, first, step in settings["signals"]:
        stop_by(kind, first, step, settings)


def stop_by(kind, first, step, settings):
    """The same by one signal, at every so many points."""
    for point in itertools.count(first, step):
        folder = Path(settings["folder"], kind, str(point))
        (folder / "tmp").mkdir(parents=True)
        for file in settings["files"]:
            shutil.copy(file, folder)
        uri = f"sqlite:///{folder}/mlflow.db"
        stop = functools.partial(faults.stop_at, point, getattr(signal, kind), BOUNDARIES)
        stopped, where = faults.wait(faults.start(settings["arguments"], folder, uri, stop))
        again, _ = faults.wait(faults.start(settings["arguments"], folder, uri))
        seen = {"signal": kind, "point": point, "where": where}
        seen |= {"stopped": stopped, "again": again}
        seen["log"] = (folder / "log").read_text()
        print(json.dumps(seen | look(folder, uri, state)), flush=True)
        if not where:
            return


def race(settings):
    """One line per round: many commands at once, held back until all are there.

    `CHAMPION` in a command is the version that the round before left.
    """
    uri, champion = settings["uri"], "none"
    for number, commands in enumerate(settings["rounds"]):
        place = Path(settings["folder"], str(number))
        place.mkdir()
        go = place / "go"

        def wait_for_all(go=go):
            while not go.exists():
                time.sleep(0.005)

        started, folders = [], []
        for index, arguments in enumerate(commands):
            folder = place / str(index)
            (folder / "tmp").mkdir(parents=True)
            folders.append(folder)
            arguments = [champion if word == "CHAMPION" else word for word in arguments]
            started.append(faults.start(arguments, folder, uri, wait_for_all))
        begun = time.monotonic()
        go.touch()
        codes = [faults.wait(each)[0] for each in started]
        seconds = time.monotonic() - begun
        logs = [(folder / "log").read_text() for folder in folders]
        found = {"codes": codes, "logs": logs, "seconds": seconds}
        left = look(place, uri, state)
        champion = left["at"]
        print(json.dumps(found | left), flush=True)


def main(settings):
    """Do what the settings are for."""
    (race if "rounds" in settings else stop_everywhere)(settings)
