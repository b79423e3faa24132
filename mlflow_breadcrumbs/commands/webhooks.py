"""Webhooks in and out: receive MLflow's, register for them, deliver our own events."""

import contextlib
import itertools
from typing import TYPE_CHECKING

import click

from mlflow_breadcrumbs.commands import auditing, options, printing
from mlflow_breadcrumbs.support import wording
from mlflow_breadcrumbs.webhooks import notifying

if TYPE_CHECKING:
    from mlflow_breadcrumbs.webhooks import outbox

VARIABLE = "BREADCRUMBS_WEBHOOK_SECRET"

secret_option = click.option(
    "--secret-file",
    type=options.TEXT,
    metavar="FILE",
    help=f"Holds the secret that MLflow signs with; without it, ${VARIABLE} is the secret.",
)


@click.group("hooks")
def hooks_group() -> None:
    """Webhooks: take MLflow's into the history, and send the ledger's events out.

    \b
    mlflow-breadcrumbs hooks serve --port 8787 --secret-file secret
    mlflow-breadcrumbs hooks register --url https://hooks.example.org/ --secret-file secret
    mlflow-breadcrumbs hooks deliver --follow --notify-url https://chat.example.org/hook
    """


@hooks_group.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8787,
    show_default=True,
    help="Port to listen at; 0: any that is free.",
)
@click.option(
    "--tolerance",
    type=click.IntRange(1, 86400),
    default=300,
    show_default=True,
    help="Seconds that a delivery may be old, or ahead.",
)
@secret_option
@options.ledger_option
def serve_command(host: str, port: int, tolerance: int, secret_file: str | None) -> None:
    """Receive MLflow's signed webhooks, and keep direct changes of aliases in the history.

    `POST /` takes a delivery; `GET /health` says that it is up. Put a reverse proxy with TLS before
    it where MLflow reaches it over a network.
    """
    from mlflow_breadcrumbs import ledger
    from mlflow_breadcrumbs.registry import failures
    from mlflow_breadcrumbs.webhooks import receiver, signatures

    settings = receiver.ReceiverSettings(
        signatures.read_secret(secret_file, VARIABLE, "--secret-file"), tolerance
    )
    ledger.check()
    _say_if_needless("this receiver")
    listening = receiver.listen(host, port)
    printing.remark(f"receiving at http://{host}:{listening.getsockname()[1]}/")
    try:
        with failures.without_retries():  # a server that is down must not hold up the answers
            receiver.serve(settings, listening)
    except KeyboardInterrupt:
        printing.remark("the receiver ends")


@hooks_group.command("register")
@click.option(
    "--url",
    required=True,
    metavar="URL",
    help="Of `hooks serve`, as the tracking server reaches it.",
)
@secret_option
@click.option("--no-test", is_flag=True, help="Don't let the server send a test delivery.")
@options.json_option
@click.pass_context
def register_command(
    context: click.Context, url: str, secret_file: str | None, no_test: bool, as_json: bool
) -> None:
    """Register the receiver with the tracking server, for all changes of aliases.

    A webhook for the same URL gets the secret anew. Exit code 3 if the test delivery is not taken.
    """
    from mlflow_breadcrumbs.webhooks import signatures, subscription

    secret = signatures.read_secret(secret_file, VARIABLE, "--secret-file")
    made = subscription.subscribe(url, secret, test=not no_test)
    _say_if_needless("this webhook")
    if as_json:
        printing.print_json(made.to_dict())
    else:
        state = "renewed" if made.renewed else "registered"
        printing.echo(f"webhook {made.id} for {made.url} {state}")
    if made.problem:
        printing.echo(f"Error: the test delivery was not taken: {made.problem}", err=True)
        context.exit(auditing.REFUSED)


def _say_if_needless(what: str) -> None:
    """Say it where the tracking server does by itself what a receiver is for."""
    from mlflow_breadcrumbs import errors
    from mlflow_breadcrumbs.promotion import guards

    with contextlib.suppress(errors.RegistryError):  # whoever needs the server says so
        if guards.writes_moves():
            printing.remark(
                "the tracking server runs --app-name breadcrumbs, which writes direct moves of "
                f"aliases into its own ledger: {what} is needed for another ledger only"
            )


@hooks_group.command("deliver")
@options.receiver_options
@click.option(
    "--from",
    "since",
    type=click.IntRange(min=0),
    metavar="EVENT",
    help="Start after this event; 0: send the whole history. A new URL starts with what comes now.",
)
@click.option("--skip", is_flag=True, help="Give up the first event that waits.")
@click.option("--follow", is_flag=True, help="Go on for ever, with what comes.")
@options.ledger_option
@options.json_option
@click.pass_context
def deliver_command(
    context: click.Context,
    notify_url: str | None,
    notify_secret_file: str | None,
    kinds: str | None,
    since: int | None,
    skip: bool,
    follow: bool,
    as_json: bool,
) -> None:
    """Deliver the ledger's events to a URL: signed, in order, each until it is taken.

    Exit code 1 if some wait.
    """
    from mlflow_breadcrumbs.webhooks import outbox

    receiver = notifying.configured(notify_url, notify_secret_file, kinds)
    if receiver is None:
        raise click.UsageError(f"Give --notify-url, or set {notifying.URL}.")
    done = outbox.deliver(receiver, since=since, skip=skip)
    if not follow:
        _print_delivered(done, as_json)
        context.exit(1 if done.waiting else 0)
    problem = None
    try:
        for more in itertools.chain([done], outbox.follow(receiver)):
            if more.sent or more.problem != problem:
                _print_delivered(more, as_json)
            problem = more.problem
    except KeyboardInterrupt:
        printing.remark("the delivery ends")


def _print_delivered(done: "outbox.Delivered", as_json: bool) -> None:
    """What came of an attempt; as JSON, one object per line."""
    if as_json:
        printing.print_json_line(done.to_dict())
        return
    if done.sent or not done.waiting:
        printing.echo(f"{wording.counted(done.sent, 'events')} delivered")
    if done.waiting:
        due = f", next attempt at {wording.moment(done.due)}" if done.due else ""
        wait = "waits" if done.waiting == 1 else "wait"
        number = wording.counted(done.waiting, "events")
        printing.echo(f"{number} {wait}: {done.problem}{due}", err=True)
