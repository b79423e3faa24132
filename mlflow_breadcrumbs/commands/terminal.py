"""How the command line draws: progress on stderr, tables and trees on stdout."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from mlflow_breadcrumbs.commands import printing, volume
from mlflow_breadcrumbs.support import progress, wording

if TYPE_CHECKING:
    from mlflow_breadcrumbs.lineage import relatives

errors_console = Console(stderr=True)


class _Amount(bars.ProgressColumn):
    """Done and total in the stage's unit; bytes as a size with a rate."""

    def render(self, task: bars.Task) -> str:
        """Draw one stage's numbers."""
        unit = task.fields["unit"]
        if unit == "bytes":
            rate = f", {task.speed / 1e6:.0f} MB/s" if task.speed else ""
            return f"{task.completed / 1e6:.0f}/{(task.total or 0) / 1e6:.0f} MB{rate}"
        total = "" if task.total is None else f"/{task.total:g}"
        return f"{task.completed:g}{total} {unit}"


NOW_AND_THEN = 30.0
"""Seconds between two lines about one stage, where there is no terminal to draw on."""


def show(
    description: str, *, total: float | None, unit: str = ""
) -> AbstractContextManager[progress.Advance]:
    """A `progress.Progress` on stderr: a bar on a terminal, else a line now and then."""
    if volume.is_quiet():
        return progress.silent(description, total=total, unit=unit)
    how = _bar if sys.stderr.isatty() else _lines
    return how(description, total=total, unit=unit)


@contextlib.contextmanager
def _bar(description: str, *, total: float | None, unit: str) -> Iterator[progress.Advance]:
    """One bar at a time."""
    columns = (
        bars.TextColumn("{task.description:<24}", markup=False),
        bars.BarColumn(),
        _Amount(),
        bars.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with bars.Progress(*columns, console=errors_console) as drawing:
        stage = drawing.add_task(printing.cell(description), total=total, unit=unit)

        def advance(amount: float) -> None:
            drawing.advance(stage, amount)

        yield advance


@contextlib.contextmanager
def _lines(description: str, *, total: float | None, unit: str) -> Iterator[progress.Advance]:
    """A line when the stage begins, and one now and then with how far it is."""
    begun = told = time.monotonic()
    done = 0.0
    turn = threading.Lock()

    def advance(amount: float) -> None:
        nonlocal done, told
        with turn:
            done += amount
            now = time.monotonic()
            if now - told >= NOW_AND_THEN and done != total:
                told = now
                printing.echo(_standing(description, done, total, unit, now - begun), err=True)

    whole = "" if total is None or not unit else f": {_size(total, unit)}"
    printing.echo(f"{printing.cell(description)}{whole}", err=True)
    yield advance


def _standing(description: str, done: float, total: float | None, unit: str, seconds: float) -> str:
    """How far a stage is after so many seconds, on one line."""
    head = printing.cell(description)
    if total is None:
        return f"{head}: {_size(done, unit)}"
    if unit == "bytes":
        return f"{head}: {done / 1e6:.0f} of {_size(total, unit)}{_left(done, total, seconds)}"
    return f"{head}: {done:g} of {_size(total, unit)}{_left(done, total, seconds)}"


def _left(done: float, total: float, seconds: float) -> str:
    """How long the rest takes if it goes on like that; nothing where that can't be told."""
    if not 0 < done <= total:
        return ""
    rest = seconds * (total - done) / done
    for limit, length, unit in ((90, 1, "s"), (5400, 60, "min"), (float("inf"), 3600, "h")):
        if rest < limit:
            return f" · {rest / length:.0f} {unit} left"
    return ""


def _size(amount: float, unit: str) -> str:
    """An amount in a stage's unit; bytes in megabytes."""
    if unit == "bytes":
        return f"{amount / 1e6:.0f} MB"
    return wording.counted(amount, unit)


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print rows as a table.

    Args:
        rows: one mapping per row.
        columns: title by key, in order.
    """
    table = Table()
    for key, title in columns.items():
        numeric = any(_is_number(row.get(key)) for row in rows)
        table.add_column(title, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    _stdout().print(table)


def print_tree(root: "relatives.Ancestor") -> None:
    """Print a version's ancestry."""
    drawn = Tree(_label(root))
    _branch(drawn, root)
    _stdout().print(drawn)


def _branch(drawn: Tree, node: "relatives.Ancestor") -> None:
    for parent in node.parents:
        _branch(drawn.add(_label(parent)), parent)


def _label(node: "relatives.Ancestor") -> str:
    parts = [f"{node.role}: {node.uri}" if node.role else node.uri, f"({node.kind})"]
    if node.tasks:
        parts.append(", ".join(node.tasks))
    if node.weights_digest:
        parts.append(node.weights_digest[: len("sha256:") + 12])
    if node.shown_above:
        parts.append("(see above)")
    return printing.cell("  ".join(parts))


def _is_number(value: Any) -> bool:
    """Whether a value is a number; yes and no are none, though Python takes them for it."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return printing.cell(wording.said(value))
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def _stdout() -> Console:
    # Made anew: tests and callers may have replaced sys.stdout.
    wide = None if sys.stdout.isatty() else 160
    return Console(highlight=False, markup=False, width=wide, soft_wrap=not sys.stdout.isatty())
