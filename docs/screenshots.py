"""Pictures of MLflow's pages, and of ours beside them, after `make demo`: `make screenshots`.

A real server on the demo's store and Debian's Chromium, driven by Playwright (extra `screenshots`).
Neither of them reaches anything but this machine.
"""

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
from PIL import Image
from playwright import sync_api

HERE = Path(__file__).parent
SIZE = sync_api.ViewportSize(width=1200, height=900)
"""Of the browser's window, pixels."""
LARGEST = 150_000
"""Bytes of a picture."""
COLOURS = 64
SETTLING = 3_000
"""Milliseconds until a page that has its text is drawn."""
SIGNS = {
    "mlflow-run": "merged without training",
    "mlflow-version": "merged without training",
    "mlflow-model": "Merges of fine-tuned versions",
    "server-version": "Accuracy per task",
    "server-lineage": "The same as a table",
}
"""What a page has when it is there."""
PREFERENCES = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false")
"""
"""Closes what MLflow opens over its pages at the first visit."""


def main(folder: str = "demo", target: str = str(HERE / "images")) -> None:
    """Write a picture of each of `SIGNS` into a folder.

    Args:
        folder: what the quickstart made.
        target: where the pictures go.
    """
    database = Path(folder, "mlflow.db").resolve()
    if not database.is_file():
        raise SystemExit(f"there is no {database}; run `make demo` first")
    browser = shutil.which("chromium")
    if browser is None:
        raise SystemExit("there is no chromium; install Debian's package of that name")
    with _serving(database) as uri, sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = started.new_page(viewport=SIZE)
        page.route(lambda url: not url.startswith(uri), lambda route: route.abort())
        page.add_init_script(PREFERENCES)
        page.goto(uri)
        page.get_by_text("Model training").first.click()
        for name, place in _places(uri).items():
            page.goto(f"{uri}/{place}")
            page.get_by_text(SIGNS[name]).first.wait_for()
            page.wait_for_timeout(SETTLING)
            file = Path(target, f"{name}.png")
            drawn = Image.open(io.BytesIO(page.screenshot()))
            drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
            if file.stat().st_size > LARGEST:
                raise SystemExit(f"{file} has {file.stat().st_size} bytes, more than {LARGEST}")
        started.close()


def _places(uri: str) -> dict[str, str]:
    """The pages by the name of their picture."""
    client = mlflow.MlflowClient(uri)
    version = client.get_model_version_by_alias("demo-merged", "candidate")
    experiment = client.get_run(str(version.run_id)).info.experiment_id
    model = f"#/models/{urllib.parse.quote(version.name)}"
    ours = f"breadcrumbs/models/{urllib.parse.quote(version.name)}"
    return {
        "mlflow-run": f"#/experiments/{experiment}/runs/{version.run_id}",
        "mlflow-version": f"{model}/versions/{version.version}",
        "mlflow-model": model,
        "server-version": f"{ours}/versions/{version.version}",
        "server-lineage": f"{ours}/versions/{version.version}/lineage",
    }


@contextlib.contextmanager
def _serving(database: Path) -> Iterator[str]:
    """A tracking server with our pages on a SQLite store, that tells nobody; its URI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--app-name", "breadcrumbs"]
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    process = subprocess.Popen(
        command, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{uri}/health", timeout=5)
                break
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}")
            time.sleep(0.5)
        yield uri
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main(*sys.argv[1:])
