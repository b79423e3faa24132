"""Which experiment the runs of a command belong to."""

import click
from click.core import ParameterSource

from mlflow_breadcrumbs.commands import options


def _use_experiment(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    """Take this experiment for as long as the command runs; MLflow reads the variable itself."""
    if value and ctx.get_parameter_source("experiment") is not ParameterSource.ENVIRONMENT:
        from mlflow_breadcrumbs.registry import runs

        ctx.with_resource(runs.in_experiment(value))


VARIABLE = "MLFLOW_EXPERIMENT_NAME"
"""MLflow's own, without importing MLflow for a help text."""

experiment_option = click.option(
    "--experiment",
    type=options.TEXT,
    expose_value=False,
    callback=_use_experiment,
    metavar="NAME",
    envvar=VARIABLE,
    show_envvar=True,
    help="Of its runs; it is made if there is none of that name.",
)
