"""How the command line draws: progress bars on stderr, tables and trees on stdout."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from mlflow_breadcrumbs.commands import printing
from mlflow_breadcrumbs.support.progress import Advance

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


@contextlib.contextmanager
def show(description: str, *, total: float | None, unit: str = "") -> Iterator[Advance]:
    """A `progress.Progress` that draws one bar at a time on stderr, if that is a terminal."""
    columns = (
        bars.TextColumn("{task.description:<24}", markup=False),
        bars.BarColumn(),
        _Amount(),
        bars.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with bars.Progress(
        *columns, console=errors_console, disable=not sys.stderr.isatty()
    ) as drawing:
        stage = drawing.add_task(printing.cell(description), total=total, unit=unit)

        def advance(amount: float) -> None:
            drawing.advance(stage, amount)

        yield advance


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print rows as a table.

    Args:
        rows: one mapping per row.
        columns: title by key, in order.
    """
    table = Table()
    for key, title in columns.items():
        numeric = any(isinstance(row.get(key), int | float) for row in rows)
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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return printing.cell(str(value))
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def _stdout() -> Console:
    # Made anew: tests and callers may have replaced sys.stdout.
    wide = None if sys.stdout.isatty() else 160
    return Console(highlight=False, markup=False, width=wide, soft_wrap=not sys.stdout.isatty())
