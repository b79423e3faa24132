"""The bytes of a checkpoint's files, wherever they are, and how a disk gives them."""

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import descriptors


class FileState(NamedTuple):
    """What changes when a file is written to."""

    name: str
    nbytes: int
    changed: str
    """The time of its last change in nanoseconds, or what a store calls its version."""


class StoredBytes(Protocol):
    """Files by number, read at an offset, by any thread."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Where the files are, if they are on a disk of this machine."""
        ...

    @property
    def states(self) -> tuple[FileState, ...]:
        """Of each file, as it was opened."""
        ...

    def states_now(self) -> tuple[FileState, ...]:
        """Of each file, as it is."""
        ...

    def raw(self, file: int, offset: int, nbytes: int) -> memoryview:
        """Some bytes, in place."""
        ...

    def read_into(self, file: int, offset: int, out: memoryview) -> int:
        """Copy bytes from an offset on; how many there were, 0 at the end of the file."""
        ...

    def held(self, file: int, offset: int, nbytes: int) -> int:
        """How many bytes are on the disk here, only because some are read."""
        ...

    def fetch(self, file: int, offset: int, nbytes: int) -> None:
        """Begin to have some bytes here."""
        ...

    def release(self, file: int, offset: int, nbytes: int) -> None:
        """Let go of some bytes; they may be asked for again."""
        ...

    def close(self) -> None:
        """Let go of everything; what `raw` gave stays valid."""
        ...


class Mapped:
    """Files on a disk: memory maps, and descriptors for reads.

    Raises:
        OSError: a file can't be opened.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._maps, self._descriptors = _open_all(self._files)
        self._close = weakref.finalize(self, _close_all, self._descriptors)
        self._states = self.states_now()

    @property
    def files(self) -> tuple[Path, ...]:
        """See `StoredBytes.files`."""
        return self._files

    @property
    def states(self) -> tuple[FileState, ...]:
        """See `StoredBytes.states`."""
        return self._states

    def states_now(self) -> tuple[FileState, ...]:
        """See `StoredBytes.states_now`."""
        return tuple(
            FileState(file.name, status.st_size, str(status.st_mtime_ns))
            for file, status in zip(self._files, map(os.fstat, self._descriptors), strict=True)
        )

    def raw(self, file: int, offset: int, nbytes: int) -> memoryview:
        """See `StoredBytes.raw`."""
        return memoryview(self._maps[file])[offset : offset + nbytes]

    def read_into(self, file: int, offset: int, out: memoryview) -> int:
        """See `StoredBytes.read_into`."""
        return descriptors.read_into(self._descriptors[file], out, offset)

    def held(self, file: int, offset: int, nbytes: int) -> int:
        """None: they are where they belong."""
        return 0

    def fetch(self, file: int, offset: int, nbytes: int) -> None:
        """Nothing: the bytes are here."""

    def release(self, file: int, offset: int, nbytes: int) -> None:
        """Tell the kernel that some pages are not needed any more."""
        start, stop = offset // mmap.PAGESIZE * mmap.PAGESIZE, offset + nbytes
        if stop > start and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[file].madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self) -> None:
        """See `StoredBytes.close`."""
        self._maps = []
        self._close()


class NamelessFile:
    """Bytes in the temporary folder, in a file without a name: gone once nobody holds this.

    Args:
        nbytes: its size.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, nbytes: int) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        os.truncate(self._file.fileno(), nbytes)
        self.nbytes = nbytes

    def write(self, content: bytes | memoryview, offset: int) -> None:
        """Write at an offset; raises `OSError`."""
        view = memoryview(content)
        while view:
            written = descriptors.write(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written

    def read_into(self, out: memoryview, offset: int) -> int:
        """Copy bytes from an offset on; how many there were."""
        return descriptors.read_into(self._file.fileno(), out, offset)

    def map(self) -> memoryview:
        """All bytes; they stay for as long as the view."""
        return memoryview(mmap.mmap(self._file.fileno(), self.nbytes, access=mmap.ACCESS_COPY))


def no_room(error: OSError, what: str, nbytes: int) -> errors.CheckpointError:
    """The error for what the temporary folder can't hold.

    Args:
        error: the system's.
        what: was to be held.
        nbytes: of it.
    """
    return errors.CheckpointError(
        f"cannot hold {nbytes / 1e6:.1f} MB of {what} in {tempfile.gettempdir()}: "
        f"{error.strerror or error}; set TMPDIR to a folder with more room"
    )


def _open_all(files: Iterable[Path]) -> tuple[list[mmap.mmap], list[int]]:
    """A map of each file, and a descriptor for reads; raises `OSError`."""
    maps: list[mmap.mmap] = []
    opened: list[int] = []
    try:
        for file in files:
            first = descriptors.open_to_read(file)
            try:
                # Copy-on-write: torch wants writable memory, and the files stay untouched.
                maps.append(mmap.mmap(first, 0, access=mmap.ACCESS_COPY))
                opened.append(descriptors.open_again(file, first))
            finally:
                os.close(first)  # a map has a descriptor of its own
    except OSError:
        _close_all(opened)
        raise
    return maps, opened


def _close_all(opened: Iterable[int]) -> None:
    for descriptor in opened:
        os.close(descriptor)
