"""Writing a checkpoint tensor by tensor: planned first, under temporary names, then renamed.

`safetensors.torch.save_file` wants all tensors at once; a merge has one at a time. The format is
small enough to write directly: 8 bytes of header length, a JSON header, the tensors' bytes.
"""

import dataclasses
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.support import descriptors


class Writer(Protocol):
    """Takes the tensors of a merge, in any order and from any thread."""

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write the tensor `name` whole."""
        ...

    def write_part(self, name: str, start: int, content: memoryview) -> None:
        """Write bytes of the tensor `name` from its byte `start` on; `announce` its digest too."""
        ...

    def announce(self, name: str, hexdigest: str) -> None:
        """Record the hexadecimal SHA-256 of the tensor `name`, all of whose bytes are written."""
        ...


class MemoryWriter:
    """A `Writer` that keeps the tensors; a second merge into it overwrites them in place.

    Args:
        infos: every tensor that will be written, with dtype and shape.
    """

    def __init__(self, infos: Mapping[str, checkpoints.TensorInfo]) -> None:
        self._infos = dict(infos)
        self._tensors = {
            name: torch.empty(info.shape, dtype=info.dtype) for name, info in infos.items()
        }
        self._bytes = {name: checkpoints.tensor_bytes(t) for name, t in self._tensors.items()}
        self._digests: dict[str, str] = {}

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """See `Writer.write`."""
        content = checkpoints.tensor_bytes(tensor)
        self.write_part(name, 0, content)
        self.announce(name, hashlib.sha256(content).hexdigest())

    def write_part(self, name: str, start: int, content: memoryview) -> None:
        """See `Writer.write_part`."""
        self._bytes[name][start : start + len(content)] = content

    def announce(self, name: str, hexdigest: str) -> None:
        """See `Writer.announce`."""
        self._digests[name] = hexdigest

    @property
    def weights_digest(self) -> str:
        """The weights digest of what was written; every tensor must have been."""
        return _weights_digest(self._infos, self._digests)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name; the next merge overwrites them."""
        return self._tensors


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One output file: its final name, its header, and where each tensor's bytes go."""

    name: str
    header: bytes
    offsets: dict[str, int]
    size: int


class CheckpointWriter:
    """Writes the tensors of a checkpoint, in any order, so that it appears whole or not at all.

    A context manager: leaving it without an error syncs and renames the files (an index last);
    leaving it by an error removes them. `write` may be called from several threads.

    Args:
        path: the output file, `….safetensors`; several shards are named
            `…-00001-of-00003.safetensors` and come with `….safetensors.index.json`.
        infos: every tensor that will be written, with dtype and shape.
        max_shard_size: bytes of tensor data in a file at most (a larger tensor has its own file);
            `None` writes one file.
        overwrite: replace an output that exists.

    Raises:
        CheckpointError: the output exists, or the disk is full or read-only.
    """

    def __init__(
        self,
        path: str | Path,
        infos: Mapping[str, checkpoints.TensorInfo],
        *,
        max_shard_size: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".safetensors":
            raise errors.CheckpointError(f"the output {self.path} must end in .safetensors")
        self._infos = dict(infos)
        self._shards = _plan(self.path.name, self._infos, max_shard_size)
        self._index = _index(self._shards, self._infos) if len(self._shards) > 1 else None
        self._shard_of = {name: i for i, shard in enumerate(self._shards) for name in shard.offsets}
        self._digests: dict[str, str] = {}
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        self._files: list[int] = []
        for target in (self.path, self.path.with_name(self.path.stem + checkpoints.INDEX_SUFFIX)):
            if target.exists() and not overwrite:
                raise errors.CheckpointError(
                    f"the output {target} exists; name another file or overwrite it (--overwrite)"
                )

    def __enter__(self) -> "CheckpointWriter":
        """Create the files at their full size, so that a full disk is found before any work."""
        try:
            self._temporary.mkdir(parents=True)
            for shard in self._shards:
                target = self._temporary / shard.name
                file = descriptors.create(target)
                self._files.append(file)
                descriptors.reserve(file, shard.size, self._temporary)
                descriptors.write(file, shard.header, 0)
        except OSError as error:
            self._discard()
            raise self._explain(error) from error
        return self

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write the tensor `name`; dtype and shape must be those announced."""
        info = self._infos[name]
        if (tensor.dtype, tuple(tensor.shape)) != (info.dtype, info.shape):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, announced as {info}")
        content = checkpoints.tensor_bytes(tensor)
        self.write_part(name, 0, content)
        self.announce(name, hashlib.sha256(content).hexdigest())

    def write_part(self, name: str, start: int, content: memoryview) -> None:
        """Write bytes of the tensor `name` from its byte `start` on; `announce` its digest too."""
        number = self._shard_of[name]
        offset = self._shards[number].offsets[name] + start
        try:
            while content:
                written = descriptors.write(self._files[number], content, offset)
                content, offset = content[written:], offset + written
        except OSError as error:
            raise self._explain(error) from error

    def announce(self, name: str, hexdigest: str) -> None:
        """Record the hexadecimal SHA-256 of the tensor `name`, all of whose bytes are written."""
        self._digests[name] = hexdigest

    @property
    def weights_digest(self) -> str:
        """The weights digest of what was written; every tensor must have been."""
        return _weights_digest(self._infos, self._digests)

    @property
    def output(self) -> Path:
        """The path to open: the file, or the index of the shards."""
        if self._index is None:
            return self.path
        return self.path.with_name(self.path.stem + checkpoints.INDEX_SUFFIX)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Rename into place, or remove everything."""
        try:
            if error is None:
                self._commit()
        except OSError as failure:
            raise self._explain(failure) from failure
        finally:
            self._discard()

    def _commit(self) -> None:
        missing = sorted(set(self._infos) - set(self._digests))
        if missing:
            raise ValueError(f"never written: {', '.join(missing)}")
        for file in self._files:
            os.fsync(file)
        self._close()  # Windows renames no open file
        names = [shard.name for shard in self._shards]
        if self._index is not None:
            index = self._temporary / self.output.name
            index.write_bytes(self._index)
            names.append(index.name)
        for name in names:
            os.replace(self._temporary / name, self.path.with_name(name))
        descriptors.sync_folder(self.path.parent)

    def _close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files = []

    def _discard(self) -> None:
        self._close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _explain(self, error: OSError) -> errors.CheckpointError:
        remedy = "write to another folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = sum(shard.size for shard in self._shards)
            free = shutil.disk_usage(_existing(self.path.parent)).free
            remedy = (
                f"it needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
                "make room or write to another disk"
            )
        return errors.CheckpointError(
            f"cannot write {self.path}: {error.strerror or error}; {remedy}"
        )


def _weights_digest(
    infos: Mapping[str, checkpoints.TensorInfo], hexdigests: Mapping[str, str]
) -> str:
    return checkpoints.combine_digests(
        (name, info, hexdigests[name]) for name, info in infos.items()
    )


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _plan(
    name: str, infos: Mapping[str, checkpoints.TensorInfo], max_shard_size: int | None
) -> list[_Shard]:
    """Put the tensors, widest dtype first so that all are aligned, into as few files as fit."""
    order = sorted(infos, key=lambda tensor: (-infos[tensor].dtype.itemsize, tensor))
    groups: list[list[str]] = []
    room = 0
    for tensor in order:
        nbytes = infos[tensor].nbytes
        if not groups or (max_shard_size is not None and nbytes > room):
            groups.append([])
            room = max_shard_size or 0
        groups[-1].append(tensor)
        room -= nbytes
    stem = name.removesuffix(".safetensors")
    return [
        _shard(
            name if len(groups) == 1 else f"{stem}-{number:05}-of-{len(groups):05}.safetensors",
            {tensor: infos[tensor] for tensor in group},
        )
        for number, group in enumerate(groups, start=1)
    ]


def _shard(name: str, infos: Mapping[str, checkpoints.TensorInfo]) -> _Shard:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ends: dict[str, int] = {}
    end = 0
    for tensor, info in infos.items():
        start, end = end, end + info.nbytes
        ends[tensor] = start
        header[tensor] = {
            "dtype": checkpoints.DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return _Shard(
        name=name,
        header=len(text).to_bytes(8, "little") + text,
        offsets={tensor: start + offset for tensor, offset in ends.items()},
        size=start + end,
    )


def _index(shards: list[_Shard], infos: Mapping[str, checkpoints.TensorInfo]) -> bytes:
    weight_map = {name: shard.name for shard in shards for name in shard.offsets}
    total = sum(info.nbytes for info in infos.values())
    return json.dumps(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
        indent=2,
    ).encode()
