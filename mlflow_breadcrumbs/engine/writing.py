"""Writing a checkpoint tensor by tensor: planned first, under temporary names, then renamed.

`safetensors.torch.save_file` wants all tensors at once; a merge has one at a time. The format is
small enough to write directly: 8 bytes of header length, a JSON header, the tensors' bytes.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, headers
from mlflow_breadcrumbs.support import descriptors, json_documents


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
class OutputShard:
    """One output file: its final name, its header, and where each tensor's bytes go."""

    name: str
    header: bytes
    offsets: dict[str, int] = dataclasses.field(hash=False)
    """By tensor, where its bytes begin."""
    size: int
    """Bytes of the whole file."""


class ShardWriter:
    """Writes files of a checkpoint into a folder, so that they appear whole or not at all.

    A context manager: leaving it without an error syncs and renames the files; leaving it by an
    error removes them. `write` may be called from several threads.

    Args:
        folder: is made where it is missing.
        shards: what `layout` gave, or some of it.
        infos: the tensors of these shards, with dtype and shape.
        target: what messages name.

    Raises:
        CheckpointError: the disk is full or read-only.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[OutputShard],
        infos: Mapping[str, checkpoints.TensorInfo],
        target: Path,
    ) -> None:
        self._folder = folder
        self._shards = tuple(shards)
        self._infos = dict(infos)
        self._target = target
        self._shard_of = {name: i for i, shard in enumerate(self._shards) for name in shard.offsets}
        self._digests: dict[str, str] = {}
        self._suffix = f"{secrets.token_hex(4)}.tmp"
        self._files: list[int] = []
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        """Create the files at their full size, so that a full disk is found before any work."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for shard in self._shards:
                temporary = self._folder / f".{shard.name}.{self._suffix}"
                file = descriptors.create(temporary)
                self._made.append(temporary)
                self._files.append(file)
                descriptors.reserve(file, shard.size, self._folder)
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
    def hexdigests(self) -> Mapping[str, str]:
        """The SHA-256 of each tensor that was announced."""
        return self._digests

    @property
    def weights_digest(self) -> str:
        """The weights digest of what was written; every tensor must have been."""
        return _weights_digest(self._infos, self._digests)

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
        for shard, temporary in zip(self._shards, self._made, strict=True):
            os.replace(temporary, self._folder / self.final_name(shard))

    def final_name(self, shard: OutputShard) -> str:
        """What a file is called once it is whole."""
        return shard.name

    def _close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files = []

    def _discard(self) -> None:
        self._close()
        for temporary in self._made:
            temporary.unlink(missing_ok=True)

    def _explain(self, error: OSError) -> errors.CheckpointError:
        return explain(error, self._target, sum(shard.size for shard in self._shards))


class CheckpointWriter(ShardWriter):
    """Writes all tensors of a checkpoint, in any order; it appears whole or not at all.

    A context manager: leaving it without an error syncs and renames the files (an index last);
    leaving it by an error removes them.

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
        path = Path(path)
        check_output(path, overwrite=overwrite)
        staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        super().__init__(staging, layout(path.name, infos, max_shard_size), infos, path)

    @property
    def output(self) -> Path:
        """The path to open: the file, or the index of the shards."""
        return output_path(self._target, self._shards)

    def _commit(self) -> None:
        super()._commit()
        publish({shard: self._folder / shard.name for shard in self._shards}, self._target)

    def _discard(self) -> None:
        super()._discard()
        shutil.rmtree(self._folder, ignore_errors=True)


def write_all(
    path: Path,
    found: checkpoints.Checkpoint,
    names: Mapping[str, str] | None = None,
    *,
    max_shard_size: int | None = None,
) -> Path:
    """Write tensors of a checkpoint as one of its own; the file, or the index of its shards.

    Args:
        path: as for `CheckpointWriter`.
        found: open; it may be made of others.
        names: by the name in the new checkpoint, that of the tensor; `None` writes all as they are.
        max_shard_size: bytes of tensors per file at most; `None` writes one.

    Raises:
        CheckpointError: it can't be written.
    """
    taken = {name: name for name in found.names} if names is None else names
    infos = {name: found.info(own) for name, own in taken.items()}
    with CheckpointWriter(path, infos, max_shard_size=max_shard_size) as writer:
        for name, own in taken.items():
            writer.write(name, found.tensor(own))
            found.release(own)
    return writer.output


def check_suffix(path: Path) -> None:
    """Raise `CheckpointError` unless the path ends as a checkpoint's must."""
    if path.suffix != ".safetensors":
        raise errors.CheckpointError(f"the output {path} must end in .safetensors")


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise `CheckpointError` unless a checkpoint can get this path."""
    check_suffix(path)
    for target in (path, output_file(path, sharded=True)):
        if target.exists() and not overwrite:
            raise errors.CheckpointError(
                f"the output {target} exists; name another file or overwrite it (--overwrite)"
            )


def check_apart(
    inputs: Iterable[checkpoints.Checkpoint], path: Path, shards: Sequence[OutputShard]
) -> None:
    """Raise `CheckpointError` for an output of which a file is an input's, but for one over one.

    A single file is replaced at once. Several are not: a merge that is stopped then would leave an
    input that is half the output.

    Args:
        inputs: what is read.
        path: the output, `….safetensors`.
        shards: all of the output.
    """
    files = _files_of(path) | {path.with_name(shard.name) for shard in shards}
    for checkpoint in inputs:
        own = checkpoint.files
        shared = [file for file in own if any(_same(file, other) for other in files)]
        if shared and (len(shards) > 1 or len(own) > 1 or not _same(own[0], path)):
            raise errors.CheckpointError(
                f"the output {path} would replace {shared[0]}, which is read: after a stop on the "
                "way an input would be lost. Write to another file"
            )


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def output_path(path: Path, shards: Sequence[OutputShard]) -> Path:
    """The path to open: the file, or the index of its shards."""
    return output_file(path, sharded=len(shards) > 1)


def output_file(path: Path, *, sharded: bool) -> Path:
    """What is opened of an output `….safetensors`: itself, or the index of its shards."""
    return path.with_name(path.stem + checkpoints.INDEX_SUFFIX) if sharded else path


def is_shard(name: str, output: str) -> bool:
    """Whether a file is named as a shard of an output `….safetensors` is."""
    stem = re.escape(output.removesuffix(".safetensors"))
    return re.fullmatch(stem + r"-\d{5}-of-\d{5}\.safetensors", name) is not None


def publish(files: Mapping[OutputShard, Path], path: Path) -> Path:
    """Move the whole files of a checkpoint to where they belong, the index last.

    What an output of before has more is removed: nobody shall take a part of it for one of this. A
    call that was stopped may be made again: what is not where it was has been moved.

    Args:
        files: all of the checkpoint, and where they are.
        path: the output, `….safetensors`.

    Returns:
        The path to open.

    Raises:
        OSError: a file can't be moved.
    """
    older = _files_of(path)
    for shard, file in files.items():
        if file.exists():
            os.replace(file, path.with_name(shard.name))
    output = output_path(path, list(files))
    if len(files) > 1:
        temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
        temporary.write_bytes(index(list(files)))
        os.replace(temporary, output)
    for file in older - {output, *(path.with_name(shard.name) for shard in files)}:
        file.unlink(missing_ok=True)
    descriptors.sync_folder(path.parent)
    return output


def _files_of(path: Path) -> set[Path]:
    """The files of an output that is there: the one, or the index and the shards it names."""
    found = {file for file in (path, output_file(path, sharded=True)) if file.is_file()}
    with contextlib.suppress(errors.CheckpointError, KeyError, AttributeError, TypeError):
        listed = json_documents.read(
            output_file(path, sharded=True), "the index", errors.CheckpointError
        )
        named = set(listed["weight_map"].values()) if isinstance(listed, dict) else set()
        found |= {path.with_name(name) for name in named if is_shard(str(name), path.name)}
    return found


def explain(error: OSError, path: Path, nbytes: int) -> errors.CheckpointError:
    """The error for an output that can't be written.

    Args:
        error: the system's.
        path: the output.
        nbytes: that it needs.
    """
    remedy = "write to another folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(_existing(path.parent)).free
        remedy = (
            f"it needs {nbytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
            "make room or write to another disk"
        )
    return errors.CheckpointError(f"cannot write {path}: {error.strerror or error}; {remedy}")


def _weights_digest(
    infos: Mapping[str, checkpoints.TensorInfo], hexdigests: Mapping[str, str]
) -> str:
    return checkpoints.combine_digests(
        (name, info, hexdigests[name]) for name, info in infos.items()
    )


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def layout(
    name: str, infos: Mapping[str, checkpoints.TensorInfo], max_shard_size: int | None
) -> list[OutputShard]:
    """Put the tensors, widest dtype first so that all are aligned, into as few files as fit.

    Args:
        name: of the output, `….safetensors`.
        infos: every tensor, with dtype and shape.
        max_shard_size: see `CheckpointWriter`.

    Raises:
        CheckpointError: there would be more shards than are read.
    """
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
    if len(groups) > headers.SHARDS:
        raise errors.CheckpointError(
            f"shards of {max_shard_size:,} bytes would be {len(groups):,} files, "
            f"{headers.SHARDS} is the most; allow larger shards (--max-shard-size)"
        )
    stem = name.removesuffix(".safetensors")
    return [
        _shard(
            name if len(groups) == 1 else f"{stem}-{number:05}-of-{len(groups):05}.safetensors",
            {tensor: infos[tensor] for tensor in group},
        )
        for number, group in enumerate(groups, start=1)
    ]


def _shard(name: str, infos: Mapping[str, checkpoints.TensorInfo]) -> OutputShard:
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
    return OutputShard(
        name=name,
        header=len(text).to_bytes(8, "little") + text,
        offsets={tensor: start + offset for tensor, offset in ends.items()},
        size=start + end,
    )


def index(shards: Sequence[OutputShard]) -> bytes:
    """The index of some shards, as libraries read it."""
    weight_map = {name: shard.name for shard in shards for name in shard.offsets}
    total = sum(shard.size - 8 - int.from_bytes(shard.header[:8], "little") for shard in shards)
    return json.dumps(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
        indent=2,
    ).encode()
