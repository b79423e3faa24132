"""Safetensors files as bytes: names, dtypes, shapes, digests; without torch.

One file, or shards with an index, on a disk or in an object store. `headers` finds the tensors; the
bytes of a file on a disk are then read in place through a memory map, so that a 1.7 GB checkpoint
costs nothing until a tensor is used, and those in an object store are fetched when they are wanted
(`remote`). `checkpoints` makes torch's tensors of them; who only needs to know whether bytes are
those that were registered imports this and waits for no torch.
"""

import concurrent.futures
import hashlib
import math
import os
import posixpath
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import bundles, headers, stored_bytes
from mlflow_breadcrumbs.engine.headers import TensorEntry
from mlflow_breadcrumbs.engine.remote import opening, stores
from mlflow_breadcrumbs.support import canonical, intake, json_documents

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

INDEX_SUFFIX = headers.INDEX_SUFFIX


class TensorFiles:
    """The bytes of a checkpoint's tensors by name, from one safetensors file or from shards.

    Open it with `TensorFiles.open`; it is a context manager. The bytes are the memory map's: treat
    them as read-only (a write would stay private to this process).

    Args:
        location: how messages and plans name the checkpoint: a path, or an address.
        found: what its headers say.
        content: the files' bytes.
    """

    def __init__(
        self, location: str, found: headers.CheckpointHeaders, content: stored_bytes.StoredBytes
    ) -> None:
        self.location = location
        self._content = content
        self._entries = dict(sorted(found.entries.items()))
        self._places = found.places
        self._folder: stores.Folder | None = None
        self._prefixes = found.prefixes

    @classmethod
    def open(cls, location: "str | Path | stores.Target") -> Self:
        """Open a `.safetensors` file, a `*.safetensors.index.json`, or a folder that holds one.

        Several checkpoints are read as one where `bundles` says so.

        Args:
            location: a path, an address as `s3://bucket/key`, or what that means; see
                `remote.stores`.

        Raises:
            CheckpointError: the file is missing, damaged, unsafe or not safetensors.
        """
        place = stores.of(location) if stores.is_address(location) else location
        if isinstance(place, stores.Target):
            remote = cls(*opening.find(place))
            remote._folder = place.folder
            return remote
        location = place
        found = headers.read(location)
        try:
            return cls(str(found.path), found, stored_bytes.Mapped(found.files))
        except OSError as error:  # too many files are open, or one went meanwhile
            raise errors.CheckpointError(
                f"cannot read the checkpoint {found.path}: {error.strerror or error}"
            ) from error

    @property
    def names(self) -> tuple[str, ...]:
        """The tensor names, sorted."""
        return tuple(self._entries)

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor `name`."""
        return name in self._entries

    def entry(self, name: str) -> TensorEntry:
        """The dtype and shape of the tensor `name`."""
        return self._entries[name]

    def place(self, name: str) -> headers.Position:
        """Where the bytes of the tensor `name` are in `content`."""
        return self._places[name]

    @property
    def content(self) -> stored_bytes.StoredBytes:
        """The files' bytes, for who lays this checkpoint over another; see `overlays`."""
        return self._content

    def beside(self, name: str) -> bytes | None:
        """A small file that lies beside the checkpoint; `None` where there is none of that name.

        Args:
            name: of the file, or its path from the checkpoint's folder.

        Raises:
            CheckpointError: it can't be read, or is not small.
        """
        if self._folder is not None:
            place, file = posixpath.split(name)
            folder = self._folder.related(place) if place else self._folder
            there = folder is not None and folder.size(file) is not None
            return stores.small(folder, file) if folder is not None and there else None
        several = bundles.parse(self.location)
        main = Path(several.folder, several.names[0]) if several else Path(self.location)
        path = main.parent / name
        if not path.is_file():
            return None
        return intake.content(path, str(path), errors.CheckpointError, json_documents.BYTES)

    @property
    def parameters(self) -> int:
        """The number of all tensors' elements."""
        return sum(math.prod(entry.shape) for entry in self._entries.values())

    @property
    def nbytes(self) -> int:
        """The size of all tensors' data in bytes."""
        return sum(entry.nbytes for entry in self._entries.values())

    @property
    def file_bytes(self) -> tuple[int, ...]:
        """Bytes of tensors in each file."""
        found = [0] * len(self.file_states)
        for name, place in self._places.items():
            found[place.file] += self._entries[name].nbytes
        return tuple(found)

    def prefix(self, name: str) -> str:
        """What stands before the name that the tensor `name` has in its file; see `bundles`."""
        return self.prefixes[self._places[name].file]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The same by file; those of a checkpoint lie side by side."""
        return self._prefixes or ("",) * len(self.file_states)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, where they are on this machine's disks."""
        return self._content.files

    @property
    def is_remote(self) -> bool:
        """Whether the bytes are fetched from elsewhere."""
        return not self.files

    def raw(self, name: str) -> memoryview:
        """The little-endian bytes of the tensor `name`, in place."""
        return self._content.raw(*self._places[name], self._entries[name].nbytes)

    def read(self, name: str, start: int, out: "npt.NDArray[np.uint8]") -> None:
        """Copy bytes of the tensor `name`, from its byte `start` on, until `out` is full.

        It costs less than touching the pages of the map for the first time. Any thread may call it.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
        """
        file, offset = self._places[name]
        done = 0
        while done < out.size:
            count = self._content.read_into(file, offset + start + done, out[done:].data)
            if count == 0:
                raise errors.CheckpointError(
                    f"{self.location} ended within the tensor {name!r}; something else is writing "
                    "to it"
                )
            done += count

    def held_with(self, name: str) -> int:
        """Bytes that are on this machine's disk for the tensor `name` while it is read."""
        return self._content.held(*self._places[name], self._entries[name].nbytes)

    def fetch(self, name: str) -> None:
        """Have the bytes of the tensor `name` come here, if they are elsewhere; returns at once."""
        self._content.fetch(*self._places[name], self._entries[name].nbytes)

    def release(self, name: str) -> None:
        """Say that the bytes of the tensor `name` are not needed for now."""
        self._content.release(*self._places[name], self._entries[name].nbytes)

    @property
    def file_states(self) -> tuple[stored_bytes.FileState, ...]:
        """What was known of each file as it was opened."""
        return self._content.states

    def check_unchanged(self) -> None:
        """Raise `IntegrityError` if a file was written to since it was opened."""
        if self._content.states_now() != self._content.states:
            raise errors.IntegrityError(
                f"{self.location} was written to while it was read; let the other program finish, "
                "and run this again"
            )

    def close(self) -> None:
        """Let go of the files; tensors that are still held stay valid."""
        self._content.close()

    def __enter__(self) -> Self:
        """Return the checkpoint itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def weights_digest(
    files: TensorFiles | str | Path | stores.Target, *, threads: int | None = None
) -> str:
    """The weights digest `sha256:…`: independent of file layout, order and sharding.

    It is the SHA-256 of the canonical JSON of `[[name, dtype, shape, hex], …]`, sorted by name,
    where dtype is the safetensors name and hex the SHA-256 of the tensor's little-endian bytes.
    """
    if not isinstance(files, TensorFiles):
        with TensorFiles.open(files) as opened:
            return weights_digest(opened, threads=threads)

    def hexdigest(name: str) -> str:
        content = hashlib.sha256(files.raw(name)).hexdigest()
        files.release(name)
        return content

    with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        hexdigests = list(pool.map(hexdigest, files.names))
    return combine_digests(
        (name, *files.entry(name), content)
        for name, content in zip(files.names, hexdigests, strict=True)
    )


def file_digest(path: str | Path) -> str:
    """`sha256:…` of a file's bytes."""
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def float_dtypes(path: str | Path | stores.Target) -> tuple[str, ...]:
    """The safetensors names of a checkpoint's floating-point dtypes, sorted."""
    with TensorFiles.open(path) as files:
        entries = [files.entry(name) for name in files.names]
    return tuple(sorted({entry.dtype for entry in entries if entry.is_floating_point}))


def combine_digests(tensors: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """The weights digest from each tensor's name, dtype, shape and hexadecimal SHA-256."""
    return canonical.digest(
        [
            [name, dtype, list(shape), content]
            for name, dtype, shape, content in sorted(tensors, key=lambda item: item[0])
        ]
    )
