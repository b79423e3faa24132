"""A merge that somebody wrote for mergekit: `--mergekit`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from mlflow_breadcrumbs.commands import changes, options, printing

if TYPE_CHECKING:
    from mlflow_breadcrumbs.engine import mergekit_files

option = click.option(
    "--mergekit",
    type=options.TEXT,
    metavar="FILE",
    help="A file of mergekit: its base, its models and their recipe, in place of giving these.",
)
"""`chosen` reads it."""


def chosen(given: str | None, others: Mapping[str, Any]) -> "mergekit_files.MergekitMerge | None":
    """The merge of a file of mergekit, if one was named; its notes are shown.

    Args:
        given: The value of the option.
        others: What the other options gave, by parameter.

    Raises:
        click.UsageError: An option says what the file says.
        RecipeError: See `mergekit_files.read`.
    """
    if given is None:
        return None
    if named := changes.decided(others):
        raise click.UsageError(
            f"--mergekit takes base, sources and recipe from {given}; leave out {', '.join(named)}"
        )
    from mlflow_breadcrumbs.engine import mergekit_files

    found = mergekit_files.read(given)
    for note in found.notes:
        printing.remark(f"Note: {note}.")
    return found


def needed(base: str | None, sources: object) -> None:
    """Refuse a merge of files that says neither what to merge nor by which file.

    Raises:
        click.UsageError: It has no base, or no sources.
    """
    for name, value in (("--base", base), ("--source", sources)):
        if not value:
            raise click.UsageError(f"Missing option '{name}' (or '--mergekit').")
