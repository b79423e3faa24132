"""What a merge will need, said before the start: bytes, memory, room on the disk, time."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs.engine import alignment, backends, merging, unnamed_classes, writing
from mlflow_breadcrumbs.engine.backends.cpu import reading
from mlflow_breadcrumbs.engine.remote import ahead
from mlflow_breadcrumbs.support import processes, progress, wording

SAMPLE = 1 << 27
"""Bytes of inputs that are merged to see how long it takes."""
FIXED = 400_000_000
"""Bytes of memory that torch, numba and this package take before anything is read."""
PASSES = 5
"""How often the unit `model` reads the sources: four times for its cuts, once to merge."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a merge takes; memory and time are estimates."""

    bytes_read: int
    """Of base and sources, each byte as often as it is read."""
    bytes_written: int
    files: int
    """Of the output."""
    scratch: int
    """Bytes of inputs that come from elsewhere and lie in the temporary folder at once."""
    memory: int
    """Bytes of memory that is no page cache."""
    seconds: float
    """From a merge of some tensors, on this machine, as busy as it is."""
    measured: int
    """Bytes of inputs of that merge."""
    alignments: Mapping[str, alignment.Alignment] = dataclasses.field(default_factory=dict)
    """By label, what becomes of the tensors of sources that are not quite as the base."""
    idle: tuple[str, ...] = ()
    """Of each pattern of the recipe that matches no tensor, a sentence without its full stop."""
    unnamed: tuple[str, ...] = ()
    """Tensors of heads that are merged though their classes have no names."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        found = dataclasses.asdict(dataclasses.replace(self, alignments={}))
        del found["alignments"], found["idle"], found["unnamed"]
        aligned = merging.said_of(self.alignments)
        return (
            found
            | {"seconds": round(self.seconds, 1)}
            | ({"alignment": aligned} if aligned else {})
            | ({"notes": self._notes()} if self._notes() else {})
        )

    def _notes(self) -> list[str]:
        """What is said of patterns and classes."""
        return [*self.idle, *([unnamed_classes.note(self.unnamed)] if self.unnamed else [])]

    def lines(self) -> list[tuple[str, str]]:
        """What people read: a word, and what it comes to."""
        held = wording.size(self.scratch) if self.scratch else "none"
        return [
            ("to read", wording.size(self.bytes_read)),
            (
                "to write",
                f"{wording.size(self.bytes_written)}, {wording.counted(self.files, 'files')}",
            ),
            ("temporary files", held),
            ("memory", f"about {wording.size(self.memory)}"),
            (
                "time",
                f"about {_duration(self.seconds)}, from {wording.size(self.measured)} of the "
                "inputs on this machine",
            ),
            *(("note", note) for note in self._notes()),
            *(
                ("note", note)
                for label, aligned in self.alignments.items()
                for note in aligned.notes(label)
            ),
        ]


def of(
    job: backends.Job,
    backend: backends.Backend,
    *,
    max_shard_size: int | None = None,
    threads: int | None = None,
) -> Budget:
    """The budget of a merge that has been checked; some tensors are merged in memory for it.

    Args:
        job: what `merging.plan` gave.
        backend: that is to compute the merge.
        max_shard_size: bytes of tensors per output file; `None` is one file.
        threads: of the CPU backend; all processors when `None`.

    Raises:
        MergeError: a value among those tensors is not finite.
    """
    names = _sample(job)
    part = dataclasses.replace(job, merged=names, copied=[], verify=True)
    writer = writing.MemoryWriter(merging.output_infos(part))
    # The first time compiles, where that was not done before.
    merging.compute(part, writer, backend, progress.unheard)
    started = time.perf_counter()
    merging.compute(part, writer, backend, progress.unheard)
    seconds = time.perf_counter() - started
    effort = sum(_effort(job, name) for name in job.merged) / sum(_effort(job, n) for n in names)
    copied = sum(_nbytes(job, name) for name in job.copied) / part.nbytes
    shards = writing.layout("merged.safetensors", merging.output_infos(job), max_shard_size)
    passes = PASSES - 1 if job.recipe.unit == "model" else 0
    tuned = sum(source.info(name).nbytes for source in job.sources for name in job.merged)
    return Budget(
        bytes_read=job.nbytes + passes * tuned,
        bytes_written=sum(shard.size for shard in shards),
        files=len(shards),
        scratch=ahead.scratch_bytes(job),
        memory=_memory(job, threads or processes.processors()),
        seconds=seconds * (effort + copied),
        measured=part.nbytes,
        **merging.seen(job),
    )


def _sample(job: backends.Job) -> Sequence[str]:
    """Some tensors as most of the bytes are in, no more of them than are needed."""
    by_size = sorted(job.merged, key=lambda name: job.base.info(name).numel)
    total, passed, middle = sum(_nbytes(job, name) for name in by_size), 0, len(by_size) - 1
    for number, name in enumerate(by_size):
        passed += _nbytes(job, name)
        if 2 * passed >= total:
            middle = number
            break
    chosen: list[str] = []
    room = SAMPLE
    for name in reversed(by_size[: middle + 1]):
        if chosen and _nbytes(job, name) > room:
            break
        chosen.append(name)
        room -= _nbytes(job, name)
    return sorted(chosen)


def _nbytes(job: backends.Job, name: str) -> int:
    """Of a tensor in all inputs."""
    return sum(checkpoint.info(name).nbytes for checkpoint in job.inputs)


def _effort(job: backends.Job, name: str) -> float:
    """What a tensor costs, in any unit: its bytes, or the operations of a decomposition."""
    shape = job.base.info(name).shape
    if not job.recipe.decomposes(shape):
        return float(_nbytes(job, name))
    rows, columns = shape[0], math.prod(shape[1:])
    return float(len(job.sources)) * rows * columns * min(rows, columns)


def _memory(job: backends.Job, threads: int) -> int:
    """Buffers of every thread, and where matrices are decomposed, those under way, whole."""
    buffers = threads * 16 * reading.PART
    whole = [
        4 * job.base.info(name).numel
        for name in job.merged
        if job.recipe.decomposes(job.base.info(name).shape)
    ]
    largest = sorted(whole, reverse=True)[:threads]
    return FIXED + buffers + (len(job.sources) + 4) * sum(largest)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
