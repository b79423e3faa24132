"""What was done to a registered model, where its aliases were, and what is done past us."""

import datetime
from typing import TYPE_CHECKING, Any

import click

from mlflow_breadcrumbs.commands import options, printing
from mlflow_breadcrumbs.support import wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_breadcrumbs import ledger


class Time(click.ParamType[Any]):
    """A moment, ISO 8601; without a zone it is UTC."""

    name = "TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime.datetime:
        """Read the text."""
        if isinstance(value, datetime.datetime):
            return value
        try:
            return datetime.datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is not a time; write 2026-03-03, '2026-03-03 14:00' (UTC) or "
                "2026-03-03T14:00+01:00",
                param,
                ctx,
            )


@click.command("history")
@click.argument("name")
@click.option("--alias", type=options.TEXT, help="Only the moves of this alias.")
@click.option("--moves", is_flag=True, help="Only the moves of the aliases, one line each.")
@click.option(
    "--at",
    type=Time(),
    help="Which version each alias, or --alias, pointed at then; UTC unless it names a zone.",
)
@click.option(
    "--all",
    "whole",
    is_flag=True,
    help="Also what was begun before it was done, and in which processes; --json has it always.",
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Draw the moves over time (PNG).",
)
@options.ledger_option
@options.json_option
def history_command(
    name: str,
    alias: str | None,
    moves: bool,
    at: datetime.datetime | None,
    whole: bool,
    picture: str | None,
    as_json: bool,
) -> None:
    """Print what was done to a registered model, in order, from the ledger's events.

    An event is what was done; what was begun and has not ended is there too. With --alias or
    --moves: which alias went from which version to which, when, by whom, on what evidence; changes
    that were made past this package are marked as direct.

    \b
    mlflow-breadcrumbs history clip-merged
    mlflow-breadcrumbs history clip-merged --alias champion --picture champion.png
    mlflow-breadcrumbs history clip-merged --alias champion --at '2026-03-03 14:00'
    """
    from mlflow_breadcrumbs import ledger
    from mlflow_breadcrumbs.figures import aliases

    alias = alias.removeprefix("@") if alias else None
    if picture:
        aliases.write(name, ledger.alias_changes(name, alias), picture)
        printing.remark(f"drawn in {picture}")
    if at is not None:
        _print_standings(name, ledger.standings(name, at, alias), as_json)
    elif moves or alias:
        _print_moves(name, ledger.alias_changes(name, alias), as_json)
    else:
        _print_events(name, ledger.history(name), as_json, whole=whole)


@click.command("watch")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=60,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look once, and end.")
@options.notify_option
@options.ledger_option
@options.json_option
def watch_command(names: tuple[str, ...], interval: float, once: bool, as_json: bool) -> None:
    """Look at the aliases in the registry again and again; keep direct changes in the history.

    Without a NAME the whole registry is looked at. A server that is gone is asked again; Ctrl-C or
    SIGTERM ends it.

    \b
    mlflow-breadcrumbs watch --interval 30
    """
    from mlflow_breadcrumbs import ledger

    rounds = [ledger.look(names, "watch")] if once else ledger.watch(names, interval=interval)
    try:
        for noticed in rounds:
            for move in noticed:
                print_noticed(move, as_json)
            if once and not noticed and not as_json:
                printing.echo("no alias was moved past this package since the last look")
            if noticed:
                options.notify(click.get_current_context())
    except KeyboardInterrupt:
        printing.remark("the watch ends")


def print_noticed(move: "ledger.Change", as_json: bool) -> None:
    """Print one change that was noticed, at once; as JSON, one object per line."""
    from mlflow_breadcrumbs.ledger import alias_history

    if as_json:
        printing.print_json_line(move.to_dict())
    else:
        printing.echo(f"{move.name}@{move.alias} {alias_history.described(move)}")


def _print_events(
    name: str, found: "Sequence[ledger.Event]", as_json: bool, *, whole: bool
) -> None:
    from mlflow_breadcrumbs.commands import terminal

    if as_json:
        printing.print_json([event.to_dict() for event in found])
    elif not found:
        printing.echo(f"the ledger has no events of {name}")
    else:
        ended = frozenset() if whole else {event.intent for event in found}
        terminal.print_table(
            [_row(event, whole=whole) for event in found if event.sequence not in ended],
            {
                "sequence": "event",
                "time": "time (UTC)",
                "actor": "who",
                "kind": "what",
                "phase": "phase",
                "subject": "version",
                "details": "details",
            },
        )


PROCESS = ("host", "pid", "process")
"""Details of which process did something."""


def _row(event: "ledger.Event", *, whole: bool) -> dict[str, Any]:
    """An event as a line of the table; its details without those of `PROCESS`, unless `whole`."""
    told = {key: value for key, value in event.details.items() if whole or key not in PROCESS}
    return event.to_dict() | {
        "time": wording.moment(event.time),
        "details": printing.details(told),
    }


def _print_moves(name: str, found: "Sequence[ledger.Change]", as_json: bool) -> None:
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.ledger import alias_history

    if as_json:
        printing.print_json([move.to_dict() for move in found])
        return
    if not found:
        printing.echo(f"the ledger has no moves of aliases of {name}")
        return
    terminal.print_table(
        [
            {
                "event": move.event,
                "time": alias_history.when(move),
                "alias": f"@{move.alias}",
                "before": move.before or "–",
                "after": move.after or "–",
                "cause": f"{move.cause} ({said})"
                if (said := move.how or move.reason)
                else move.cause,
                "who": move.actor or "unknown",
                "decision": move.decision or "",
                "policy": (move.policy_digest or "")[: len("sha256:") + 12],
            }
            for move in found
        ],
        {
            "event": "event",
            "time": "time (UTC)",
            "alias": "alias",
            "before": "from",
            "after": "to",
            "cause": "how",
            "who": "who",
            "decision": "decision (run)",
            "policy": "policy",
        },
    )
    direct = sum(move.is_direct for move in found)
    printing.echo(
        f"{wording.counted(len(found), 'moves')}, {direct} of them directly in MLflow, past this "
        "package"
    )


def _print_standings(name: str, found: "Sequence[ledger.Standing]", as_json: bool) -> None:
    if as_json:
        printing.print_json([standing.to_dict() for standing in found])
        return
    if not found:
        printing.echo(f"the ledger has no moves of aliases of {name}")
    for standing in found:
        printing.echo(f"{name}@{standing.alias}: {_version(standing)} ({standing.because})")
        if standing.decision:
            printing.echo(f"  decision: run {standing.decision}, policy {standing.policy_digest}")


def _version(standing: "ledger.Standing") -> str:
    """The answer in words, with how far it can be relied on."""
    if not standing.possible:
        return "unknown"
    named = [f"version {each}" if each else "not set" for each in standing.possible]
    if len(named) > 1:
        return " or ".join(named) + ", uncertain"
    return named[0] if standing.certain else f"{named[0]}, as far as is known"
