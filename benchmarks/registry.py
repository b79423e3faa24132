"""The main job at full size: import and merge through the registry, time and memory of each.

    python benchmarks/registry.py

Random weights stand in for trained ones (see `zoo.py`); the architectures are open_clip's own. Each
command runs in a process of its own against a SQLite store in `benchmarks/data/registry`, which is
made anew. Writes `benchmarks/results/registry.md`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import engine
import zoo

SIZES = {"ViT-B-32": 8, "ViT-B-16": 4, "ViT-L-14": 2}
"""Sources per architecture."""


def run(folder: Path, *arguments: str) -> tuple[dict[str, Any], float, dict[str, int]]:
    """One command's JSON, its wall time in seconds, and its peak memory in bytes."""
    command = [sys.executable, "-m", "mlflow_breadcrumbs", *arguments, "--json"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    peaks = {"anonymous": 0, "resident": 0}
    started = time.perf_counter()
    with (
        (folder / "log").open("w+") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=environment
        ) as process,
    ):
        while process.poll() is None:
            for kind, now in engine.memory(process.pid).items():
                peaks[kind] = max(peaks[kind], now)
            time.sleep(0.02)
        assert process.stdout is not None
        printed = process.stdout.read()
        log.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()}")
    return json.loads(printed), time.perf_counter() - started, peaks


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=engine.HERE / "data")
    parser.add_argument("--only", choices=list(SIZES), nargs="*", default=list(SIZES))
    given = parser.parse_args()
    folder = given.data.resolve() / "registry"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    database = f"sqlite:///{folder}/mlflow.db"
    subprocess.run(
        [sys.executable, "-m", "mlflow", "db", "upgrade", database], check=True, capture_output=True
    )
    lines = [
        "# The main job at full size",
        "",
        "Imports and merges of random weights with open_clip's own architectures, through a SQLite",
        "registry, each a command of its own; start-up (imports of MLflow, torch and open_clip)",
        "included. `engine` is the part of the merge that reads, computes and writes.",
        "",
        "| architecture | sources | import, each | merge | of it: engine | again (found) "
        "| peak anonymous | peak resident |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for architecture in given.only:
        count = SIZES[architecture]
        paths = zoo.make(given.data / architecture, architecture, count)
        imports, uris = [], []
        for number, path in enumerate(paths[: count + 1]):
            name = f"{architecture}-{number}"
            made, seconds, _ = run(
                folder, "import", str(path), "--architecture", architecture,
                "--registered-model", name,
            )  # fmt: skip
            imports.append(seconds)
            uris.append(made["uri"])
        listed = ["--base", uris[0], "--sources", ",".join(uris[1:])]
        listed += ["--registered-model", f"{architecture}-merged", "--method", "breadcrumbs"]
        merged, seconds, peaks = run(folder, "merge", *listed)
        again, found, _ = run(folder, "merge", *listed)
        forced, _, _ = run(folder, "merge", *listed, "--force")
        assert again["reused"]
        assert again["version"] == merged["version"]
        assert forced["weights_digest"] == merged["weights_digest"]
        inner = engine_seconds(folder, merged["run_id"])
        lines.append(
            f"| {architecture} | {count} | {sum(imports) / len(imports):.1f} s | {seconds:.1f} s "
            f"| {inner:.1f} s | {found:.1f} s | {peaks['anonymous'] / 1e9:.2f} GB "
            f"| {peaks['resident'] / 1e9:.2f} GB |"
        )
        print(lines[-1], flush=True)
    arguments = argparse.Namespace(mergekit=None)
    lines += [
        "",
        "A merge that was forced a second time had the same weights digest each time.",
        "",
    ]
    lines += [engine.machine(arguments), ""]
    engine.RESULTS.mkdir(exist_ok=True)
    (engine.RESULTS / "registry.md").write_text("\n".join(lines))
    shutil.rmtree(folder)


def engine_seconds(folder: Path, run_id: str) -> float:
    """The metric `merge_seconds` of a run."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return float(client.get_run(run_id).data.metrics["merge_seconds"])


if __name__ == "__main__":
    main()
