"""The pages of the server app on a large registry, and what its guard costs MLflow's own calls.

    python benchmarks/server.py

A registry of versions without files, merges of merges, is made in `benchmarks/data/server`: 200 and
then 2,000 versions. Each page is asked for in this process, without HTTP and without a browser; the
median of five. Then a headless Chromium opens it over HTTP (`--browser PATH`, the extra
`screenshots`; left out where there is none). MLflow's calls are asked for in this process, without
the guard and with it in turns, 300 times each; `--calls` does only this. Writes
`benchmarks/results/server.md` and `guard.md`.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import engine
import flask
import mlflow
import sqlalchemy
from mlflow import server
from mlflow.server import handlers
from werkzeug import serving

from mlflow_breadcrumbs.registry import tag_keys
from mlflow_breadcrumbs.server import app, guard, pinning, visibility
from mlflow_breadcrumbs.support import canonical

SIZES = (200, 2000)
"""Versions in the registry."""
OF_MODEL = 20
"""Versions of each registered model."""
TIMES = 5
PAINT = "first-contentful-paint"
SHOWN = """() => [
  performance.getEntriesByName('first-contentful-paint')[0].startTime,
  ...['begun', 'drawn'].map((name) => performance.getEntriesByName(name)[0]?.startTime || 0),
]"""
"""Milliseconds since the navigation began; 0 for what the page has not."""
PAGES = {
    "start": "/breadcrumbs/",
    "model": "/breadcrumbs/models/merged-1",
    "version": "/breadcrumbs/models/merged-1/versions/1",
    "aliases": "/breadcrumbs/models/merged-1/aliases",
    "lineage, of a leaf": "/breadcrumbs/models/merged-1/versions/1/lineage",
    "lineage, of the base": "/breadcrumbs/models/base/versions/1/lineage",
}

CALLS = {
    "set an alias that is not guarded": (
        "POST",
        "registered-models/alias",
        {"name": "merged-1", "alias": "candidate", "version": "1"},
    ),
    "set a guarded alias: refused with the guard": (
        "POST",
        "registered-models/alias",
        {"name": "merged-1", "alias": "champion", "version": "1"},
    ),
    "set a tag of ours on a version": (
        "POST",
        "model-versions/set-tag",
        {"name": "merged-1", "version": "2", "key": tag_keys.TASK, "value": "cars"},
    ),
    "set another tag": (
        "POST",
        "model-versions/set-tag",
        {"name": "merged-1", "version": "2", "key": "note", "value": "cars"},
    ),
    "read a registered model": ("GET", "registered-models/get?name=merged-1", None),
}
"""Of MLflow's API: method, path and JSON."""
CALLED = 300


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


def pages() -> flask.Flask:
    """The pages alone, in this process."""
    alone = flask.Flask("alone")
    alone.add_url_rule("/", "serve", lambda: "")
    app.add_pages(alone, visibility.everything)
    return alone


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


def drawn(alone: flask.Flask, browser: str) -> list[str]:
    """The rows of what a browser shows when: the first paint, and the versions of a graph."""
    from playwright import sync_api

    running = serving.make_server("127.0.0.1", 0, alone, threaded=True)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    rows = []
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for name, path in PAGES.items():
            found: list[list[float]] = []
            for _ in range(TIMES):
                page = chromium.new_page(bypass_csp=True)  # so that it can be asked when it is done
                page.goto(f"http://127.0.0.1:{running.server_port}{path}", wait_until="load")
                page.wait_for_function(f"performance.getEntriesByName('{PAINT}').length")
                if "lineage" in path:
                    page.wait_for_function("document.getElementById('graph').dataset.nodes")
                found.append(page.evaluate(SHOWN))
                page.close()
            medians = [statistics.median(times) for times in zip(*found, strict=True)]
            cells = [f"{ms / 1000:.2f} s" if ms else "–" for ms in medians]
            print(name, *cells, flush=True)
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
        chromium.close()
    running.shutdown()
    return rows


def call(client: Any, name: str) -> float:
    """The milliseconds of a call of MLflow's."""
    method, path, body = CALLS[name]
    started = time.perf_counter()
    answer = client.open(f"/api/2.0/mlflow/{path}", method=method, json=body)
    assert answer.status_code in (200, 403), answer.text
    return 1000 * (time.perf_counter() - started)


def guarded(folder: Path) -> list[str]:
    """The rows of what the guard costs: each call without it and with it in turns."""
    client = server.app.test_client()
    methods = vars(handlers._get_model_registry_store())
    plain = dict(methods)
    (folder / "policy.yaml").write_text("approvals: 1\n")
    (folder / "server.yaml").write_text("aliases: {'merged-*@champion': policy.yaml}\n")
    guard.stand(pinning.load(folder / "server.yaml"))
    checked = dict(methods)
    rows = []
    for name in CALLS:
        taken: dict[bool, list[float]] = {False: [], True: []}
        for number in range(2 * CALLED):
            standing = number % 2 == 1
            methods.clear()
            methods.update(checked if standing else plain)
            taken[standing].append(call(client, name))
        before, after = (statistics.median(taken[standing]) for standing in (False, True))
        pairs = zip(taken[True], taken[False], strict=True)
        more = statistics.median(one - other for one, other in pairs)
        print(name, f"{before:.2f} ms", f"{after:.2f} ms", f"{more:+.2f} ms", flush=True)
        cells = (f"{before:.2f} ms", f"{after:.2f} ms", f"{after / before:.2f}", f"{more:+.2f} ms")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def write(file: str, *lines: str) -> None:
    """A page of results, with what it was measured on."""
    engine.RESULTS.mkdir(exist_ok=True)
    text = "\n".join([*lines, "", engine.machine(argparse.Namespace(mergekit=None)), ""])
    (engine.RESULTS / file).write_text(text)


def measure_pages(browser: str | None) -> None:
    """Make the registry, ask for every page, write the tables."""
    alone = pages()
    client = alone.test_client()
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
    write(
        "server.md",
        "# The pages of the server app on a large registry",
        "",
        "A SQLite registry, every version a merge of the two before it, so that the lineage of the",
        "base and of a leaf has all of them. Asked for in one process, without HTTP; the median of",
        f"{TIMES}. `python benchmarks/server.py` repeats it.",
        "",
        "| page | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in found.items()),
        *(
            [
                "",
                f"In a headless Chromium, over HTTP, {SIZES[-1]:,} versions; from the start of the",
                "navigation, the median of as many. The versions nearest to the asked one are",
                "drawn first.",
                "",
                "| page | first paint | first versions drawn | all of them |",
                "|---|---|---|---|",
                *drawn(alone, browser),
            ]
            if browser
            else []
        ),
    )


def main() -> None:
    """Ask for the pages, then for MLflow's calls, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=engine.HERE / "data")
    parser.add_argument("--calls", action="store_true", help="only MLflow's calls")
    parser.add_argument("--browser", default=shutil.which("chromium"), help="a Chromium")
    given = parser.parse_args()
    folder = given.data.resolve() / "server"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    database = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", database]
    subprocess.run(command, check=True, capture_output=True)
    os.environ[server.BACKEND_STORE_URI_ENV_VAR] = database
    mlflow.set_tracking_uri(database)
    if given.calls:
        grow(0, SIZES[0])
    else:
        measure_pages(given.browser)
    write(
        "guard.md",
        "# What the guard of the server app costs MLflow's own calls",
        "",
        "A SQLite registry, a pattern that the model fits. Asked for in one process, without HTTP,",
        f"without the guard and with it in turns, {CALLED} times each: the medians, their ratio,",
        "and the median of the differences. `python benchmarks/server.py --calls` repeats it.",
        "",
        "| call | without the guard | with it | ratio | difference |",
        "|---|---|---|---|---|",
        *guarded(folder),
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
