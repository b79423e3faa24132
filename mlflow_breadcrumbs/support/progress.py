"""How long work reports itself: the library calls a `Progress`, the command line draws it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[float], None]
"""Called with the amount of work just done, in the unit of the stage."""


class Progress(Protocol):
    """Opens one stage of work; the context manager gives the stage's `Advance`.

    `with progress("evaluate mnist", total=500, unit="images") as advance: … advance(32)`
    """

    def __call__(
        self, description: str, *, total: float | None, unit: str = ""
    ) -> AbstractContextManager[Advance]:
        """Open a stage of `total` units of work (`None` when unknown)."""
        ...


def unheard(amount: float) -> None:
    """The `Advance` of work that nobody watches."""


@contextmanager
def silent(description: str, *, total: float | None, unit: str = "") -> Iterator[Advance]:
    """The `Progress` that shows nothing: the library's default."""
    yield unheard
