"""The user's own means of measuring, in place of a task file: `--evaluator`."""

from typing import TYPE_CHECKING

import click

from mlflow_breadcrumbs.commands import options

if TYPE_CHECKING:
    from mlflow_breadcrumbs.evaluation import evaluator_files

option = click.option(
    "--evaluator",
    type=options.TEXT,
    metavar="MODULE:FUNCTION|cmd:…|FILE.yaml",
    help="Measure by your own function, program or file of evaluators, in place of --tasks.",
)
"""`chosen` reads it."""


def chosen(given: str | None, tasks: str | None) -> "evaluator_files.UserEvaluator | None":
    """The evaluator that was named.

    Args:
        given: The value of the option.
        tasks: The value of `--tasks`; a variable of the environment gives way.

    Raises:
        click.UsageError: Both are on the command line.
        EvaluatorError: What it names is not there.
    """
    if given is None:
        return None
    source = click.get_current_context().get_parameter_source("tasks")
    if tasks is not None and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("Give --evaluator or --tasks: models are measured by one of them.")
    from mlflow_breadcrumbs.evaluation import evaluator_files

    return evaluator_files.read(given)
