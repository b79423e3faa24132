"""Where a merge in shards keeps its parts until all are there: on a disk or in a store.

Both are used in the same way. On a disk a shard is computed where it stays; for a store it is
computed in a temporary folder, and goes up in parts.
"""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import writing
from mlflow_breadcrumbs.engine.remote import stores
from mlflow_breadcrumbs.support import intake, json_documents, scratch, wording

TRIES, PAUSE = 10, 0.2
"""How often a folder is removed that somebody still writes into, with so many seconds between."""


class ShardPlace(Protocol):
    """The folder of a plan's shards and notes, and the way from there to the output."""

    def __str__(self) -> str:
        """How messages name it."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file of the folder; `None` where there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all.

        Raises:
            CheckpointError: it can't be written.
        """
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file of the folder; `None` where there is none."""
        ...

    def file(self, name: str) -> str:
        """Where a file of the folder is, to be opened as a checkpoint."""
        ...

    def final(self, name: str) -> str:
        """Where a file of the output is."""
        ...

    def computing(self, nbytes: int) -> contextlib.AbstractContextManager[Path]:
        """A folder on this machine; the checkpoints that are in it at the end are in this one.

        Args:
            nbytes: that are going to be written there.

        Raises:
            CheckpointError: there is no room for them, or they can't be put where they belong.
        """
        ...

    def publish(self, files: Mapping[writing.OutputShard, str]) -> Path | str:
        """Move shards to where they belong, the index last; see `writing.publish`."""
        ...

    def check_output(self, *, overwrite: bool) -> None:
        """Raise `CheckpointError` unless a checkpoint can get the output's name."""
        ...

    def has_output(self, *, sharded: bool) -> bool:
        """Whether there is an output: the file, or the index of its shards."""
        ...

    def clear(self) -> None:
        """Remove the folder, and all that is in it."""
        ...


def of(output: str, folder: str) -> ShardPlace:
    """The place for a plan's parts.

    Args:
        output: `….safetensors`, a path or an address.
        folder: the name of the folder beside it.

    Raises:
        CheckpointError: nothing can be written to such an address.
    """
    if stores.is_address(output):
        if stores.normal(output).startswith(("http://", "https://")):
            raise errors.CheckpointError(
                f"the output {output} is a page of the web, which can only be read; write to a "
                "disk or to an object store"
            )
        parent, name = output.rsplit("/", 1)
        return _Stored(stores.ObjectFolder(parent), name, folder)
    return OnDisk(Path(output), Path(output).with_name(folder))


class OnDisk:
    """A folder on a disk, which all workers mount.

    Args:
        output: the path of the merged checkpoint.
        path: of the folder.
    """

    def __init__(self, output: Path, path: Path) -> None:
        self.path = path
        self._output = output

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes | None:
        """See `ShardPlace.read`."""
        file = self.path / name
        if not file.exists():
            return None
        return intake.content(file, str(file), errors.MergeError, json_documents.BYTES)

    def write(self, name: str, content: bytes) -> None:
        """See `ShardPlace.write`."""
        temporary = self.path / f".{name}.{secrets.token_hex(4)}.tmp"
        try:
            temporary.write_bytes(content)
            os.replace(temporary, self.path / name)
        except OSError as error:
            raise writing.explain(error, self._output, len(content)) from error

    def size(self, name: str) -> int | None:
        """See `ShardPlace.size`."""
        file = self.path / name
        return file.stat().st_size if file.is_file() else None

    def file(self, name: str) -> str:
        """See `ShardPlace.file`."""
        return str(self.path / name)

    def final(self, name: str) -> str:
        """See `ShardPlace.final`."""
        return str(self._output.with_name(name))

    @contextlib.contextmanager
    def computing(self, nbytes: int) -> Iterator[Path]:
        """See `ShardPlace.computing`: this folder itself."""
        yield self.path

    def publish(self, files: Mapping[writing.OutputShard, str]) -> Path | str:
        """See `ShardPlace.publish`."""
        try:
            moved = {shard: self.path / name for shard, name in files.items()}
            return writing.publish(moved, self._output)
        except OSError as error:
            nbytes = sum(shard.size for shard in files)
            raise writing.explain(error, self._output, nbytes) from error

    def check_output(self, *, overwrite: bool) -> None:
        """See `ShardPlace.check_output`."""
        writing.check_output(self._output, overwrite=overwrite)

    def has_output(self, *, sharded: bool) -> bool:
        """See `ShardPlace.has_output`."""
        return writing.output_file(self._output, sharded=sharded).exists()

    def clear(self) -> None:
        """See `ShardPlace.clear`."""
        for _ in range(TRIES):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                return
            time.sleep(PAUSE)  # a worker that was just killed may have written its last file


class _Stored:
    """A folder in an object store.

    Args:
        parent: where the output goes.
        output: its name.
        folder: the name of the folder in `parent`.
    """

    def __init__(self, parent: stores.ObjectFolder, output: str, folder: str) -> None:
        self._parent = parent
        self._output = output
        self._folder = folder

    def __str__(self) -> str:
        return f"{self._parent.address}/{self._folder}"

    def read(self, name: str) -> bytes | None:
        if self.size(name) is None:
            return None
        return stores.small(self._parent, f"{self._folder}/{name}")

    def write(self, name: str, content: bytes) -> None:
        self._parent.write(f"{self._folder}/{name}", content)

    def size(self, name: str) -> int | None:
        return self._parent.size(f"{self._folder}/{name}")

    def file(self, name: str) -> str:
        return f"{self}/{name}"

    def final(self, name: str) -> str:
        return f"{self._parent.address}/{name}"

    @contextlib.contextmanager
    def computing(self, nbytes: int) -> Iterator[Path]:
        with scratch.folder() as folder:
            if nbytes > (free := shutil.disk_usage(folder).free):
                raise errors.CheckpointError(
                    f"a shard of {self._parent.address}/{self._output} has {wording.size(nbytes)}, "
                    f"and is written to {folder.parent} before it goes there, where "
                    f"{wording.size(free)} are free; set TMPDIR to a folder with more room, or "
                    "make the shards smaller (--max-shard-size)"
                )
            yield folder
            for file in folder.glob("*.safetensors"):
                self._parent.put(file, f"{self._folder}/{file.name}")

    def publish(self, files: Mapping[writing.OutputShard, str]) -> Path | str:
        older = self._of_output()
        for shard, name in files.items():
            if self.size(name) is not None:
                self._parent.move(f"{self._folder}/{name}", shard.name)
        names = [shard.name for shard in files]
        if len(files) > 1:
            names.append(writing.output_file(Path(self._output), sharded=True).name)
            self._parent.write(names[-1], writing.index(list(files)))
        for name in older - set(names):
            self._parent.remove(name)
        return self.final(names[-1])

    def check_output(self, *, overwrite: bool) -> None:
        writing.check_suffix(Path(self._output))
        for sharded in (False, True):
            name = writing.output_file(Path(self._output), sharded=sharded).name
            if not overwrite and self._parent.size(name) is not None:
                raise errors.CheckpointError(
                    f"the output {self.final(name)} exists; name another file or overwrite it "
                    "(--overwrite)"
                )

    def has_output(self, *, sharded: bool) -> bool:
        name = writing.output_file(Path(self._output), sharded=sharded).name
        return self._parent.size(name) is not None

    def clear(self) -> None:
        for name in self._parent.names(self._folder):
            self._parent.remove(f"{self._folder}/{name}")

    def _of_output(self) -> set[str]:
        """The files of an output that is there."""
        names = set(self._parent.names())
        found = {
            writing.output_file(Path(self._output), sharded=sharded).name
            for sharded in (False, True)
        }
        return {name for name in names if name in found or writing.is_shard(name, self._output)}
