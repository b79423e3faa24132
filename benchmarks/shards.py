"""What a merge shard by shard costs beside one in one go: `python benchmarks/shards.py`.

ViT-B-32 by default, the inputs in the page cache. Each contender merges once for every round, one
after the other, so that a loaded neighbour slows all of them; the first round compiles and does not
count. Processor time is what to compare. Workers are processes of their own, one after the other,
so their start counts.

With `--ray` two workers of a Ray cluster on this machine, of one thread each, merge too: once with
the cluster and the workers there already, once in a command that starts both.

With `--memory` something else is measured: how much a merge reads from the disk, of inputs that are
not in the page cache, in a control group (version 1 or 2; as root) with so much memory.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import zoo
from safetensors.torch import save_file

from mlflow_breadcrumbs.commands import options
from mlflow_breadcrumbs.engine import checkpoints, merging, recipe
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.engine.shards import finishing, local, plans
from mlflow_breadcrumbs.support import executors

RECIPE = recipe.MergeRecipe(density=0.14, gamma=0.01, alpha=0.3)
SIZES = (5_000_000_000, 200_000_000, 50_000_000)
"""Bytes of a shard."""


@dataclasses.dataclass
class Contender:
    """A way to merge, and what it took."""

    what: str
    merge: Callable[[], str]
    """Gives the weights digest."""
    is_counted: bool = True
    """Whether its processor time is known; Linux forgets what processes took that nobody waits for,
    as those of a cluster that has ended."""
    wall: list[float] = dataclasses.field(default_factory=list)
    processor: list[float] = dataclasses.field(default_factory=list)

    def run(self) -> str:
        """Merge once; the weights digest."""
        wall, processor = time.perf_counter(), _processor_time()
        digest = self.merge()
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(_processor_time() - processor)
        return digest

    def row(self, other: "Contender") -> str:
        """A line of the table: the other one's time over this one's."""
        wall, processor = (statistics.median(times[1:]) for times in (self.wall, self.processor))
        ratios = [
            statistics.median(theirs[1:]) / own
            for theirs, own in ((other.processor, processor), (other.wall, wall))
        ]
        cells = [self.what, f"{processor:.2f} s", f"{wall:.2f} s", *(f"{r:.2f}" for r in ratios)]
        if not self.is_counted:
            cells[1] = cells[3] = "–"
        return f"| {' | '.join(cells)} |"


def _processor_time() -> float:
    """Of this process and of those it started, also of those that live, seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ended = sum(each.ru_utime + each.ru_stime for each in used)
    return ended + _living(os.getpid()) / os.sysconf("SC_CLK_TCK")


def _living(process: int) -> int:
    """Clock ticks of the living descendants of a process, and of theirs that have ended."""
    ticks = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                # proc(5): fields 14 to 17, in user and kernel mode, those of its children too.
                stat = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, stat[11:15])) + _living(int(child))
    return ticks


def on_ray(
    paths: Sequence[Path], inputs: Sequence[checkpoints.Checkpoint], folder: Path, executor: Any
) -> list[Contender]:
    """Two workers of Ray that wait for work; and whole commands, without and with Ray."""
    size = SIZES[1]

    def workers() -> str:
        return local.merge(
            *(inputs[0], inputs[1:], RECIPE, folder / "ray.safetensors"),
            max_shard_size=size,
            backend=choosing.ChosenThere(threads=1),
            executor=executor,
            overwrite=True,
        ).weights_digest

    def command(*more: str) -> Callable[[], str]:
        base, *sources = map(str, paths)
        words = [sys.executable, "-m", "mlflow_breadcrumbs", "-q", "merge-files", "--json"]
        words += ["--base", base, *(word for each in sources for word in ("--source", each))]
        words += ["--output", str(folder / "command.safetensors"), "--overwrite", "--digests"]
        words += ["--max-shard-size", str(size)]
        for field in ("density", "gamma", "alpha"):
            words += [f"--{field}", str(getattr(RECIPE, field))]

        def run() -> str:
            done = subprocess.run([*words, *more], check=True, stdout=subprocess.PIPE)
            return str(json.loads(done.stdout)["weights_digest"])

        return run

    shards = f"shards of {size / 1e6:.0f} MB"
    return [
        Contender(f"{shards}, two workers of Ray", workers),
        Contender(f"{shards}, the whole command", command()),
        Contender(
            f"{shards}, the whole command, which starts Ray",
            command("--executor", "ray", "--workers", "2"),
            is_counted=False,
        ),
    ]


def contenders(inputs: Sequence[checkpoints.Checkpoint], folder: Path) -> list[Contender]:
    """In one go; shard by shard in one process; a process per shard."""

    def whole() -> str:
        output = folder / "whole.safetensors"
        arguments = (inputs[0], inputs[1:], RECIPE, output)
        return merging.merge(*arguments, verify=True, overwrite=True).weights_digest

    def shards(size: int) -> Callable[[], str]:
        output = folder / f"{size}.safetensors"
        arguments = (inputs[0], inputs[1:], RECIPE, output)
        return lambda: local.merge(*arguments, max_shard_size=size, overwrite=True).weights_digest

    def workers() -> str:
        output = folder / "workers.safetensors"
        plan = plans.make(inputs[0], inputs[1:], RECIPE, output, max_shard_size=SIZES[1])
        plan.save(folder / "plan.json")
        command = [sys.executable, "-m", "mlflow_breadcrumbs", "-q", "work"]
        for number in range(1, len(plan.shards) + 1):
            own = [*command, folder / "plan.json", "--shard", str(number)]
            subprocess.run(own, check=True, stdout=subprocess.DEVNULL)
        return finishing.finish(plan, overwrite=True).weights_digest

    return [
        Contender("in one go", whole),
        *(Contender(f"shards of {size / 1e6:.0f} MB", shards(size)) for size in SIZES),
        Contender(f"shards of {SIZES[1] / 1e6:.0f} MB, a process each", workers),
    ]


def limited(inputs: Sequence[checkpoints.Checkpoint], folder: Path, limit: int) -> str:
    """Merge with so many bytes of memory, the page cache counted; what was read, as a sentence."""
    merge_small(folder)  # compiles
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    root = Path("/sys/fs/cgroup")
    first = (root / "cgroup.controllers").exists()
    group = (root if first else root / "memory") / "breadcrumbs-benchmark"
    group.mkdir(exist_ok=True)
    (group / ("memory.max" if first else "memory.limit_in_bytes")).write_text(str(limit))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    said = []
    nbytes = sum(checkpoint.nbytes for checkpoint in inputs)
    for unit in ("row", "tensor"):
        before = _read_bytes()
        made = dataclasses.replace(RECIPE, unit=unit)
        output = folder / "limited.safetensors"
        merging.merge(inputs[0], inputs[1:], made, output, overwrite=True)
        read = _read_bytes() - before
        said.append(
            f"unit {unit}: {nbytes / 1e9:.2f} GB of inputs, {read / 1e9:.2f} GB read from the disk "
            f"({read / nbytes:.2f} times), with {limit / 1e9:.2f} GB of memory"
        )
    return "\n".join(said)


def merge_small(folder: Path) -> None:
    """Merge something small, so that the loops are compiled."""
    paths = [folder / "small-base.safetensors", folder / "small-source.safetensors"]
    base = torch.randn(300, 300)
    save_file({"x": base}, paths[0])
    save_file({"x": base + 0.01 * base.flip(0)}, paths[1])
    first, second = (checkpoints.Checkpoint.open(path) for path in paths)
    merging.merge(first, [second], RECIPE, folder / "small.safetensors")


def _read_bytes() -> int:
    """That this process has read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architecture", default="ViT-B-32", help="of open_clip")
    parser.add_argument("--sources", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="the first does not count")
    parser.add_argument("--ray", action="store_true", help="two workers of Ray on this machine too")
    parser.add_argument("--memory", metavar="SIZE", help="as 1GB: count what is read from the disk")
    parser.add_argument("--data", type=Path, default=Path("benchmarks/data"))
    given = parser.parse_args(arguments)
    paths = zoo.make(
        given.data / f"{given.architecture}-float32",
        given.architecture,
        given.sources,
        torch.float32,
    )
    inputs = [checkpoints.Checkpoint.open(path) for path in paths]
    with (
        tempfile.TemporaryDirectory(dir=given.data) as name,
        executors.opened("ray" if given.ray else "local", workers=2) as executor,
    ):
        if given.memory:
            print(limited(inputs, Path(name), options.Size().convert(given.memory, None, None)))
            return
        found = contenders(inputs, Path(name))
        if given.ray:
            found = [found[0], found[2], *on_ray(paths, inputs, Path(name), executor)]
        for _ in range(given.rounds):
            assert len({contender.run() for contender in found}) == 1
    print("| | processor time | wall time | ratio | ratio, wall |\n|---|---|---|---|---|")
    for contender in found:
        print(contender.row(found[0]))


if __name__ == "__main__":
    main()
