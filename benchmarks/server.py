"""The pages of the server app on a large registry, and what its guard costs MLflow's own calls.

    python benchmarks/server.py

A registry of versions without files, merges of merges, is made in `benchmarks/data/server`: 200 and
then 2,000 versions. Each page is asked for in this process, without HTTP and without a browser; the
median of five. Then a headless Chromium opens it over HTTP (`--browser PATH`, the extra
`screenshots`; left out where there is none). MLflow's calls are asked for in this process, without
the guard and with it in turns, 300 times each, and so without and with noticing; `--calls` does
only this. Writes `benchmarks/results/server.md` and `guard.md`.
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

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.ledger import alias_glances, alias_told, events, stores
from mlflow_breadcrumbs.registry import tag_keys
from mlflow_breadcrumbs.server import app, guard, noticing, pinning, visibility, witnessing
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
        {"name": "merged-1", "version": "3", "key": tag_keys.TASK, "value": "cars"},
    ),
    "set another tag": (
        "POST",
        "model-versions/set-tag",
        {"name": "merged-1", "version": "3", "key": "note", "value": "cars"},
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


def call(client: Any, name: str, version: str) -> float:
    """The milliseconds of a call of MLflow's; an alias is set to a version."""
    method, path, body = CALLS[name]
    if body is not None and "alias" in body:
        body = body | {"version": version}
    started = time.perf_counter()
    answer = client.open(f"/api/2.0/mlflow/{path}", method=method, json=body)
    assert answer.status_code in (200, 403), answer.text
    return 1000 * (time.perf_counter() - started)


def compared(plain: dict[str, Any], more: dict[str, Any]) -> list[str]:
    """The rows of what is added to the store's methods costs: each call without and with, in turns.

    Args:
        plain: The store's attributes as they were.
        more: With what is measured.
    """
    client, methods = server.app.test_client(), vars(handlers._get_model_registry_store())
    rows = []
    for name in CALLS:
        taken: dict[bool, list[float]] = {False: [], True: []}
        for number in range(2 * CALLED):
            standing = number % 2 == 1
            methods.clear()
            methods.update(more if standing else plain)
            taken[standing].append(call(client, name, "1" if standing else "2"))
        before, after = (statistics.median(taken[standing]) for standing in (False, True))
        pairs = zip(taken[True], taken[False], strict=True)
        added = statistics.median(one - other for one, other in pairs)
        print(name, f"{before:.2f} ms", f"{after:.2f} ms", f"{added:+.2f} ms", flush=True)
        cells = (f"{before:.2f} ms", f"{after:.2f} ms", f"{after / before:.2f}", f"{added:+.2f} ms")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def costs(folder: Path) -> tuple[list[str], list[str]]:
    """The rows of the guard, and those of noticing alone."""
    store = handlers._get_model_registry_store()
    methods = vars(store)
    plain = dict(methods)
    (folder / "policy.yaml").write_text("approvals: 1\n")
    (folder / "server.yaml").write_text("aliases: {'merged-*@champion': policy.yaml}\n")
    pins = pinning.load(folder / "server.yaml")
    guard.stand(pins)
    checked = dict(methods)
    methods.clear()
    methods.update(plain)
    told: list[Any] = []
    noticing.Noticing(store, lambda: None, told.append).stand()
    witnessing.Witnessing(store, pins, lambda: None, told.append).stand()
    noticed = dict(methods)
    rows = compared(plain, checked), compared(plain, noticed)
    assert len(told) > CALLED / 2
    return rows


def beside(folder: Path) -> list[str]:
    """The rows of what a worker does in threads of its own."""
    os.environ[stores.VARIABLE] = f"sqlite:///{folder}/ledger.db"
    store, begun = handlers._get_model_registry_store(), events.now()
    with stores.serving():
        ledger.look()
        seconds: dict[str, list[float]] = {"one move is written": [], "a glance": []}
        for number in range(TIMES * 4):
            at = [None, "1", "2"][number % 3], ["1", "2", None][number % 3]
            told = alias_told.Told(f"server/{number}", "merged-1", "x", *at, begun, None)
            started = time.perf_counter()
            alias_told.tell([told])
            seconds["one move is written"].append(time.perf_counter() - started)
        for _ in range(TIMES * 4):
            started = time.perf_counter()
            alias_glances.differing(noticing.aliases(store))
            seconds["a glance"].append(time.perf_counter() - started)
    return [
        f"| {what} | {1000 * statistics.median(each):.1f} ms |" for what, each in seconds.items()
    ]


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
        grow(0, SIZES[-1])
    else:
        measure_pages(given.browser)
    of_guard, of_noticing = costs(folder)
    header = ["| call | without | with it | ratio | difference |", "|---|---|---|---|---|"]
    write(
        "guard.md",
        "# What the server app costs MLflow's own calls",
        "",
        f"A SQLite registry of {SIZES[-1]:,} versions. Asked for in one process, without HTTP,",
        f"without and with it in turns, {CALLED} times each: the medians, their ratio, and the",
        "median of the differences. `python benchmarks/server.py --calls` repeats it.",
        "",
        "The guard, with a pattern that the model fits:",
        "",
        *header,
        *of_guard,
        "",
        "Noticing moves of aliases, each of which goes from one version to another; nothing is",
        "guarded:",
        "",
        *header,
        *of_noticing,
        "",
        "What a worker does beside that, in threads of its own; a ledger in SQLite. A glance is",
        "made once a minute by one worker:",
        "",
        "| what | time |",
        "|---|---|",
        *beside(folder),
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
