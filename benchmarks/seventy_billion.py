"""A merge of 70 billion parameters: its real plan, and how long it would take on many workers.

`python benchmarks/seventy_billion.py` writes checkpoints of a real layout (80 layers, 30 files of
bfloat16) as files with holes, which take no room on the disk, and plans the merge from their
headers, as for true ones. Then it measures what this machine does per gigabyte of inputs, on a
merge that is small enough for it, and lays the plan's shards onto workers: each reads, computes and
writes its shards one after the other, reading while it computes.

What a worker's machine is like is an assumption, given by options and printed with the result.
"""

import argparse
import dataclasses
import heapq
import json
import math
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import zoo

from mlflow_breadcrumbs.engine import checkpoints, merging, recipe
from mlflow_breadcrumbs.engine.shards import plans, working
from mlflow_breadcrumbs.support import processes

RECIPE = recipe.MergeRecipe(density=0.14, gamma=0.01, alpha=0.3)
LAYERS, HIDDEN, INNER, HEADS, VOCABULARY = 80, 8192, 28672, 1024, 128256
"""Of a Llama of 70 billion parameters with grouped queries."""
FILES = 30


def tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes, in the order of the layers."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        own = f"model.layers.{layer}"
        yield f"{own}.self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield f"{own}.self_attn.k_proj.weight", (HEADS, HIDDEN)
        yield f"{own}.self_attn.v_proj.weight", (HEADS, HIDDEN)
        yield f"{own}.self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield f"{own}.mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{own}.mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{own}.mlp.down_proj.weight", (HIDDEN, INNER)
        yield f"{own}.input_layernorm.weight", (HIDDEN,)
        yield f"{own}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def write_sparse(folder: Path) -> Path:
    """A checkpoint with true headers and holes for data; its index."""
    folder.mkdir()
    everything = list(tensors())
    room = sum(2 * math.prod(shape) for _, shape in everything) / FILES
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    held = 0.0
    for name, shape in everything:
        if held >= room and len(groups) < FILES:
            groups.append([])
            held = 0.0
        groups[-1].append((name, shape))
        held += 2 * math.prod(shape)
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        header, end = {}, 0
        for name, shape in group:
            start, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
            weight_map[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@dataclasses.dataclass(frozen=True)
class Machine:
    """A worker, as it is assumed, with what was measured."""

    cores: int
    network: float
    """GB/s, each way."""
    price: float
    """Of an hour, in dollars."""
    start: float
    """Seconds until a worker computes: it is scheduled, imports, opens the inputs' headers."""
    cost: float
    """Processor seconds per GB of inputs."""
    planning: float
    """Seconds to plan."""

    def seconds(self, shard: plans.PlannedShard) -> float:
        """What a shard takes: reading and computing at the same time, then writing."""
        reading = shard.bytes_read / 1e9 / self.network
        computing = shard.bytes_read / 1e9 * self.cost / self.cores
        return max(reading, computing) + shard.bytes_written / 1e9 / self.network


def simulate(plan: plans.ShardPlan, workers: int, machine: Machine) -> tuple[float, float]:
    """Seconds until the last shard is done, largest first; and dollars for all workers' time."""
    free = [machine.start] * workers
    heapq.heapify(free)
    for shard in sorted(plan.shards, key=machine.seconds, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + machine.seconds(shard))
    end = machine.planning + max(free)
    return end, workers * end / 3600 * machine.price


def measure(data: Path) -> tuple[float, float]:
    """Processor seconds and seconds per GB of inputs, bfloat16, all digests verified."""
    paths = zoo.make(data / "ViT-B-32-bfloat16", "ViT-B-32", 4, torch.bfloat16)
    inputs = [checkpoints.Checkpoint.open(path) for path in paths]
    volume = sum(checkpoint.nbytes for checkpoint in inputs) / 1e9
    best = (math.inf, math.inf)
    with tempfile.TemporaryDirectory(dir=data) as name:
        for _ in range(4):
            used, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            output = Path(name) / "out.safetensors"
            merging.merge(inputs[0], inputs[1:], RECIPE, output, verify=True, overwrite=True)
            now = resource.getrusage(resource.RUSAGE_SELF)
            spent = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
            best = min(best, (spent / volume, (time.perf_counter() - started) / volume))
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, measure, simulate, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sources", type=int, default=4)
    parser.add_argument("--cores", type=int, default=16, help="of a worker")
    parser.add_argument("--network", type=float, default=1.5, help="GB/s of a worker")
    parser.add_argument("--price", type=float, default=0.8, help="dollars for a worker's hour")
    parser.add_argument("--start", type=float, default=30, help="seconds until a worker computes")
    parser.add_argument("--shard", type=float, default=5, help="GB of an output shard")
    parser.add_argument("--first", action="store_true", help="also compute a shard, of zeros")
    parser.add_argument("--data", type=Path, default=Path("benchmarks/data"))
    given = parser.parse_args(arguments)
    given.data.mkdir(parents=True, exist_ok=True)
    cost, wall = measure(given.data)
    print(
        f"Measured here, {processes.processors()} processors, bfloat16: {cost:.2f} processor "
        f"seconds and {wall:.2f} seconds per GB of inputs."
    )
    with tempfile.TemporaryDirectory(dir=given.data) as name:
        folder = Path(name)
        indexes = [write_sparse(folder / f"input{n}") for n in range(given.sources + 1)]
        started = time.perf_counter()
        inputs = [checkpoints.Checkpoint.open(index) for index in indexes]
        found = [
            plans.make(
                inputs[0],
                inputs[1:],
                RECIPE,
                folder / "merged.safetensors",
                max_shard_size=int(size * 1e9),
            )
            for size in (given.shard, given.shard / 4)
        ]
        planning = (time.perf_counter() - started) / len(found)
        found[0].save(folder / "plan.json")
        nbytes = (folder / "plan.json").stat().st_size
        disk = sum(file.stat().st_blocks for file in folder.rglob("*")) * 512
        print(
            f"Planned in {planning:.1f} s: {inputs[0].parameters / 1e9:.1f} billion parameters, "
            f"{len(inputs[0].names)} tensors, {found[0].bytes_read / 1e9:.0f} GB to read, "
            f"{found[0].bytes_written / 1e9:.0f} GB to write; the plan has {nbytes / 1e3:.0f} kB, "
            f"the checkpoints take {disk / 1e6:.1f} MB of the disk."
        )
        if given.first:
            smallest = min(range(len(found[1].shards)), key=lambda n: found[1].shards[n].bytes_read)
            note = working.work(found[1], smallest + 1)
            print(f"A shard of {note.nbytes / 1e9:.2f} GB, of zeros: {note.seconds:.1f} s.")
    machine = Machine(given.cores, given.network, given.price, given.start, cost, planning)
    print(
        f"Assumed of a worker: {machine.cores} processors, {machine.network} GB/s each way, "
        f"{machine.price} dollars an hour, {machine.start:.0f} s until it computes.\n"
    )
    print("| workers | shards | time | cost | share of the workers' time that is used |")
    print("|---|---|---|---|---|")
    for plan in found:
        needed = sum(machine.seconds(shard) for shard in plan.shards)
        for workers in (1, 8, 16, 32, 64, 128):
            seconds, dollars = simulate(plan, workers, machine)
            print(
                f"| {workers} | {len(plan.shards)} | {seconds / 60:.1f} min | ${dollars:.2f} "
                f"| {needed / (seconds * workers):.0%} |"
            )


if __name__ == "__main__":
    main()
