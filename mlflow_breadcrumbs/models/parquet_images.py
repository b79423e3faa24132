"""The images of a Parquet file, one at a time, without holding the file in memory.

Parquet has no way to one row: a row group is decoded from its start. So the first look at a row
group writes its images, a few at a time, to a temporary file, from which any row is read later, in
any order. In memory are no more than a batch of `ROWS` encoded images and a page of the file, which
its writer chose and Parquet can't divide; on the disk of the temporary files, what was looked at.
"""

import bisect
import dataclasses
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import decoding, image_limits
from mlflow_breadcrumbs.support import confined, descriptors

ROWS = 16
"""Images that are in memory at once while a row group is written out."""
BUFFER = 1 << 20
"""Bytes that are read ahead of them."""


class Spool:
    """Temporary files that grow, one per process; each is gone when nobody uses it any more."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Of those who write."""
        self._file: BinaryIO | None = None
        self._end = 0
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type["Spool"], tuple[()]]:
        """In another process it is empty."""
        return Spool, ()

    def append(self, content: bytes) -> "_Stretch":
        """Write at the end; one thread at a time.

        Raises:
            OSError: there is no room.
        """
        if self._file is None or self._process != os.getpid():  # a fork has the other's file, too
            self._file = tempfile.TemporaryFile(prefix="breadcrumbs-images-")  # noqa: SIM115
            self._end, self._process = 0, os.getpid()
        place = _Stretch(self._file, self._end, len(content))
        view, done = memoryview(content), 0
        while done < len(content):
            done += descriptors.write(self._file.fileno(), view[done:], self._end + done)
        self._end += len(content)
        return place


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """Where an image is in a temporary file."""

    file: BinaryIO
    start: int
    length: int

    def read(self) -> bytes:
        """In any thread, and in a forked process.

        Raises:
            OSError: it can't be read.
        """
        content = bytearray(self.length)
        view, done = memoryview(content), 0
        while done < self.length:
            found = descriptors.read_into(self.file.fileno(), view[done:], self.start + done)
            if not found:
                raise OSError("a temporary file was cut off")
            done += found
        return bytes(content)


class ParquetImages:
    """The column of images of a Parquet file.

    Args:
        path: of the file.
        column: of structs `{bytes, path}`, or of the bytes themselves. A struct without bytes names
            a file beside the Parquet file, or below.
        rows: of each row group, see `row_groups`.
        spool: takes the images.
    """

    def __init__(self, path: Path, column: str, rows: Sequence[int], spool: Spool) -> None:
        self._path, self._column, self._spool = path, column, spool
        self._starts = [sum(rows[:i]) for i in range(len(rows))]
        self._found: dict[int, list[_Stretch | str | None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has a spool of its own."""
        return {**self.__dict__, "_found": {}}

    def read(self, row: int, origin: str) -> bytes:
        """The encoded image of a row.

        Raises:
            TaskError: there is none, it is beyond the limits, or its path leads elsewhere.
            OSError: it can't be read.
        """
        group = bisect.bisect_right(self._starts, row) - 1
        with self._spool.lock:
            if group not in self._found:
                self._found[group] = list(self._written_out(group))
        found = self._found[group][row - self._starts[group]]
        if found is None:
            raise errors.TaskError(f"The image {origin} has neither bytes nor a path.")
        if isinstance(found, str):
            return self._beside(found, origin)
        image_limits.ImageLimits.from_environment().check_bytes(found.length, origin)
        return found.read()

    def _written_out(self, group: int) -> Iterator[_Stretch | str | None]:
        """Where each image of a row group is in the temporary file; or its path, or nothing."""
        import pyarrow as pa
        from pyarrow import parquet

        try:
            # A page at a time: without it, all pages of the row group are read ahead.
            with parquet.ParquetFile(self._path, pre_buffer=False, buffer_size=BUFFER) as file:
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=[self._column]):
                    for value in batch.column(0):
                        cell = value.as_py()
                        content = cell.get("bytes") if isinstance(cell, dict) else cell
                        if isinstance(content, bytes):
                            yield self._spool.append(content)
                        else:
                            named = cell.get("path") if isinstance(cell, dict) else None
                            yield str(named) if named else None
        except (OSError, pa.ArrowException) as error:
            raise errors.TaskError(
                f"The images of '{self._path}' can't be read: {error}. They are written to "
                f"temporary files in '{tempfile.gettempdir()}' (TMPDIR), which needs room for them."
            ) from error

    def _beside(self, name: str, origin: str) -> bytes:
        """A file that a row names, relative to the Parquet file, in its folder or below."""
        target = confined.inside(self._path.parent, name)
        if target is None:
            raise errors.TaskError(
                f"The image {origin} names the file {name!r}, which is not in the folder of the "
                "Parquet file. Put it there, or its bytes into the Parquet file."
            )
        return decoding.read(target)


def row_groups(file: Any) -> tuple[int, ...]:
    """How many rows each row group of a `pyarrow.parquet.ParquetFile` has."""
    return tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
