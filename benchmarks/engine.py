"""How fast a merge is: ours beside the floor, the paper's way and mergekit, all in one run.

    python benchmarks/engine.py --mergekit PATH/TO/mergekit-pytorch

Makes random checkpoints in `benchmarks/data` (42 GB for everything; `--only` makes less), runs
every contender in a process of its own, one after the other, several times over, and writes
`benchmarks/results/engine.md` and `.json`; what `--only` leaves out stays there as it was. Memory
is what the kernel counts for the process and its children, read 50 times a second: anonymous
memory, and all resident memory, which includes pages of files. Nothing else should be running.

Engines are held against engines, without what their processes import, and whole commands against
whole commands: that one starts in half a second and merges for four, or the other way round, is
not the same thing.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zoo

HERE = Path(__file__).parent
RESULTS = HERE / "results"
JSON = RESULTS / "engine.json"
PARTS = {
    "contest": "ViT-B-32, 8 sources, density 0.14, gamma 0.01",
    "sources": "More sources",
    "sizes": "Larger models",
}
SOURCES = (1, 2, 4, 8, 16)
SIZES = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14")


def measure(name: str, job: dict[str, Any]) -> dict[str, float]:
    """Seconds and peak memory in bytes of one contender's merge."""
    output = Path(job["output"])
    output.unlink(missing_ok=True)
    for path in (job["base"], *job["sources"]):  # into the page cache
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    file = output.with_suffix(".json")
    file.write_text(json.dumps(job))
    command = [sys.executable, str(HERE / "contenders.py"), name, str(file)]
    peaks = {"anonymous": 0, "resident": 0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for kind, now in memory(process.pid).items():
                peaks[kind] = max(peaks[kind], now)
            time.sleep(0.02)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{name} failed; see above")
    output.unlink(missing_ok=True)
    return json.loads(printed.splitlines()[-1]) | peaks


def memory(pid: int) -> dict[str, int]:
    """Bytes of memory of a process and its children."""
    total = {"anonymous": 0, "resident": 0}
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return total
    for kind, key in (("anonymous", "RssAnon"), ("resident", "VmRSS")):
        total[kind] += int(status.get(key, "0 kB").split()[0]) * 1024
    for child in children:
        total = {kind: total[kind] + found for kind, found in memory(int(child)).items()}
    return total


def scenario(
    data: Path, architecture: str, count: int, contenders: Sequence[str], repeats: int, given: Any
) -> dict[str, Any]:
    """Every contender on the same checkpoints, round by round."""
    paths = zoo.make(data / architecture, architecture, count)
    job = {
        "base": str(paths[0]),
        "sources": [str(path) for path in paths[1:]],
        "output": str(data / "output.safetensors"),
        "mergekit": given.mergekit,
        "threads": given.threads,
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(repeats):
        for name in contenders:
            if name.startswith("mergekit") and number >= given.mergekit_repeats:
                continue
            rounds[name].append(measure(name, job))
            print(architecture, count, name, rounds[name][-1], file=sys.stderr, flush=True)
    size = paths[0].stat().st_size
    return {
        "architecture": architecture,
        "sources": count,
        "bytes": size * (count + 2),
        "parameters": size // 4,
        "rounds": rounds,
    }


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Per contender: the median and the range of the seconds, ratios to the floor, peaks."""
    medians = {
        name: statistics.median(entry["seconds"] for entry in rounds)
        for name, rounds in found["rounds"].items()
    }
    rows = []
    for name, rounds in found["rounds"].items():
        seconds = [entry["seconds"] for entry in rounds]
        rows.append(
            {
                "contender": name,
                "median": medians[name],
                "least": min(seconds),
                "most": max(seconds),
                "processor": statistics.median(
                    entry.get("processor", float("nan"))
                    for entry in rounds  # older ones lack it
                ),
                "floors": medians[name] / medians["floor"],
                "rate": found["bytes"] / medians[name],
                "anonymous": max(entry["anonymous"] for entry in rounds),
                "resident": max(entry["resident"] for entry in rounds),
            }
        )
    return rows


def table(found: dict[str, Any]) -> list[str]:
    """One scenario in Markdown."""
    lines = [
        "| | median | range | × floor | processors | GB/s | peak anonymous | peak resident |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in summary(found):
        name = row["contender"]
        lines.append(
            f"| {name} | {row['median']:.2f} s | {row['least']:.2f}–{row['most']:.2f} "
            f"| {row['floors']:.1f} | {row['processor']:.1f} s | {row['rate'] / 1e9:.2f} "
            f"| {row['anonymous'] / 1e9:.2f} GB "
            f"| {row['resident'] / 1e9:.2f} GB |"
        )
    return lines


def growth(scenarios: Sequence[dict[str, Any]]) -> list[str]:
    """Several scenarios in Markdown, a line each."""
    lines = [
        "| architecture | parameters | sources | read and written | floor | ours | ours, digests "
        "| × floor | ours, s per GB | peak anonymous |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in scenarios:
        rows = {row["contender"]: row for row in summary(found)}
        plain, digests = rows["ours"], rows["ours, digests verified"]
        anonymous = max(plain["anonymous"], digests["anonymous"])
        lines.append(
            f"| {found['architecture']} | {found['parameters'] / 1e6:.0f} M | {found['sources']} "
            f"| {found['bytes'] / 1e9:.1f} GB | {rows['floor']['median']:.2f} s "
            f"| {plain['median']:.2f} s | {digests['median']:.2f} s | {plain['floors']:.1f} "
            f"| {plain['median'] / found['bytes'] * 1e9:.2f} | {anonymous / 1e9:.2f} GB |"
        )
    return lines


def machine(given: Any) -> str:
    """What it ran on."""
    model = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    names = ("torch", "numpy", "numba", "safetensors")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    if given.mergekit:
        python = Path(given.mergekit).with_name("python")
        code = "import importlib.metadata as m; print(m.version('mergekit'), m.version('torch'))"
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        mergekit, torch = found.stdout.split()
        versions.append(f"mergekit {mergekit} (with torch {torch})")
    day = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{day}, {len(os.sched_getaffinity(0))} cores of an {model}, Python "
        f"{platform.python_version()}, {', '.join(versions)}."
    )


def main() -> None:
    """Run all that is asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--mergekit", default=shutil.which("mergekit-pytorch"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mergekit-repeats", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", choices=list(PARTS), nargs="*")
    given = parser.parse_args()
    only = given.only or list(PARTS)
    raw = json.loads(JSON.read_text()) if JSON.exists() else {}
    few = ["floor", "ours", "ours, digests verified"]
    if "contest" in only:
        contenders = ["floor", "hashing", "ours", "ours, digests verified", "torch.topk per row"]
        contenders += ["mergekit, engine"] if given.mergekit else []
        contenders += ["merge-files, whole command"]
        contenders += ["mergekit-pytorch, whole command"] if given.mergekit else []
        found = [scenario(given.data, "ViT-B-32", 8, contenders, given.repeats, given)]
        write(raw, "contest", found, given)
    if "sources" in only:
        found = [scenario(given.data, "ViT-B-32", count, few, 3, given) for count in SOURCES]
        write(raw, "sources", found, given)
    if "sizes" in only:
        found = [scenario(given.data, name, 2, few, 3, given) for name in SIZES]
        write(raw, "sizes", found, given)


def write(raw: dict[str, Any], part: str, scenarios: Sequence[dict[str, Any]], given: Any) -> None:
    """Add what has been measured to the results."""
    raw[part] = {"machine": machine(given), "scenarios": scenarios}
    lines = ["# The engine", ""]
    for name, title in PARTS.items():
        if name in raw:
            found = raw[name]["scenarios"]
            lines += [f"## {title}", "", raw[name]["machine"], ""]
            lines += [*(table(found[0]) if name == "contest" else growth(found)), ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "engine.md").write_text("\n".join(lines))
    JSON.write_text(json.dumps(raw, indent=1))


if __name__ == "__main__":
    main()
