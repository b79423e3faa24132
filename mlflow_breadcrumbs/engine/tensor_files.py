"""Safetensors files as bytes: names, dtypes, shapes, digests; without torch.

One file, or shards with an index. The library `safetensors` judges whether a file is sound; the
bytes of a tensor are then read in place through a memory map, so that a 1.7 GB checkpoint costs
nothing until a tensor is used. `checkpoints` makes torch's tensors of them; who only needs to know
whether bytes are those that were registered imports this and waits for no torch.
"""

import concurrent.futures
import hashlib
import math
import mmap
import os
import stat
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import safetensors

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import canonical, descriptors, json_documents

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

INDEX_SUFFIX = ".safetensors.index.json"

ITEM_SIZES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "U16": 2,
        "I16": 2,
        "U32": 4,
        "I32": 4,
        "U64": 8,
        "I64": 8,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "F16": 2,
        "BF16": 2,
        "F32": 4,
        "F64": 8,
        "C64": 8,
    }
)
"""Bytes per element, by the safetensors names of the dtypes that can be read."""

TENSORS = 100_000
"""Of a checkpoint at most; the largest language models have some ten thousand."""
SHARDS = 500
"""Of a checkpoint at most; each is a file that is open."""
DIMENSIONS = 32
"""Of a tensor at most."""
NAME = 255
"""Characters of a tensor's name at most, and bytes of a file's name."""
HEADER = 100_000_000
"""Bytes of a header at most, which the library holds it to."""


class TensorEntry(NamedTuple):
    """What the header says of one tensor."""

    dtype: str
    """The safetensors name."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the data in bytes."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    @property
    def is_floating_point(self) -> bool:
        """Whether the elements are real floating-point numbers."""
        return self.dtype.startswith(("F", "BF"))


class _Position(NamedTuple):
    """Where a tensor's bytes are: an open file's map, and the offset of the first byte in it."""

    file: int
    offset: int


class TensorFiles:
    """The bytes of a checkpoint's tensors by name, from one safetensors file or from shards.

    Open it with `TensorFiles.open`; it is a context manager. The bytes are the memory map's: treat
    them as read-only (a write would stay private to this process).
    """

    def __init__(
        self,
        path: Path,
        files: list[Path],
        entries: dict[str, TensorEntry],
        places: dict[str, _Position],
    ) -> None:
        self.path = path
        self._maps, self._descriptors = _open_all(files)
        self._states = [_state(descriptor) for descriptor in self._descriptors]
        self.files = tuple(files)
        self._close = weakref.finalize(self, _close_all, self._descriptors)
        self._entries = dict(sorted(entries.items()))
        self._places = places

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a `.safetensors` file, a `*.safetensors.index.json`, or a folder that holds one.

        Raises:
            CheckpointError: the file is missing, damaged, unsafe or not safetensors.
        """
        path = _locate(Path(path))
        files = _shards(path) if path.name.endswith(INDEX_SUFFIX) else {path: None}
        entries: dict[str, TensorEntry] = {}
        places: dict[str, _Position] = {}
        for number, (file, expected) in enumerate(files.items()):
            header, start = _read_header(file)
            if expected is not None and set(header) != expected:
                raise errors.CheckpointError(
                    f"{path} and its shard {file.name} disagree on the tensors in it: "
                    f"{_difference(expected, set(header))}. Make the shards and the index again"
                )
            for name, entry in header.items():
                entries[name] = TensorEntry(entry["dtype"], tuple(entry["shape"]))
                places[name] = _Position(number, start + entry["data_offsets"][0])
        if not entries:
            raise errors.CheckpointError(f"{path} holds no tensors; nothing can be merged")
        _check_count(path, len(entries))
        try:
            return cls(path, list(files), entries, places)
        except OSError as error:  # too many files are open, or one went meanwhile
            raise errors.CheckpointError(
                f"cannot read the checkpoint {path}: {error.strerror or error}"
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

    @property
    def parameters(self) -> int:
        """The number of all tensors' elements."""
        return sum(math.prod(entry.shape) for entry in self._entries.values())

    @property
    def nbytes(self) -> int:
        """The size of all tensors' data in bytes."""
        return sum(entry.nbytes for entry in self._entries.values())

    def raw(self, name: str) -> memoryview:
        """The little-endian bytes of the tensor `name`, in place."""
        file, offset = self._places[name]
        return memoryview(self._maps[file])[offset : offset + self._entries[name].nbytes]

    def read(self, name: str, start: int, out: "npt.NDArray[np.uint8]") -> None:
        """Copy bytes of the tensor `name`, from its byte `start` on, until `out` is full.

        It costs less than touching the pages of the map for the first time. Any thread may call it.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
        """
        file, offset = self._places[name]
        done = 0
        while done < out.size:
            count = descriptors.read_into(
                self._descriptors[file], out[done:].data, offset + start + done
            )
            if count == 0:
                raise errors.CheckpointError(
                    f"{self.path} ended within the tensor {name!r}; something else is writing to it"
                )
            done += count

    def release(self, name: str) -> None:
        """Tell the kernel that the pages of the tensor `name` are not needed any more."""
        file, offset = self._places[name]
        start, stop = offset // mmap.PAGESIZE * mmap.PAGESIZE, offset + self._entries[name].nbytes
        if stop > start and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[file].madvise(mmap.MADV_DONTNEED, start, stop - start)

    @property
    def file_states(self) -> tuple[tuple[str, int, int], ...]:
        """Name, bytes and time of the last change (ns) of each file, as it was opened."""
        pairs = zip(self.files, self._states, strict=True)
        return tuple((file.name, *state) for file, state in pairs)

    def check_unchanged(self) -> None:
        """Raise `IntegrityError` if a file was written to since it was opened."""
        if [_state(descriptor) for descriptor in self._descriptors] != self._states:
            raise errors.IntegrityError(
                f"{self.path} was written to while it was read; let the other program finish, "
                "and run this again"
            )

    def close(self) -> None:
        """Let go of the memory maps; tensors that are still held stay valid."""
        self._maps = []
        self._close()

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


def _state(descriptor: int) -> tuple[int, int]:
    """What changes when a file is written to: its size and the time of its last change."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _close_all(opened: Iterable[int]) -> None:
    for descriptor in opened:
        os.close(descriptor)


def weights_digest(files: TensorFiles | str | Path, *, threads: int | None = None) -> str:
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


def float_dtypes(path: str | Path) -> tuple[str, ...]:
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


def _locate(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{INDEX_SUFFIX}")) or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise errors.CheckpointError(
            f"the folder {path} holds {len(found)} checkpoints "
            f"({', '.join(file.name for file in found) or 'no .safetensors'}); name one file"
        )
    return found[0]


def _shards(index: Path) -> dict[Path, set[str] | None]:
    """The shard files of an index and the tensors that each must hold."""
    content = json_documents.read(index, str(index), errors.CheckpointError)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise errors.CheckpointError(
            f"{index} is not a safetensors index: a JSON object with `weight_map`"
        )
    _check_count(index, len(weight_map))
    shards: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or file != os.path.basename(file) or file in ("", ".", ".."):
            raise errors.CheckpointError(
                f"{index} puts the tensor {name!r} into {file!r}; "
                "a shard must be a file name beside the index"
            )
        if len(os.fsencode(file)) > NAME:
            raise errors.CheckpointError(
                f"{index} names a shard of {len(file):,} characters ({file[:40]}…), which no file "
                "system holds; make the shards and the index again"
            )
        path = index.with_name(file)
        if path.is_symlink():
            raise errors.CheckpointError(
                f"{index} names the shard {file!r}, which is a symlink; "
                "copy the shard itself beside the index"
            )
        if not path.exists():
            raise errors.CheckpointError(
                f"{index} names the shard {file!r}, which is missing; complete the download"
            )
        names = shards.setdefault(path, set())
        assert names is not None
        names.add(name)
    if len(shards) > SHARDS:
        raise errors.CheckpointError(
            f"{index} names {len(shards):,} shards, {SHARDS} is the most; make larger shards"
        )
    return shards


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors' header entries, and the offset at which the data starts."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise errors.CheckpointError(f"{path} is not a file; name a .safetensors file")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise errors.CheckpointError(
            f"cannot read the checkpoint {path}: {error.strerror}"
        ) from error
    # A header of 640 bytes begins as a pickle does; but JSON follows its length.
    pickles = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")
    if start.startswith(pickles) and start[8:] != b"{":
        raise errors.CheckpointError(
            f"{path} is a PyTorch pickle, not safetensors; a pickle can run code when it is read. "
            "Use `mlflow-breadcrumbs import`, which reads plain tensors out of a .pt safely"
        )
    with path.open("rb") as file:  # some hundred thousand tensors take minutes
        count = file.read(8 + HEADER).count(b'"data_offsets"')
    _check_count(path, count)
    try:
        # The library holds lengths, offsets, shapes and dtypes against the file's size.
        with safetensors.safe_open(path, framework="np"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise errors.CheckpointError(
            f"{path} ({size} bytes) is not a sound safetensors file: {error}. "
            "Copy or download it again"
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json_documents.parse(
            file.read(length), f"the header of {path}", errors.CheckpointError
        )
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _check_name(path, name)
        _check_shape(path, name, entry["shape"])
        if entry["dtype"] not in ITEM_SIZES:
            raise errors.CheckpointError(
                f"{path}: the tensor {name!r} has the dtype {entry['dtype']}, which can't be read; "
                f"convert it to one of {', '.join(ITEM_SIZES)}"
            )
    return header, 8 + length


def _check_count(path: Path, tensors: int) -> None:
    if tensors > TENSORS:
        raise errors.CheckpointError(
            f"{path} holds {tensors:,} tensors, {TENSORS:,} is the most: no model has so many"
        )


def _check_shape(path: Path, name: str, shape: list[int]) -> None:
    """An empty tensor may have any other dimensions; libraries multiply them all the same."""
    if (
        len(shape) > DIMENSIONS
        or math.prod(side for side in shape if side) > json_documents.LARGEST
    ):
        text = str(shape)
        text = text if len(text) <= 60 else f"{text[:57]}…"
        raise errors.CheckpointError(
            f"{path}: the tensor {name!r} has the shape {text}, "
            f"which no library holds: at most {DIMENSIONS} dimensions, of less than 2⁵³ elements"
        )


def _check_name(path: Path, name: str) -> None:
    if len(name) > NAME:
        raise errors.CheckpointError(
            f"{path} has a tensor name of {len(name):,} characters ({name[:40]!r}…); {NAME} is the "
            "most. Rename the tensor"
        )
    if not name or "\0" in name or ".." in name.replace("\\", "/").split("/"):
        raise errors.CheckpointError(
            f"{path} has a tensor named {name!r}; "
            "a name must not be empty, hold a NUL or step out of a folder. Rename the tensor"
        )


def _difference(expected: set[str], found: set[str]) -> str:
    parts = []
    if expected - found:
        parts.append(f"missing {', '.join(sorted(expected - found))}")
    if found - expected:
        parts.append(f"not in the index {', '.join(sorted(found - expected))}")
    return "; ".join(parts)
