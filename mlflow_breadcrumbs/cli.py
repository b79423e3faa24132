"""The command line: the group that all of `commands` belong to.

Results go to stdout (`--json` for machines), progress and messages to stderr. Exit codes: 0 done,
1 bad input or a failed job, 2 usage, 3 a gate or a verification said no.
"""

import logging
import signal
import sys
import threading
from typing import Any

import click

import mlflow_breadcrumbs
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.commands import (
    auditing,
    comparing,
    demonstration,
    history,
    lineage,
    merging,
    promoting,
    searching,
    versions,
    webhooks,
)


class _Group(click.Group):
    """Turns the package's errors into one message on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.BreadcrumbsError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("Interrupted. The same command again takes up what is done.", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mlflow_breadcrumbs.__version__)
@click.option("--verbose", "-v", is_flag=True, help="Log what is done, on stderr.")
def main(verbose: bool) -> None:
    """Merge the fine-tuned versions in your MLflow registry into one model, without training.

    MLflow is found as usual: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in this folder.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    # Schedulers send SIGTERM before they kill: the run ends and temporary files go, as on Ctrl-C.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


for _command in (
    versions.import_command,
    versions.finetune_command,
    versions.evaluate_command,
    comparing.compare_command,
    merging.merge_files,
    merging.merge_command,
    searching.sweep_command,
    searching.scaling_command,
    searching.blame_command,
    lineage.lineage_command,
    lineage.impact_command,
    lineage.diff_command,
    history.history_command,
    history.watch_command,
    lineage.ledger_group,
    webhooks.hooks_group,
    auditing.verify_command,
    auditing.reproduce_command,
    auditing.export_command,
    lineage.report_command,
    promoting.promote_command,
    promoting.approve_command,
    promoting.rollback_command,
    promoting.recheck_command,
    demonstration.quickstart_command,
):
    main.add_command(_command)
