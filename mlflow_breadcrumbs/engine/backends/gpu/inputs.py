"""Pieces of the inputs on their way to a GPU: read, hashed and copied ahead of the kernels.

The order in which the pieces are visited is known from the start, and so is which of them stay on
the device until they are visited again: when a slot is needed, the piece goes whose next visit is
the farthest, but never the one that was visited last. Loading runs ahead of the visits as far as
there are free slots: host threads read a piece into pinned memory, which is copied on a stream of
its own. Memory is pinned for two pieces, so that one can be read while the other is copied.

On the CPU (Triton's interpreter) the slots are ordinary memory that is read into directly.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.engine.backends import Job
from mlflow_breadcrumbs.engine.backends.gpu.layout import Piece, Segment

READ = 1 << 22
"""Bytes that one task reads, of one large tensor or of many small ones."""

Part = tuple[Segment, int, int]
"""Some elements of a segment: the first, and the one behind the last, counted in the segment."""


@dataclasses.dataclass(frozen=True)
class Visit:
    """One step of the schedule."""

    piece: Piece
    slot: int
    """Where on the device the piece is."""
    load: bool
    """Whether it has to be read and copied there first."""
    first: bool
    """Whether it is read for the first time."""
    after: int
    """How many visits must be over before the slot is free for it."""


def schedule(order: Sequence[Piece], slots: int) -> list[Visit]:
    """Which slot each visited piece is in, and when it is loaded; `slots` is at least 2."""
    held: dict[int, int] = {}  # slot → the piece's identity
    upcoming: dict[int, list[int]] = {}
    for number in range(len(order) - 1, -1, -1):
        upcoming.setdefault(id(order[number]), []).append(number)
    never = len(order)
    visits: list[Visit] = []
    seen: set[int] = set()
    over = [0] * slots
    for number, piece in enumerate(order):
        key = id(piece)
        upcoming[key].pop()
        slot = next((slot for slot, other in held.items() if other == key), None)
        load = slot is None
        if slot is None:
            busy = visits[-1].slot if visits else None
            free = [slot for slot in range(slots) if slot != busy]
            slot = max(
                free,
                key=lambda slot: (
                    never + 1 if slot not in held else (upcoming[held[slot]] or [never])[-1]
                ),
            )
            held[slot] = key
        visits.append(Visit(piece, slot, load, first=key not in seen, after=over[slot]))
        over[slot] = number + 1
        seen.add(key)
    return visits


def stream(device: torch.device) -> "torch.cuda.Stream | None":
    """A stream of its own on a GPU; `None`, which stands for no stream at all, on the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Loader:
    """Brings pieces to the device, ahead of the visitor.

    Args:
        job: the merge.
        device: where to.
        order: the pieces, in the order that they will be visited in.
        nbytes: of the device memory that may hold pieces.
        pool: its workers read and hash.
    """

    def __init__(
        self,
        job: Job,
        device: torch.device,
        order: Sequence[Piece],
        nbytes: int,
        pool: concurrent.futures.Executor,
    ) -> None:
        self._job = job
        self._pool = pool
        room = max((piece.nbytes for piece in order), default=0)
        different = len({id(piece) for piece in order})
        # A piece is loaded while the one before is visited, so fewer than two slots won't do.
        slots = max(min(nbytes // max(room, 1), different), 2)
        self._visits = schedule(order, slots)
        self._slots = [torch.empty(room, dtype=torch.uint8, device=device) for _ in range(slots)]
        self._hashers: list[dict[str, Any]] = [{} for _ in job.inputs]
        self._loads = 0
        self._staging: list[torch.Tensor] = []
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._used: list[torch.cuda.Event | None] = [None] * slots
        self._stream = stream(device)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())  # the slots' earlier users
            self._staging = [torch.empty(room, dtype=torch.uint8, pin_memory=True) for _ in (0, 1)]
        self._visited = 0
        self._closing = False
        self._changed = threading.Condition()
        self._worker = concurrent.futures.ThreadPoolExecutor(1)
        self._arrivals = {
            number: self._worker.submit(self._load, visit)
            for number, visit in enumerate(self._visits)
            if visit.load
        }

    @contextlib.contextmanager
    def visit(self) -> Iterator[tuple[torch.Tensor, bool]]:
        """The next piece on the device: its buffer, uint8 [bytes], and whether it is new.

        Kernels that use it must be launched, on the current stream, before the context is left.
        """
        visit = self._visits[self._visited]
        if visit.load:
            arrived = self._arrivals.pop(self._visited).result()
            if arrived is not None:
                torch.cuda.current_stream().wait_event(arrived)
        yield self._slots[visit.slot], visit.first
        if self._stream is not None:
            self._used[visit.slot] = torch.cuda.current_stream().record_event()
        with self._changed:
            self._visited += 1
            self._changed.notify()

    def hexdigests(self) -> list[dict[str, str]]:
        """Per input, base first: the SHA-256 of each tensor's bytes, when all is loaded."""
        return [
            {name: hasher.hexdigest() for name, hasher in hashers.items()}
            for hashers in self._hashers
        ]

    def close(self) -> None:
        """Let what is under way end, and give the memory back."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.shutdown(cancel_futures=True)
        if self._stream is not None:
            self._stream.synchronize()
        self._slots.clear()
        self._staging.clear()

    def _load(self, visit: Visit) -> "torch.cuda.Event | None":
        """Read a piece and send it off when its slot is free; the event happens on arrival."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._visited >= visit.after)
        if self._closing:
            return None
        slot = self._slots[visit.slot]
        if self._stream is None:
            list(self._read(visit, slot))
            return None
        turn = self._loads % 2
        self._loads += 1
        staging, copied, used = self._staging[turn], self._copied[turn], self._used[visit.slot]
        if copied is not None:
            copied.synchronize()
        with torch.cuda.stream(self._stream):
            if used is not None:
                self._stream.wait_event(used)
            for position in self._read(visit, staging):
                start, stop = visit.piece.offsets[position : position + 2]
                slot[start:stop].copy_(staging[start:stop], non_blocking=True)
            self._copied[turn] = self._stream.record_event()
        return self._copied[turn]

    def _read(self, visit: Visit, buffer: torch.Tensor) -> Iterator[int]:
        """Read all inputs of a piece with many threads; gives each one's position when complete."""
        room = buffer.numpy()
        hashed = self._job.verify and visit.first
        tasks = [
            [
                self._pool.submit(self._read_parts, visit, position, parts, room)
                for parts in _shares(visit.piece, checkpoint, whole=hashed)
            ]
            for position, checkpoint in enumerate(self._job.inputs)
        ]
        for position, own in enumerate(tasks):
            for task in own:
                task.result()
            yield position

    def _read_parts(
        self, visit: Visit, position: int, parts: Sequence[Part], room: npt.NDArray[np.uint8]
    ) -> None:
        """Read some of an input, and hash it when it is read for the first time."""
        checkpoint, hashers = self._job.inputs[position], self._hashers[position]
        offset = visit.piece.offsets[position]
        for segment, first, last in parts:
            size = checkpoint.info(segment.name).dtype.itemsize
            start = offset + (segment.position + first) * size
            part = room[start : start + (last - first) * size]
            checkpoint.read(segment.name, (segment.start + first) * size, part)
            if self._job.verify and visit.first:
                hashers.setdefault(segment.name, hashlib.sha256()).update(part.data)


def _shares(piece: Piece, checkpoint: checkpoints.Checkpoint, *, whole: bool) -> list[list[Part]]:
    """What each task reads; `whole`: a segment is one task's, since its bytes are hashed in order.

    Small segments are read by one task together.
    """
    shares: list[list[Part]] = []
    filled = READ
    for segment in piece.segments:
        size = checkpoint.info(segment.name).dtype.itemsize
        step = segment.elements if whole else max(READ // size, 1)
        for first in range(0, segment.elements, step):
            last = min(first + step, segment.elements)
            if filled + (last - first) * size > READ:
                shares.append([])
                filled = 0
            shares[-1].append((segment, first, last))
            filled += (last - first) * size
    return shares
