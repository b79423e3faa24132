"""The pages of the server app on a large registry: statements to the database and time of each.

    python benchmarks/server.py

A registry of versions without files, merges of merges, is made in `benchmarks/data/server`: 200 and
then 2,000 versions. Each page is asked for in this process, without HTTP and without a browser; the
median of five. Writes `benchmarks/results/server.md`.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import engine
import flask
import mlflow
import sqlalchemy
from mlflow import server

from mlflow_breadcrumbs.registry import tag_keys
from mlflow_breadcrumbs.server import app, visibility
from mlflow_breadcrumbs.support import canonical

SIZES = (200, 2000)
"""Versions in the registry."""
OF_MODEL = 20
"""Versions of each registered model."""
TIMES = 5
PAGES = {
    "start": "/breadcrumbs/",
    "model": "/breadcrumbs/models/merged-1",
    "version": "/breadcrumbs/models/merged-1/versions/1",
    "aliases": "/breadcrumbs/models/merged-1/aliases",
    "lineage, of a leaf": "/breadcrumbs/models/merged-1/versions/1/lineage",
    "lineage, of the base": "/breadcrumbs/models/base/versions/1/lineage",
}


def grow(start: int, end: int) -> None:
    """Register the versions of these numbers, each a merge of the two before it."""
    client = mlflow.MlflowClient()
    for number in range(start, end):
        name, at = f"merged-{number // OF_MODEL}", number % OF_MODEL + 1
        if number == 0:
            client.create_registered_model("base")
            client.create_model_version("base", "nowhere", tags={tag_keys.KIND: "import"})
        if at == 1:
            client.create_registered_model(name)
        sources = [uri(each) for each in (number - 1, number - 2) if each >= 0]
        tags = {
            tag_keys.KIND: "merge",
            tag_keys.BASE: "models:/base/1",
            tag_keys.SOURCES: canonical.dumps(sources or ["models:/base/1"]).decode(),
            tag_keys.WEIGHTS_DIGEST: f"sha256:{number:064x}",
        }
        client.create_model_version(name, "nowhere", tags=tags)
        if at == OF_MODEL:
            client.set_registered_model_alias(name, "champion", at)


def uri(number: int) -> str:
    """Of a version by its number."""
    return f"models:/merged-{number // OF_MODEL}/{number % OF_MODEL + 1}"


def pages() -> Any:
    """The pages alone, in this process."""
    alone = flask.Flask("alone")
    alone.add_url_rule("/", "serve", lambda: "")
    app.add_pages(alone, visibility.everything)
    return alone.test_client()


def measure(client: Any, path: str) -> tuple[int, float, int]:
    """Statements of one answer, the median of its seconds, its bytes."""
    asked: list[str] = []
    size, seconds = len(client.get(path).data), []
    listener = (sqlalchemy.Engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    sqlalchemy.event.listen(*listener)
    client.get(path)
    sqlalchemy.event.remove(*listener)
    for _ in range(TIMES):
        started = time.perf_counter()
        assert client.get(path).status_code == 200
        seconds.append(time.perf_counter() - started)
    return len(asked), statistics.median(seconds), size


def main() -> None:
    """Make the registry, ask for every page, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=engine.HERE / "data")
    folder = parser.parse_args().data.resolve() / "server"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    database = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", database]
    subprocess.run(command, check=True, capture_output=True)
    os.environ[server.BACKEND_STORE_URI_ENV_VAR] = database
    mlflow.set_tracking_uri(database)
    client = pages()
    found: dict[str, list[str]] = {name: [] for name in PAGES}
    before = 0
    for size in SIZES:
        grow(before, size)
        before = size
        for name, path in PAGES.items():
            asked, seconds, nbytes = measure(client, path)
            found[name] += [str(asked), f"{seconds:.2f} s", f"{nbytes / 1000:.0f} kB"]
            print(size, name, *found[name][-3:], flush=True)
    columns = [
        f"{size:,} versions: {each}" for size in SIZES for each in ("statements", "time", "HTML")
    ]
    lines = [
        "# The pages of the server app on a large registry",
        "",
        "A SQLite registry, every version a merge of the two before it, so that the lineage of the",
        "base and of a leaf has all of them. Asked for in one process, without HTTP; the median of",
        f"{TIMES}. `python benchmarks/server.py` repeats it.",
        "",
        "| page | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in found.items()),
        "",
        engine.machine(argparse.Namespace(mergekit=None)),
        "",
    ]
    engine.RESULTS.mkdir(exist_ok=True)
    (engine.RESULTS / "server.md").write_text("\n".join(lines))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
