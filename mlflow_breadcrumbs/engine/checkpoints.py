"""Checkpoints in safetensors, read lazily as torch's tensors: one file, or shards with an index.

`tensor_files` finds and reads the bytes; a tensor shares them.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from mlflow_breadcrumbs.engine import tensor_files

INDEX_SUFFIX = tensor_files.INDEX_SUFFIX

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


class Checkpoint(tensor_files.TensorFiles):
    """A checkpoint's tensors by name, read lazily from one safetensors file or from shards.

    Open it with `Checkpoint.open`; it is a context manager. Tensors share the memory map: treat
    them as read-only (a write would stay private to this process).
    """

    heads: frozenset[str] = frozenset()
    """The tensors that are known to be a head's; of most checkpoints their configuration tells."""

    def __init__(self, *found: Any) -> None:
        super().__init__(*found)
        self._infos = {
            name: TensorInfo(DTYPES[entry.dtype], entry.shape)
            for name, entry in self._entries.items()
        }

    def info(self, name: str) -> TensorInfo:
        """The dtype and shape of the tensor `name`."""
        return self._infos[name]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`, in place where its bytes are aligned."""
        info = self._infos[name]
        if not info.numel:
            return torch.empty(info.shape, dtype=info.dtype)
        raw: memoryview | bytearray = self.raw(name)
        if np.frombuffer(raw, np.uint8).ctypes.data % info.dtype.itemsize:
            raw = bytearray(raw)
        return torch.frombuffer(raw, dtype=info.dtype).reshape(info.shape)

    def digest_of(self, hexdigests: Mapping[str, str]) -> str:
        """The weights digest, from the hexadecimal SHA-256 of every tensor."""
        return combine_digests(
            (name, self.info(name), content) for name, content in hexdigests.items()
        )


weights_digest = tensor_files.weights_digest
file_digest = tensor_files.file_digest
float_dtypes = tensor_files.float_dtypes


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
    return tensor_files.combine_digests(
        (name, DTYPE_NAMES[info.dtype], info.shape, content) for name, info, content in tensors
    )
