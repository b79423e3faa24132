"""What a merge reads next is fetched while it computes, and what it has written is let go."""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import backends, checkpoints, writing
from mlflow_breadcrumbs.support import wording

LIMIT = 1 << 30
"""Bytes that are here and not yet merged, beside the tensor that is being merged."""


@contextlib.contextmanager
def reading(job: backends.Job, writer: writing.Writer) -> Iterator[writing.Writer]:
    """Fetch the tensors of a job in the order in which backends take them.

    Args:
        job: a merge, or a part of one.
        writer: takes its tensors.

    Yields:
        What the tensors are to be written to: the same writer, or one that also lets go of what it
        has taken.

    Raises:
        CheckpointError: there is too little room for what is held at once.
    """
    remote = [checkpoint for checkpoint in job.inputs if checkpoint.is_remote]
    if not remote:
        yield writer
        return
    names = [*job.copied, *sorted(job.merged, key=lambda name: -job.base.info(name).numel)]
    check_room(job)
    follower = _Follower(remote, names, writer)
    thread = threading.Thread(target=follower.go, name="breadcrumbs-ahead", daemon=True)
    thread.start()
    try:
        yield follower
    finally:
        follower.stop()
        thread.join()


def scratch_bytes(job: backends.Job) -> int:
    """How much of a job's inputs lies on this machine's disk at once; 0 if all of it does."""
    remote = [checkpoint for checkpoint in job.inputs if checkpoint.is_remote]
    largest = max(
        (
            sum(checkpoint.held_with(name) for checkpoint in remote)
            for name in (*job.merged, *job.copied)
        ),
        default=0,
    )
    whole = sum(checkpoint.nbytes for checkpoint in remote)
    return min(LIMIT + largest, whole)


def check_room(job: backends.Job) -> None:
    """Raise `CheckpointError` where the disk has no room for what a merge holds at once."""
    needed, free = scratch_bytes(job), shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise errors.CheckpointError(
            f"the inputs are elsewhere, and up to {wording.size(needed)} of them are held in "
            f"{tempfile.gettempdir()} at once, where {wording.size(free)} are free; set TMPDIR to "
            "a folder with more room"
        )


class _Follower:
    """Stays a bounded way ahead of a writer."""

    def __init__(
        self,
        remote: Sequence[checkpoints.Checkpoint],
        names: Sequence[str],
        writer: writing.Writer,
    ) -> None:
        self._remote = remote
        self._names = names
        self._writer = writer
        self._here: dict[str, int] = {}
        """By tensor, the bytes that were fetched and not let go."""
        self._written: set[str] = set()
        self._stopped = False
        self._changed = threading.Condition()

    def go(self) -> None:
        """Fetch until all is here or the merge has ended."""
        for name in self._names:
            nbytes = sum(checkpoint.entry(name).nbytes for checkpoint in self._remote)
            with self._changed:
                while not self._stopped and not self._fits(nbytes):
                    self._changed.wait()
                if self._stopped:
                    return
                if name in self._written:
                    continue
                self._here[name] = nbytes
            for checkpoint in self._remote:
                checkpoint.fetch(name)

    def _fits(self, nbytes: int) -> bool:
        return not self._here or sum(self._here.values()) + nbytes <= LIMIT

    def stop(self) -> None:
        """Fetch nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """See `Writer.write`."""
        self._writer.write(name, tensor)
        self._let_go(name)

    def write_part(self, name: str, start: int, content: memoryview) -> None:
        """See `Writer.write_part`."""
        self._writer.write_part(name, start, content)

    def announce(self, name: str, hexdigest: str) -> None:
        """See `Writer.announce`."""
        self._writer.announce(name, hexdigest)
        self._let_go(name)

    def _let_go(self, name: str) -> None:
        for checkpoint in self._remote:
            checkpoint.release(name)
        with self._changed:
            self._written.add(name)
            self._here.pop(name, None)
            self._changed.notify_all()
