"""Merged pieces on their way from a GPU: copied back, written and hashed beside the kernels."""

import concurrent.futures
import dataclasses
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlflow_breadcrumbs.engine import writing
from mlflow_breadcrumbs.engine.backends import Job, MaskStatistics
from mlflow_breadcrumbs.engine.backends.cpu import kernels
from mlflow_breadcrumbs.engine.backends.gpu import inputs, layout
from mlflow_breadcrumbs.engine.backends.gpu.layout import Piece, Segment

AHEAD = 2
"""Merged pieces that may wait on the device to be copied back."""

ROOMS = 4
"""Merged pieces that may be written and hashed at a time; a run's digest is one thread's work."""


@dataclasses.dataclass(frozen=True)
class Merged:
    """A merged piece on the device, and what its programs saw; filled by `merge_tiles`."""

    piece: Piece
    content: torch.Tensor
    """[elements] of the output's dtype, or of an integer as wide."""
    seen: torch.Tensor
    """int32 [tiles, sources, 4]."""
    energies: torch.Tensor
    """float64 [tiles, sources, 2]."""
    base_energy: torch.Tensor
    """float64 [tiles]."""
    bad: torch.Tensor
    """int32 [tiles]."""


class Tally:
    """What is known of one tensor, all its tiles together."""

    def __init__(self, sources: int) -> None:
        self.seen = np.tile(np.array([0, int(kernels.MAGNITUDE), 0, 0], np.int64), (sources, 1))
        """[sources, 4] kept, the bits of the smallest and the largest kept, of the largest."""
        self.energies = np.zeros((sources, 2))
        self.base_energy = 0.0
        self.bad: int | None = None
        """Flat index of the first merged element that is not finite."""

    @property
    def infinite(self) -> bool:
        """Whether a task vector has an element that is not finite."""
        return int(self.seen[:, 3].max()) >= kernels.INFINITY

    def statistics(self, name: str, elements: int) -> list[MaskStatistics]:
        """What the masks did, per source."""
        magnitudes = self.seen[:, 1:3].astype(np.uint32).view(np.float32)
        return [
            MaskStatistics(
                tensor=name,
                source=source,
                elements=elements,
                kept=int(kept),
                smallest_kept=float(magnitudes[source, 0]) if kept else 0.0,
                largest_kept=float(magnitudes[source, 1]),
                energy=float(self.energies[source, 0]),
                energy_kept=float(self.energies[source, 1]),
            )
            for source, kept in enumerate(self.seen[:, 0])
        ]


class Results:
    """Takes merged pieces, in order, and hands them to the writer.

    Args:
        job: the merge.
        writer: of the output.
        device: where the pieces are.
        pieces: how many there will be.
        elements: the most that a piece has room for.
        pool: its workers write and hash.
    """

    def __init__(
        self,
        job: Job,
        writer: writing.Writer,
        device: torch.device,
        pieces: int,
        elements: int,
        pool: concurrent.futures.Executor,
    ) -> None:
        self.tallies: dict[str, Tally] = {}
        self._job = job
        self._writer = writer
        self._pool = pool
        self._cuda = device.type == "cuda"
        self._stream = inputs.stream(device)
        widest = max((dtype.itemsize for dtype in job.dtypes.values()), default=0)
        self._rooms = [
            torch.empty(elements * widest, dtype=torch.uint8, pin_memory=self._cuda)
            for _ in range(min(ROOMS, pieces))
        ]
        self._writes: list[list[concurrent.futures.Future[None]]] = [[] for _ in self._rooms]
        self._stored = 0
        self._hashers: dict[str, Any] = {}
        self._before: dict[str, concurrent.futures.Future[None]] = {}
        self._worker = concurrent.futures.ThreadPoolExecutor(1)
        self._waiting: list[concurrent.futures.Future[None]] = []

    def take(self, merged: Merged) -> None:
        """Hand over a piece whose kernels are launched; waits if too many are on their way.

        Raises:
            CheckpointError: an earlier piece can't be written.
        """
        done = torch.cuda.current_stream().record_event() if self._cuda else None
        self._waiting.append(self._worker.submit(self._store, merged, done))
        while len(self._waiting) > AHEAD:
            self._waiting.pop(0).result()

    def finish(self) -> None:
        """Wait until all is written."""
        while self._waiting:
            self._waiting.pop(0).result()
        for writes in self._writes:
            _wait(writes)

    def close(self) -> None:
        """Let what is under way end."""
        self._worker.shutdown(cancel_futures=True)
        concurrent.futures.wait([write for writes in self._writes for write in writes])

    def _store(self, merged: Merged, done: "torch.cuda.Event | None") -> None:
        """Copy a piece back, write it, and add up what its programs saw."""
        content = merged.content.view(torch.uint8)
        turn = self._stored % len(self._rooms)
        self._stored += 1
        _wait(self._writes[turn])
        room = self._rooms[turn][: content.numel()]
        with torch.cuda.stream(self._stream):
            if self._stream is not None and done is not None:
                self._stream.wait_event(done)
            room.copy_(content)
            seen, energies, base_energy, bad = (
                tensor.cpu().numpy()
                for tensor in (merged.seen, merged.energies, merged.base_energy, merged.bad)
            )
        for segment in merged.piece.segments:
            before = self._before.get(segment.name)
            write = self._pool.submit(self._write, segment, room.numpy(), before)
            self._before[segment.name] = write
            self._writes[turn].append(write)
        self._add_up(merged.piece, seen.astype(np.int64), energies, base_energy, bad)

    def _write(
        self,
        segment: Segment,
        room: npt.NDArray[np.uint8],
        before: "concurrent.futures.Future[None] | None",
    ) -> None:
        """Write a run of a tensor, whose digest grows with it, when the run before it is done."""
        name, size = segment.name, self._job.dtypes[segment.name].itemsize
        content = room[segment.position * size :][: segment.elements * size].data
        self._writer.write_part(name, segment.start * size, content)
        if before is not None:
            before.result()  # its worker started before this one
        hasher = self._hashers.setdefault(name, hashlib.sha256())
        hasher.update(content)
        if segment.stop == self._job.base.info(name).numel:
            self._writer.announce(name, hasher.hexdigest())

    def _add_up(
        self,
        piece: Piece,
        seen: npt.NDArray[np.int64],
        energies: npt.NDArray[np.float64],
        base_energy: npt.NDArray[np.float64],
        bad: npt.NDArray[np.int32],
    ) -> None:
        """Add what each tile saw to its tensor's tally."""
        for number, segment in enumerate(piece.segments):
            tally = self.tallies.setdefault(segment.name, Tally(len(self._job.sources)))
            own = np.flatnonzero(piece.owner == number)
            tally.seen[:, 0] += seen[own, :, 0].sum(0)
            tally.seen[:, 1] = np.minimum(tally.seen[:, 1], seen[own, :, 1].min(0))
            tally.seen[:, 2:] = np.maximum(tally.seen[:, 2:], seen[own, :, 2:].max(0))
            tally.energies += energies[own].sum(0)
            tally.base_energy += float(base_energy[own].sum())
            wrong = own[bad[own] < int(kernels.MAGNITUDE)]
            if wrong.size and tally.bad is None:
                starts = piece.table[wrong, layout.POSITION] - segment.position
                tally.bad = int((segment.start + starts + bad[wrong]).min())


def _wait(writes: "list[concurrent.futures.Future[None]]") -> None:
    """Wait for writes, and forget them; the first error is raised."""
    while writes:
        writes.pop(0).result()
