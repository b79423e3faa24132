"""The command line: the group that all of `commands` belong to.

Results go to stdout (`--json` for machines), progress and messages to stderr. Exit codes: 0 done,
1 bad input or a failed job, 2 usage, 3 a gate or a verification said no.
"""

import gc
import logging
import signal
import sys
import threading
import traceback
from typing import Any

import click
import rich_click

import mlflow_breadcrumbs
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.commands import (
    auditing,
    comparing,
    demonstration,
    history,
    lineage,
    merging,
    merging_files,
    printing,
    promoting,
    pulling,
    searching,
    sharding,
    versions,
    volume,
    webhooks,
)

COMMANDS = {
    "Make versions": (versions.import_command, versions.finetune_command),
    "Merge": (merging.merge_command, merging_files.merge_files, comparing.compare_command),
    "Merge files, shard by shard": (
        sharding.plan_command,
        sharding.work_command,
        sharding.finish_command,
    ),
    "Evaluate & search": (
        versions.evaluate_command,
        searching.sweep_command,
        searching.scaling_command,
        searching.blame_command,
    ),
    "Promote": (
        promoting.promote_command,
        promoting.approve_command,
        promoting.rollback_command,
        promoting.recall_command,
        promoting.recheck_command,
    ),
    "Audit": (
        auditing.list_command,
        lineage.lineage_command,
        lineage.impact_command,
        lineage.diff_command,
        auditing.verify_command,
        auditing.reproduce_command,
        auditing.export_command,
        lineage.report_command,
        history.history_command,
        history.watch_command,
        lineage.ledger_group,
    ),
    "Serve & set up": (
        pulling.pull_command,
        webhooks.hooks_group,
        demonstration.quickstart_command,
    ),
}
"""All commands, under the headings of the help."""
READERS = frozenset(
    {"list", "lineage", "impact", "history", "ledger", "approve", "rollback", "recall"}
)
"""Commands that load no model: what they leave for the garbage collector is little."""


VARIABLES = """Environment variables, beside those that the commands' options name:

BREADCRUMBS_CACHE: folder of the accuracies that were measured before.

BREADCRUMBS_HUB_DOWNLOAD: true lets a commit be downloaded that a version names on a hub.

BREADCRUMBS_IMAGE_ROOT: folder on a server of models whose images a request may name by path.

BREADCRUMBS_KEY_PASSWORD: of the private key of export --sign.

BREADCRUMBS_MAX_IMAGE_ASPECT: longer side by shorter of an image that is decoded (100).

BREADCRUMBS_MAX_IMAGE_BYTES: of the file of an image (268,435,456).

BREADCRUMBS_MAX_IMAGE_PIXELS: width by height of an image that is decoded (64,000,000).

BREADCRUMBS_MAX_IMAGE_SIDE: pixels of its longer side (32,768).

BREADCRUMBS_MAX_REQUEST_PIXELS: of all images of a request to a served model (2,000,000,000).

BREADCRUMBS_NOTIFY_SECRET: signs what --notify-url sends.

BREADCRUMBS_SERVER_CONFIG: file that says which aliases mlflow server guards.

BREADCRUMBS_WEBHOOK_SECRET: MLflow signs its webhooks with it.
"""


class _Group(rich_click.RichGroup):
    """Turns the package's errors into one message on stderr and exit code 1."""

    owns_process = False
    """Whether this is the process's own command line, rather than a call from somebody's Python."""

    def main(self, args: Any = None, *rest: Any, **named: Any) -> Any:
        """Run; a usage error is one line, as every other, and not a box that breaks it."""
        self.owns_process = args is None
        with volume.limited():
            return click.Group.main(self, args, *rest, **named)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take a command's options as `mlflow run` names them, with underscores."""
        name, command, rest = super().resolve_command(ctx, args)
        known = {each for entry in command.params for each in entry.opts} if command else set()
        return name, command, [_with_hyphens(word, known) for word in rest]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.BreadcrumbsError as error:
            printing.echo(f"Error: {error}", err=True)
            ctx.exit(1)
        except click.ClickException as error:
            vars(error)["message"] = printing.shown(error.message)
            raise
        except Exception as error:
            message = _foreign(error)
            if message is None:
                raise
            printing.echo(f"Error: {message}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            printing.echo("Interrupted. The same command again takes up what is done.", err=True)
            ctx.exit(1)


def _with_hyphens(word: str, known: set[str]) -> str:
    """`--registered_model`, as MLflow makes it of a parameter, as the option that there is."""
    option, equals, value = word.partition("=")
    found = option.replace("_", "-")
    return f"{found}{equals}{value}" if option.startswith("--") and found in known else word


@click.group(cls=_Group, epilog=VARIABLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mlflow_breadcrumbs.__version__)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Merge the fine-tuned versions in your MLflow registry into one model, without training.

    MLflow is found as usual: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in this folder.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Shown("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").addFilter(_is_no_statement)
    if main.owns_process:
        sys.excepthook = _show
        logging.setLogRecordFactory(_Record)  # for the handlers of others, as MLflow's
        # Importing MLflow or torch makes half a million objects that stay. To look through them
        # again and again for garbage, and once more at the end, is a quarter of a short command.
        gc.set_threshold(1_000_000 if ctx.invoked_subcommand in READERS else 50_000)
        ctx.call_on_close(_leave)
    # Schedulers send SIGTERM before they kill: the run ends and temporary files go, as on Ctrl-C.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


class _Shown(logging.Formatter):
    """Records as `printing.echo` would print them, tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return printing.shown(super().format(record))


class _Record(logging.LogRecord):
    """A record whose message is as `printing.echo` would print it."""

    def getMessage(self) -> str:  # noqa: N802 - the name is logging's
        """The message with its values."""
        return printing.shown(super().getMessage())


def _is_no_statement(record: logging.LogRecord) -> bool:
    """Whether a record is not MLflow's of an error with its SQL, of which our message tells."""
    return record.levelno < logging.ERROR


def _show(*error: Any) -> None:
    """Print an error that nobody foresaw, as Python does, without passwords."""
    printing.echo("".join(traceback.format_exception(*error)), err=True, nl=False)


def _foreign(error: Exception) -> str | None:
    """What MLflow or its database raised where nobody expected it, as one message; else `None`."""
    if isinstance(error, click.exceptions.Exit | click.Abort) or "mlflow" not in sys.modules:
        return None
    from mlflow_breadcrumbs.registry import failures

    if not isinstance(error, failures.FOREIGN):
        return None
    return str(failures.explain(error, "the command stopped"))


def _leave() -> None:
    """Spare the process the last look for garbage, where nobody reports what is left."""
    if "triton" not in sys.modules:  # its bindings do, line by line
        gc.freeze()


def _add_volume(command: click.Command) -> None:
    """Give a command, or all of a group, the options of how much it says."""
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        _add_volume(each)
    command.params.extend(volume.options())


for _heading, _commands in COMMANDS.items():
    for _command in _commands:
        main.add_command(_command)
    main.add_panel(
        rich_click.RichCommandPanel(_heading, commands=[str(each.name) for each in _commands])
    )
_add_volume(main)
