"""One merge by one contender, in a process of its own: `python contenders.py NAME JOB.json`.

Prints a line of JSON with the seconds, and those of all processors. Of an engine, ours or
mergekit's, imports and compilation are over before the clock starts (so mergekit's processor time
has its imports, which its wall time has not); of a whole command the clock runs from the start of
its process to its end. What is read comes from the page cache, which `engine.py` has filled.
"""

import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

DENSITY, GAMMA, ALPHA = 0.14, 0.01, 0.3
CHUNK = 4 << 20


def ours(job: dict[str, Any], *, verify: bool, **fields: Any) -> Callable[[], None]:
    """Our engine, with the digests of all inputs, or without; `fields` replace the recipe's."""
    from mlflow_breadcrumbs.engine import files, recipe
    from mlflow_breadcrumbs.engine.backends import choosing

    settings = recipe.MergeRecipe(**{"density": DENSITY, "gamma": GAMMA, "alpha": ALPHA} | fields)
    backend = choosing.choose(threads=job.get("threads"))
    with tempfile.TemporaryDirectory() as folder:  # load what is compiled, or compile it now
        small = [Path(folder) / f"{number}.safetensors" for number in range(2)]
        for number, path in enumerate(small):
            generator = torch.Generator().manual_seed(number)
            save_file({"w": torch.randn(300, 1000, generator=generator) * 0.1}, path)
        output = Path(folder) / "out.safetensors"
        files.merge_files(small[0], small[1:], settings, output, max_norm_ratio=None)

    def run() -> None:
        files.merge_files(
            job["base"], job["sources"], settings, job["output"], backend=backend, verify=verify
        )

    return run


def floor(job: dict[str, Any]) -> Callable[[], None]:
    """Read all inputs once and write the output once, with as many threads; nothing computed."""
    threads = job.get("threads") or len(os.sched_getaffinity(0))

    def read(path: str, start: int, stop: int, buffer: bytearray) -> None:
        file = os.open(path, os.O_RDONLY)
        for offset in range(start, stop, CHUNK):
            os.preadv(file, [memoryview(buffer)[: min(CHUNK, stop - offset)]], offset)
        os.close(file)

    def work(number: int) -> None:
        buffer = bytearray(CHUNK)
        for path in (job["base"], *job["sources"]):
            size = os.path.getsize(path)
            read(path, size * number // threads, size * (number + 1) // threads, buffer)
        size = os.path.getsize(job["base"])
        file = os.open(job["output"], os.O_WRONLY)
        for offset in range(size * number // threads, size * (number + 1) // threads, CHUNK):
            os.pwrite(file, buffer, offset)
        os.close(file)

    def run() -> None:
        Path(job["output"]).touch()
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        file = os.open(job["output"], os.O_WRONLY)
        os.fsync(file)
        os.close(file)

    return run


def hashing(job: dict[str, Any]) -> Callable[[], None]:
    """SHA-256 of all inputs and of one output, with as many threads: the digests' own floor."""
    threads = job.get("threads") or len(os.sched_getaffinity(0))
    paths = [job["base"], *job["sources"], job["base"]]

    def digest(part: tuple[str, int]) -> str:
        path, number = part
        size = os.path.getsize(path)
        sha = hashlib.sha256()
        with open(path, "rb") as file:
            file.seek(size * number // threads)
            left = size * (number + 1) // threads - file.tell()
            while left:
                content = file.read(min(CHUNK, left))
                sha.update(content)
                left -= len(content)
        return sha.hexdigest()

    def run() -> None:
        parts = [(path, number) for path in paths for number in range(threads)]
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            list(pool.map(digest, parts))

    return run


def topk(job: dict[str, Any]) -> Callable[[], None]:
    """The paper's way: whole models in memory, masks per row with `torch.topk`."""

    def mask(tau: torch.Tensor) -> torch.Tensor:
        rows = tau.reshape(-1, tau.shape[-1]) if tau.dim() else tau.reshape(1, 1)
        n = rows.shape[1]
        high, keep = int(n * GAMMA), int(n * DENSITY)
        chosen = rows.abs().topk(high + keep, dim=1).indices[:, high:]
        kept = torch.zeros_like(rows).scatter_(1, chosen, rows.gather(1, chosen))
        return kept.reshape(tau.shape)

    def run() -> None:
        base = load_file(job["base"])
        total: dict[str, torch.Tensor] = {}
        vectors = []
        for source in job["sources"]:
            tuned = load_file(source)
            vectors.append({name: tuned[name] - base[name] for name in base})
        for vector in vectors:
            for name, tau in vector.items():
                kept = mask(tau)
                total[name] = total[name] + kept if name in total else kept
        save_file({name: base[name] + ALPHA * total[name] for name in base}, job["output"])

    return run


def command(job: dict[str, Any]) -> Callable[[], None]:
    """Our whole command `merge-files`, from the start of its process to its end."""
    arguments = ["--base", job["base"], "--output", job["output"]]
    for source in job["sources"]:
        arguments += ["--source", source]
    for field, value in (("density", DENSITY), ("gamma", GAMMA), ("alpha", ALPHA)):
        arguments += [f"--{field}", str(value)]
    if job.get("threads"):
        arguments += ["--threads", str(job["threads"])]
    return lambda: _run([sys.executable, "-m", "mlflow_breadcrumbs", "merge-files", *arguments])


MERGEKIT = """
import sys, time, os
from mergekit.scripts import merge_raw_pytorch
print("ready", flush=True)
sys.stdin.readline()
merge_raw_pytorch.main(sys.argv[1:], standalone_mode=False)
os._exit(0)
"""
"""mergekit's command without its imports and its exit; it waits for a line before it merges."""


def mergekit(job: dict[str, Any], *, whole: bool) -> Callable[[], None]:
    """The command `mergekit-pytorch` as it is used, or only what it does once it is imported."""
    folder = Path(tempfile.mkdtemp(prefix="mergekit-", dir=Path(job["output"]).parent))
    lines = ["merge_method: breadcrumbs", f"base_model: {job['base']}", "models:"]
    for source in job["sources"]:
        lines += [f"  - model: {source}", "    parameters:"]
        lines += [f"      weight: {ALPHA}", f"      density: {DENSITY}", f"      gamma: {GAMMA}"]
    config = folder / "merge.yaml"
    config.write_text("\n".join(lines) + "\ndtype: float32\n")
    arguments = [str(config), str(folder / "out"), "--quiet"]
    if whole:

        def run() -> None:
            _run([job["mergekit"], *arguments])
            shutil.rmtree(folder)

        return run
    python = str(Path(job["mergekit"]).with_name("python"))
    process = subprocess.Popen(
        [python, "-c", MERGEKIT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_bare(),
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit("mergekit can't be imported")

    def merge() -> None:
        process.communicate("go\n")
        if process.returncode:
            raise SystemExit(f"mergekit ended with {process.returncode}")
        shutil.rmtree(folder)

    return merge


def _run(arguments: list[str]) -> None:
    ours = arguments[0] == sys.executable
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ) if ours else _bare(),
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def _bare() -> dict[str, str]:
    """The environment without paths of this Python's packages, for another one."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


CONTENDERS: dict[str, Callable[[dict[str, Any]], Callable[[], None]]] = {
    "floor": floor,
    "hashing": hashing,
    "ours": lambda job: ours(job, verify=False),
    "ours, digests verified": lambda job: ours(job, verify=True),
    "torch.topk per row": topk,
    "merge-files, whole command": command,
    "mergekit, engine": lambda job: mergekit(job, whole=False),
    "mergekit-pytorch, whole command": lambda job: mergekit(job, whole=True),
    "tsv_m": lambda job: ours(job, verify=False, density=1, gamma=0, combine="tsv"),
    "iso_c": lambda job: ours(job, verify=False, density=1, gamma=0, combine="iso"),
    "tsv_m, masked": lambda job: ours(job, verify=False, combine="tsv"),
    "breadcrumbs_calibrated": lambda job: ours(job, verify=False, alpha=1, calibrate="svc"),
    "actmat": lambda job: ours(job, verify=False, density=1, gamma=0, combine="covariance"),
    "tact": lambda job: ours(job, verify=False, density=0.5, gamma=0, combine="covariance"),
}


def main() -> None:
    """Run the contender that the arguments name."""
    name, file = sys.argv[1:]
    job = json.loads(Path(file).read_text())
    run = CONTENDERS[name](job)
    started, processor = time.perf_counter(), sum(os.times()[:4])
    run()
    taken = {"seconds": time.perf_counter() - started}
    print(json.dumps(taken | {"processor": sum(os.times()[:4]) - processor}))


if __name__ == "__main__":
    main()
