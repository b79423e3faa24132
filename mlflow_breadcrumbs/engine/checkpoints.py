"""Checkpoints in safetensors, read lazily: one file, or shards with an index.

The library `safetensors` judges whether a file is sound; the bytes of a tensor are then read in
place through a memory map, so that a 1.7 GB checkpoint costs nothing until a tensor is used.
"""

import concurrent.futures
import hashlib
import json
import math
import mmap
import os
import stat
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import canonical, descriptors

INDEX_SUFFIX = ".safetensors.index.json"

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "U16": torch.uint16,
        "I16": torch.int16,
        "U32": torch.uint32,
        "I32": torch.int32,
        "U64": torch.uint64,
        "I64": torch.int64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F32": torch.float32,
        "F64": torch.float64,
        "C64": torch.complex64,
    }
)
"""The safetensors names of the dtypes that can be read."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorInfo(NamedTuple):
    """What the header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements; 1 for a 0-dimensional tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the data in bytes."""
        return self.numel * self.dtype.itemsize


class _Place(NamedTuple):
    """Where a tensor's bytes are: an open file's map, and the offset of the first byte in it."""

    file: int
    offset: int


class Checkpoint:
    """A checkpoint's tensors by name, read lazily from one safetensors file or from shards.

    Open it with `Checkpoint.open`; it is a context manager. Tensors share the memory map: treat
    them as read-only (a write would stay private to this process).
    """

    def __init__(
        self,
        path: Path,
        files: list[Path],
        infos: dict[str, TensorInfo],
        places: dict[str, _Place],
    ) -> None:
        self.path = path
        # Copy-on-write maps: torch wants writable memory, and the files stay untouched.
        self._descriptors = [descriptors.open_to_read(file) for file in files]
        self._maps = [mmap.mmap(d, 0, access=mmap.ACCESS_COPY) for d in self._descriptors]
        self._states = [_state(descriptor) for descriptor in self._descriptors]
        self._close = weakref.finalize(self, _close_all, self._descriptors)
        self._infos = dict(sorted(infos.items()))
        self._places = places

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Open a `.safetensors` file, a `*.safetensors.index.json`, or a folder that holds one.

        Raises:
            CheckpointError: the file is missing, damaged, unsafe or not safetensors.
        """
        path = _locate(Path(path))
        files = _shards(path) if path.name.endswith(INDEX_SUFFIX) else {path: None}
        infos: dict[str, TensorInfo] = {}
        places: dict[str, _Place] = {}
        for number, (file, expected) in enumerate(files.items()):
            header, start = _read_header(file)
            if expected is not None and set(header) != expected:
                raise errors.CheckpointError(
                    f"{path} and its shard {file.name} disagree on the tensors in it: "
                    f"{_difference(expected, set(header))}. Make the shards and the index again"
                )
            for name, entry in header.items():
                infos[name] = TensorInfo(DTYPES[entry["dtype"]], tuple(entry["shape"]))
                places[name] = _Place(number, start + entry["data_offsets"][0])
        if not infos:
            raise errors.CheckpointError(f"{path} holds no tensors; nothing can be merged")
        return cls(path, list(files), infos, places)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensor names, sorted."""
        return tuple(self._infos)

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor `name`."""
        return name in self._infos

    def info(self, name: str) -> TensorInfo:
        """The dtype and shape of the tensor `name`."""
        return self._infos[name]

    @property
    def nbytes(self) -> int:
        """The size of all tensors' data in bytes."""
        return sum(info.nbytes for info in self._infos.values())

    def raw(self, name: str) -> memoryview:
        """The little-endian bytes of the tensor `name`, in place."""
        file, offset = self._places[name]
        return memoryview(self._maps[file])[offset : offset + self._infos[name].nbytes]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`, in place where its bytes are aligned."""
        info = self._infos[name]
        if not info.numel:
            return torch.empty(info.shape, dtype=info.dtype)
        raw: memoryview | bytearray = self.raw(name)
        if self._places[name].offset % info.dtype.itemsize:
            raw = bytearray(raw)
        return torch.frombuffer(raw, dtype=info.dtype).reshape(info.shape)

    def read(self, name: str, start: int, out: npt.NDArray[np.uint8]) -> None:
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
        start, stop = offset // mmap.PAGESIZE * mmap.PAGESIZE, offset + self._infos[name].nbytes
        if stop > start and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[file].madvise(mmap.MADV_DONTNEED, start, stop - start)

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

    def __enter__(self) -> "Checkpoint":
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


def _state(descriptor: int) -> tuple[int, int]:
    """What changes when a file is written to: its size and the time of its last change."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _close_all(opened: Iterable[int]) -> None:
    for descriptor in opened:
        os.close(descriptor)


def weights_digest(checkpoint: Checkpoint | str | Path, *, threads: int | None = None) -> str:
    """The weights digest `sha256:…`: independent of file layout, order and sharding.

    It is the SHA-256 of the canonical JSON of `[[name, dtype, shape, hex], …]`, sorted by name,
    where dtype is the safetensors name and hex the SHA-256 of the tensor's little-endian bytes.
    """
    if not isinstance(checkpoint, Checkpoint):
        with Checkpoint.open(checkpoint) as opened:
            return weights_digest(opened, threads=threads)

    def hexdigest(name: str) -> str:
        content = hashlib.sha256(checkpoint.raw(name)).hexdigest()
        checkpoint.release(name)
        return content

    with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        hexdigests = list(pool.map(hexdigest, checkpoint.names))
    return combine_digests(
        (name, checkpoint.info(name), content)
        for name, content in zip(checkpoint.names, hexdigests, strict=True)
    )


def file_digest(path: str | Path) -> str:
    """`sha256:…` of a file's bytes."""
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def float_dtypes(path: str | Path) -> tuple[str, ...]:
    """The safetensors names of a checkpoint's floating-point dtypes, sorted."""
    with Checkpoint.open(path) as checkpoint:
        dtypes = {checkpoint.info(name).dtype for name in checkpoint.names}
    return tuple(sorted(DTYPE_NAMES[dtype] for dtype in dtypes if dtype.is_floating_point))


def state_dict_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """The weights digest of tensors in memory; equal to that of a checkpoint that holds them."""
    return combine_digests(
        (name, TensorInfo(tensor.dtype, tuple(tensor.shape)), tensor_digest(tensor))
        for name, tensor in tensors.items()
    )


def tensor_digest(tensor: torch.Tensor) -> str:
    """The hexadecimal SHA-256 of a tensor's little-endian bytes."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The little-endian bytes of a tensor, without a copy where it can be."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def combine_digests(tensors: Iterable[tuple[str, TensorInfo, str]]) -> str:
    """The weights digest from each tensor's name, dtype, shape and hexadecimal SHA-256."""
    return canonical.digest(
        [
            [name, DTYPE_NAMES[info.dtype], list(info.shape), content]
            for name, info, content in sorted(tensors, key=lambda item: item[0])
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
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        items = list(weight_map.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.CheckpointError(
            f"{index} is not a safetensors index (a JSON object with `weight_map`): {error!r}"
        ) from error
    shards: dict[Path, set[str] | None] = {}
    for name, file in items:
        if not isinstance(file, str) or file != os.path.basename(file) or file in ("", ".", ".."):
            raise errors.CheckpointError(
                f"{index} puts the tensor {name!r} into {file!r}; "
                "a shard must be a file name beside the index"
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
    return shards


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors' header entries, and the offset at which the data starts."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise errors.CheckpointError(f"{path} is not a file; name a .safetensors file")
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise errors.CheckpointError(
            f"cannot read the checkpoint {path}: {error.strerror}"
        ) from error
    if start[:4] == b"PK\x03\x04" or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        raise errors.CheckpointError(
            f"{path} is a PyTorch pickle, not safetensors; a pickle can run code when it is read. "
            "Use `mlflow-breadcrumbs import`, which reads plain tensors out of a .pt safely"
        )
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
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _check_name(path, name)
        if entry["dtype"] not in DTYPES:
            raise errors.CheckpointError(
                f"{path}: the tensor {name!r} has the dtype {entry['dtype']}, which can't be read; "
                f"convert it to one of {', '.join(DTYPES)}"
            )
    return header, 8 + length


def _check_name(path: Path, name: str) -> None:
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
