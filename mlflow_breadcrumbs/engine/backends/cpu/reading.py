"""Parts of tensors in memory: read from the checkpoints into buffers that each thread keeps.

A thread's buffers hold one part of the base and one of a source, so memory depends on neither the
size of the checkpoints nor the number of sources; and what was just read is still in the cache.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch

from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.engine.backends.cpu import kernels

PART = 1 << 22
"""Elements of a tensor that are held at once while its masks are sought."""

KINDS = {
    torch.float32: kernels.FLOAT32,
    torch.bfloat16: kernels.BFLOAT16,
    torch.float16: kernels.FLOAT16,
    torch.float64: kernels.FLOAT64,
}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A part of a tensor: its bytes, and the kind of number they hold."""

    raw: kernels.Bytes
    kind: int
    size: int
    """Bytes of a number."""

    def every(self, step: int, count: int) -> "Numbers":
        """A copy of `count` elements, `step` apart, or of those there are."""
        numbers = self.raw.view(np.dtype(f"u{self.size}"))[::step][:count]
        return dataclasses.replace(self, raw=np.ascontiguousarray(numbers).view(np.uint8))


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same part of a tensor in the base and in a source: together a part of a task vector."""

    base: Numbers
    tuned: Numbers

    def __len__(self) -> int:
        """The number of elements."""
        return self.base.raw.size // self.base.size

    def every(self, step: int, count: int) -> "Pair":
        """A copy of `count` elements, `step` apart, or of those there are."""
        return Pair(self.base.every(step, count), self.tuned.every(step, count))

    @property
    def arrays(self) -> kernels.Pair:
        """What the kernels take."""
        return self.base.raw, self.base.kind, self.tuned.raw, self.tuned.kind

    def magnitudes(self) -> kernels.Bits:
        """The bits of every |τ|, uint32 [elements]."""
        bits = np.empty(len(self), np.uint32)
        kernels.magnitudes(self.arrays, bits)
        return bits


class Buffers:
    """The room of one thread: one part of the base and one of a source."""

    def __init__(self) -> None:
        self._room = [np.empty(0, np.uint8), np.empty(0, np.uint8)]
        self._held: list[tuple[object, ...]] = [(), ()]

    def pair(
        self,
        base: checkpoints.Checkpoint,
        source: checkpoints.Checkpoint,
        name: str,
        start: int,
        stop: int,
    ) -> Pair:
        """The elements from `start` to `stop` of a tensor; they stay until the next call."""
        return Pair(self.base(base, name, start, stop), self.tuned(source, name, start, stop))

    def base(self, base: checkpoints.Checkpoint, name: str, start: int, stop: int) -> Numbers:
        """The elements from `start` to `stop` of a tensor of the base."""
        return self._read(0, base, name, start, stop)

    def tuned(self, source: checkpoints.Checkpoint, name: str, start: int, stop: int) -> Numbers:
        """The elements from `start` to `stop` of a tensor of a source."""
        return self._read(1, source, name, start, stop)

    def _read(
        self, slot: int, checkpoint: checkpoints.Checkpoint, name: str, start: int, stop: int
    ) -> Numbers:
        dtype = checkpoint.info(name).dtype
        size = dtype.itemsize
        nbytes = (stop - start) * size
        if self._room[slot].size < nbytes:
            self._room[slot] = np.empty(nbytes, np.uint8)
            self._held[slot] = ()
        raw = self._room[slot][:nbytes]
        wanted = (checkpoint, name, start, stop)
        if self._held[slot] != wanted:
            self._held[slot] = ()
            checkpoint.read(name, start * size, raw)
            self._held[slot] = wanted
        return Numbers(raw, KINDS[dtype], size)


@dataclasses.dataclass(frozen=True)
class Vector:
    """A run of one tensor's task vector, read part by part."""

    buffers: Buffers
    base: checkpoints.Checkpoint
    source: checkpoints.Checkpoint
    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        """The number of elements."""
        return self.stop - self.start

    def parts(self) -> Iterator[Pair]:
        """The vector in parts of at most `PART` elements, in order."""
        for start in range(self.start, self.stop, PART):
            stop = min(start + PART, self.stop)
            yield self.buffers.pair(self.base, self.source, self.name, start, stop)

    def sample(self, count: int) -> kernels.Bits:
        """The bits of |τ| of about `count` elements from all over the vector, sorted."""
        n = len(self)
        # An odd step walks through all the columns of a matrix whose rows are a power of two long.
        if n <= PART:
            return np.sort(next(self.parts()).every(n // count | 1, count).magnitudes())
        run = min(max(16, count >> 14), count)
        buffers = Buffers()
        step = n // (count // run) | 1
        found = [
            buffers.pair(self.base, self.source, self.name, start, start + run).magnitudes()
            for start in range(self.start, self.stop - run, step)
        ]
        return np.sort(np.concatenate(found))


def by_thread() -> Callable[[], Buffers]:
    """What gives every thread buffers of its own."""
    local = threading.local()

    def own() -> Buffers:
        if not hasattr(local, "buffers"):
            local.buffers = Buffers()
        found: Buffers = local.buffers
        return found

    return own
