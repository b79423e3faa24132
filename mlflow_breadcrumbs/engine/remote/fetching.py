"""The bytes of files elsewhere: segments that come when they are wanted, and go again.

A segment is a large tensor, or some small ones that lie side by side; of a store without ranges,
a whole file. It comes in pieces, several at a time, into a temporary file without a name, so that
nothing is left whatever happens; it goes when all its tensors have been released.
"""

import bisect
import concurrent.futures
import threading
from collections.abc import Sequence
from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import headers, stored_bytes
from mlflow_breadcrumbs.engine.remote import stores
from mlflow_breadcrumbs.engine.stored_bytes import FileState

PIECE = 1 << 23
"""Bytes of one request; a store's first byte takes as long as some megabytes."""
AT_ONCE = 16
"""Requests under way, of all checkpoints together."""

_pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE, "breadcrumbs-fetch")


class _Segment:
    """Neighbouring bytes of one file."""

    def __init__(self, folder: stores.Folder, file: str, start: int, stop: int) -> None:
        self.start = start
        self.tensors: set[int] = set()
        """The offsets of those in it."""
        self.nbytes = stop - start
        self._stop = stop
        self._folder = folder
        self._file = file
        self._lock = threading.Lock()
        self._coming: concurrent.futures.Future[stored_bytes.NamelessFile] | None = None
        self._wanted: set[int] = set()

    def begin(self) -> "concurrent.futures.Future[stored_bytes.NamelessFile]":
        """Have it come, unless it is coming or here."""
        with self._lock:
            if self._coming is None:
                self._wanted = set(self.tensors)
                self._coming = self._fetch()
            return self._coming

    def release(self, offset: int) -> None:
        """Say that a tensor is not wanted any more; with the last one all goes."""
        with self._lock:
            self._wanted.discard(offset)
            if not self._wanted:
                self._coming = None

    def _fetch(self) -> "concurrent.futures.Future[stored_bytes.NamelessFile]":
        """Queue the requests."""
        done: concurrent.futures.Future[stored_bytes.NamelessFile] = concurrent.futures.Future()
        try:
            held = stored_bytes.NamelessFile(self.nbytes)
        except OSError as error:
            done.set_exception(stored_bytes.no_room(error, "an input", self.nbytes))
            return done
        if self._folder.ranged:
            spans = [
                (start, min(start + PIECE, self._stop))
                for start in range(self.start, self._stop, PIECE)
            ]
            pieces = [_pool.submit(self._piece, held, *span) for span in spans]
        else:
            pieces = [_pool.submit(self._stream, held)]
        left = len(pieces)
        lock = threading.Lock()

        def settle(piece: "concurrent.futures.Future[None]") -> None:
            nonlocal left
            with lock:
                left -= 1
                if done.done():
                    return
                if error := piece.exception():
                    done.set_exception(error)
                elif not left:
                    done.set_result(held)

        for piece in pieces:
            piece.add_done_callback(settle)
        return done

    def _piece(self, held: stored_bytes.NamelessFile, start: int, stop: int) -> None:
        content = self._folder.read(self._file, start, stop)
        try:
            held.write(content, start - self.start)
        except OSError as error:
            raise stored_bytes.no_room(error, "an input", held.nbytes) from error

    def _stream(self, held: stored_bytes.NamelessFile) -> None:
        offset = 0
        for chunk in self._folder.stream(self._file):
            try:
                held.write(chunk, offset)
            except OSError as error:
                raise stored_bytes.no_room(error, "an input", held.nbytes) from error
            offset += len(chunk)
        if offset != held.nbytes:
            raise errors.CheckpointError(
                f"{self._folder.address}/{self._file} gave {offset:,} bytes where it had "
                f"{held.nbytes:,}: it was written to, or the transfer was cut. Try again"
            )


class Fetched:
    """Files in a folder elsewhere, see `stored_bytes.StoredBytes`.

    Args:
        folder: that holds them.
        states: of each file, in the order of the headers' files.
        found: their headers.
    """

    def __init__(
        self, folder: stores.Folder, states: Sequence[FileState], found: headers.CheckpointHeaders
    ) -> None:
        self._folder = folder
        self._states = tuple(states)
        self._segments = _segments(folder, self._states, found)
        self._starts = [[segment.start for segment in own] for own in self._segments]
        self._touched: set[int] = set()

    @property
    def files(self) -> tuple[Path, ...]:
        """None: nothing is on a disk here."""
        return ()

    @property
    def states(self) -> tuple[FileState, ...]:
        """See `StoredBytes.states`."""
        return self._states

    def states_now(self) -> tuple[FileState, ...]:
        """Of each file as it is; one of which nothing was read is as it was."""
        return tuple(
            self._folder.state(state.name) if number in self._touched else state
            for number, state in enumerate(self._states)
        )

    def raw(self, file: int, offset: int, nbytes: int) -> memoryview:
        """See `StoredBytes.raw`; waits for the bytes."""
        if not nbytes:
            return memoryview(bytearray())
        self._touched.add(file)
        segment = self._segment(file, offset)
        first = offset - segment.start
        return segment.begin().result().map()[first : first + nbytes]

    def read_into(self, file: int, offset: int, out: memoryview) -> int:
        """See `StoredBytes.read_into`; waits for the bytes."""
        self._touched.add(file)
        segment = self._segment(file, offset)
        held = segment.begin().result()
        return held.read_into(out, offset - segment.start)

    def held(self, file: int, offset: int, nbytes: int) -> int:
        """See `StoredBytes.held`."""
        return self._segment(file, offset).nbytes if nbytes else 0

    def fetch(self, file: int, offset: int, nbytes: int) -> None:
        """See `StoredBytes.fetch`."""
        if nbytes:
            self._segment(file, offset).begin()

    def release(self, file: int, offset: int, nbytes: int) -> None:
        """See `StoredBytes.release`."""
        if nbytes:
            self._segment(file, offset).release(offset)

    def close(self) -> None:
        """See `StoredBytes.close`."""
        for segments in self._segments:
            for segment in segments:
                for offset in tuple(segment.tensors):
                    segment.release(offset)

    def _segment(self, file: int, offset: int) -> _Segment:
        return self._segments[file][bisect.bisect_right(self._starts[file], offset) - 1]


def _segments(
    folder: stores.Folder, states: Sequence[FileState], found: headers.CheckpointHeaders
) -> list[list[_Segment]]:
    """Per file, its segments by their first byte."""
    spans: list[list[tuple[int, int]]] = [[] for _ in states]
    for name, place in found.places.items():
        if nbytes := found.entries[name].nbytes:
            spans[place.file].append((place.offset, place.offset + nbytes))
    segments: list[list[_Segment]] = []
    for state, own in zip(states, spans, strict=True):
        groups: list[list[tuple[int, int]]] = []
        for span in sorted(own):
            fits = groups and (not folder.ranged or span[1] - groups[-1][0][0] <= PIECE)
            groups[-1].append(span) if fits else groups.append([span])
        made = []
        for group in groups:
            start, stop = (group[0][0], group[-1][1]) if folder.ranged else (0, state.nbytes)
            segment = _Segment(folder, state.name, start, stop)
            segment.tensors = {first for first, _ in group}
            made.append(segment)
        segments.append(made)
    return segments
