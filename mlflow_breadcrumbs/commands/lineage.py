"""What a version is made of, what was made of it, and what was done to the registry."""

from typing import Any

import click

from mlflow_breadcrumbs.commands import addresses, history, options, printing
from mlflow_breadcrumbs.support import wording

FORMATS = ("text", "json", "mermaid", "dot")

from_option = click.option(
    "--from",
    "where",
    type=click.Choice(["mlflow", "ledger"]),
    default="mlflow",
    show_default=True,
    help="Ask MLflow itself, or the ledger's index, which `ledger sync` fills.",
)


@click.command("lineage")
@click.argument("uri", type=addresses.VERSION)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="A tree, or a graph for Mermaid or Graphviz.",
)
@from_option
@options.ledger_option
@options.json_option
def lineage_command(uri: str, form: str, where: Any, as_json: bool) -> None:
    """Print what a version was made from, back to the first imports.

    \b
    mlflow-breadcrumbs lineage models:/clip-merged@candidate --format mermaid
    """
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.lineage import drawing, relatives

    if form in ("mermaid", "dot") and not as_json:
        known, _ = relatives.ancestry(uri, where)
        printing.echo(drawing.mermaid(known) if form == "mermaid" else drawing.dot(known), nl=False)
        return
    root = relatives.tree(uri, where)
    if as_json or form == "json":
        printing.print_json(root.to_dict())
    else:
        terminal.print_tree(root)


@click.command("impact")
@click.argument("uri", type=addresses.VERSION)
@from_option
@options.ledger_option
@options.json_option
def impact_command(uri: str, where: Any, as_json: bool) -> None:
    """Print every version that descends from a version, with the aliases that point there now.

    \b
    mlflow-breadcrumbs impact models:/clip-cars/1
    """
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.lineage import relatives

    found = relatives.impact(uri, where)
    if as_json:
        printing.print_json([affected.to_dict() for affected in found])
        return
    if found:
        terminal.print_table(
            [
                affected.to_dict()
                | {
                    "how": "directly" if affected.direct else "through " + ", ".join(affected.via),
                    "aliases": ", ".join(affected.aliases),
                }
                for affected in found
            ],
            {"uri": "version", "kind": "kind", "how": "made from it", "aliases": "aliases now"},
        )
    live = sum(bool(affected.aliases) for affected in found)
    descend = "descends" if len(found) == 1 else "descend"
    printing.echo(
        f"{wording.counted(len(found), 'versions')} {descend} from {uri}; aliases point at {live} "
        "of them"
    )


@click.command("diff")
@click.argument("uri", type=addresses.VERSION)
@click.argument("other", type=addresses.VERSION)
@options.json_option
def diff_command(uri: str, other: str, as_json: bool) -> None:
    """Compare two merged versions: sources, recipe, metrics, weights per layer.

    \b
    mlflow-breadcrumbs diff models:/clip-merged/1 models:/clip-merged/2
    """
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.lineage import difference

    found = difference.diff(uri, other, terminal.show)
    if as_json:
        printing.print_json(found.to_dict())
        return
    sides = {"one": found.uris[0], "other": found.uris[1]}
    for title, rows, columns in (
        ("Made from, with the weight of each", found.sources, {"role": "role", "uri": "version"}),
        ("Recipe, where it differs", found.recipe, {"field": "field"}),
        ("Metrics", found.metrics, {"metric": "metric"}),
    ):
        last = {"change": "change"} if title == "Metrics" else {}
        if rows:
            printing.echo(title)
            terminal.print_table(rows, columns | sides | last)
    printing.echo("Weights, ‖difference‖ per layer")
    terminal.print_table(
        [distance.to_dict() for distance in found.groups],
        {
            "group": "layers",
            "tensors": "tensors",
            "different": "differ",
            "distance": "distance",
            "relative": "relative",
            "largest": "largest change",
        },
    )
    for uri_of, names in zip(found.uris, found.only, strict=True):
        if names:
            printing.echo(f"only in {uri_of}, or of another shape: {wording.listed(names)}")


@click.group("ledger")
def ledger_group() -> None:
    """The ledger's own commands: sync its index, verify its chain of events.

    \b
    mlflow-breadcrumbs ledger verify --expect-head 12:sha256:…
    """


@ledger_group.command("sync")
@click.option("--full", is_flag=True, help="Read every version: finds deleted ones, changed tags.")
@options.notify_option
@options.ledger_option
@options.json_option
def sync_command(full: bool, as_json: bool) -> None:
    """Bring the index up to date with the registry; notice aliases that were changed directly."""
    from mlflow_breadcrumbs import ledger
    from mlflow_breadcrumbs.commands import terminal

    done = ledger.sync(full=full, show=terminal.show)
    if as_json:
        printing.print_json(done.to_dict())
    else:
        printing.echo(
            f"{wording.counted(done.read, 'versions')} read: {done.added} added, "
            f"{done.changed} changed, {done.removed} removed"
        )
        for move in done.noticed:
            history.print_noticed(move, as_json)


@ledger_group.command("head")
@options.ledger_option
@options.json_option
def head_command(as_json: bool) -> None:
    """Print SEQUENCE:HASH of the last event; keep it where the ledger's owners can't write."""
    from mlflow_breadcrumbs import ledger

    head = ledger.head()
    if as_json:
        printing.print_json({"sequence": head.sequence, "hash": head.hash, "ledger": head.ledger})
    else:
        printing.echo(str(head))


@ledger_group.command("verify")
@click.option(
    "--expect-head",
    metavar="SEQUENCE:HASH",
    help="A head kept from earlier: it must be in the chain.",
)
@click.option("--offline", is_flag=True, help="Leave out the heads that versions carry in MLflow.")
@options.ledger_option
@options.json_option
@click.pass_context
def verify_command(
    ctx: click.Context, expect_head: str | None, offline: bool, as_json: bool
) -> None:
    """Walk the chain of events, and hold it against the heads kept elsewhere; exit 3 if broken."""
    from mlflow_breadcrumbs import ledger
    from mlflow_breadcrumbs.commands import terminal

    verdict = ledger.verify(expect_head, in_mlflow=not offline, show=terminal.show)
    if as_json:
        printing.print_json(verdict.to_dict())
    else:
        for event in verdict.clock:
            printing.echo(f"note: at event {event} the writer's clock was behind the event before")
        if verdict.foreign:
            carry = "carries" if verdict.foreign == 1 else "carry"
            number = wording.counted(verdict.foreign, "versions")
            printing.echo(f"note: {number} {carry} heads of other ledgers")
        hold = "holds" if verdict.heads == 1 else "hold"
        checked = f"{wording.counted(verdict.heads, 'heads')} kept elsewhere {hold}"
        printing.echo(
            f"broken: {verdict.problem}"
            if verdict.problem
            else f"{wording.counted(verdict.head.sequence, 'events')}, each follows the one "
            f"before; {checked}"
        )
        printing.echo(f"head {verdict.head}")
    if not verdict.holds:
        ctx.exit(3)


@click.command("report")
@click.argument("uri", type=addresses.VERSION)
@click.option("--output", type=options.TEXT, metavar="FILE.html", help="Write the page there too.")
@click.option("--no-log", is_flag=True, help="Leave the version's run as it is; needs --output.")
@options.json_option
def report_command(uri: str, output: str | None, no_log: bool, as_json: bool) -> None:
    """Make one HTML page of all that is known of a merged version.

    The page is logged to the run that made the version, as report.html. It needs no network.

    \b
    mlflow-breadcrumbs report models:/clip-merged@candidate --output report.html
    """
    if no_log and not output:
        raise click.UsageError("with --no-log the page needs a place: --output FILE.html")
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.report import contents, page
    from mlflow_breadcrumbs.support import outputs

    if output:
        outputs.check_output(output, ".html")
    found = contents.gather(uri, log=not no_log, show=terminal.show)
    made = page.render(found)
    if output:
        outputs.write(output, made)
    logged = None if no_log else page.log(found, made)
    if as_json:
        printing.print_json(
            {"uri": found.uri, "output": output, "artifact": logged, "bytes": len(made)}
        )
        return
    for place in filter(None, (output, logged)):
        printing.echo(place)
