"""Which task file a command takes: the one that is named, else one that was named before."""

import os
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from mlflow_breadcrumbs.commands import options, printing

VARIABLE = "BREADCRUMBS_TASKS"
NONE = "none"
"""In place of a file: no task file, whatever was named before."""


def option(help: str) -> Callable[..., Any]:
    """`--tasks`; `chosen` or `needed` say which file is meant."""
    return click.option(
        "--tasks",
        type=options.TEXT,
        metavar="FILE",
        envvar=VARIABLE,
        show_envvar=True,
        help=help,
    )


def chosen(given: str | None, recorded_by: str | None = None) -> str | None:
    """The task file, with a sentence where it was not named on the command line; or none.

    Args:
        given: The value of the option.
        recorded_by: A version that may have recorded one.
    """
    source = click.get_current_context().get_parameter_source("tasks")
    if given and source is not ParameterSource.ENVIRONMENT:
        return None if given == NONE else given
    given = given or os.environ.get(VARIABLE)  # an option that is given empty is not given
    if given == NONE:
        return None
    if given:
        printing.remark(f"Tasks: {given}, which ${VARIABLE} names.")
        return given
    if recorded_by is None:
        return None
    from mlflow_breadcrumbs.evaluation import recorded_tasks

    found = recorded_tasks.of(recorded_by)
    if found is None:
        return None
    printing.remark(f"Tasks: {found[0]}, which {found[1]} was made with.")
    return found[0]


def needed(given: str | None, recorded_by: str | None = None) -> str:
    """The same, for a command that can do nothing without.

    Raises:
        click.UsageError: there is none.
    """
    found = chosen(given, recorded_by)
    if found is None and NONE in (given, os.environ.get(VARIABLE)):
        raise click.UsageError(
            "This command measures, so that it needs a task file; --tasks none names none."
        )
    if found is None:
        where = f", and {recorded_by} recorded none that is here" if recorded_by else ""
        raise click.UsageError(f"Missing option '--tasks' (or ${VARIABLE}{where}).")
    return found
