"""Independent pieces of work, done here one after the other, or by workers elsewhere.

A `Work` is what all pieces share. It is begun once by each process that does pieces of it, and
gives what does one:

```python
with executors.opened("ray", workers=4) as executor:
    for number, result in executor.run(work, pieces, advance=advance, amounts=amounts):
        ...  # as they come; `number` is the piece's position
```

Where workers are elsewhere, the work and the pieces travel to them and the results back, all
pickled; a work may leave behind what it can open again. Paths in it must be theirs too.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from mlflow_breadcrumbs.support import extras, progress

NAMES = ("local", "ray")

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")
_PieceTaken = TypeVar("_PieceTaken", contravariant=True)
_ResultGiven = TypeVar("_ResultGiven", covariant=True)


class Work(Protocol[_PieceTaken, _ResultGiven]):
    """What pieces share. A piece that is done twice gives the same result, and harms nobody."""

    def begin(
        self,
    ) -> AbstractContextManager[Callable[[_PieceTaken, progress.Advance], _ResultGiven]]:
        """Open what is needed; what is given does a piece, and tells how far it is."""
        ...


class Executor(Protocol):
    """Does the pieces of a work, somewhere."""

    def run(
        self,
        work: Work[_Piece, _Result],
        pieces: Sequence[_Piece],
        *,
        advance: progress.Advance,
        amounts: Sequence[float],
    ) -> Iterator[tuple[int, _Result]]:
        """Do every piece once; the results as they come, each with its piece's position.

        The first error ends it: what waits is dropped, and nothing runs on behind the caller's
        back. So does a caller that stops to ask for results, as at Ctrl-C.

        Args:
            work: what the pieces share.
            pieces: independent of each other.
            advance: is told what was done.
            amounts: of each piece, in the unit of `advance`.

        Raises:
            BreadcrumbsError: that of a piece; or `ExecutorError`, where workers can't be had.
        """
        ...


class Local:
    """In this process, one piece after the other, in their order."""

    def run(
        self,
        work: Work[_Piece, _Result],
        pieces: Sequence[_Piece],
        *,
        advance: progress.Advance,
        amounts: Sequence[float],
    ) -> Iterator[tuple[int, _Result]]:
        """See `Executor.run`; a piece tells how far it is while it is done."""
        with work.begin() as do:
            for number, piece in enumerate(pieces):
                yield number, do(piece, advance)


LOCAL = Local()


@contextlib.contextmanager
def opened(
    name: str = "local",
    *,
    address: str | None = None,
    workers: int | None = None,
    threads: int = 1,
    gpus: int = 0,
) -> Iterator[Executor]:
    """The executor of this name.

    Args:
        name: one of `NAMES`.
        address: of the Ray cluster; without one, `$RAY_ADDRESS`, or a cluster that is started here.
        workers: at once, at most; as many as there is room for when `None`.
        threads: processors of each worker.
        gpus: of each worker.

    Raises:
        ExtraError: ray is not installed.
        ExecutorError: the cluster can't be reached, or has no room for a worker.
    """
    if name == "local":
        yield LOCAL
        return
    with extras.needed("ray", "--executor ray"):
        import ray  # noqa: F401 - the message comes before anything is done
    from mlflow_breadcrumbs.support import ray_workers

    with ray_workers.connected(address, workers, threads, gpus) as executor:
        yield executor
