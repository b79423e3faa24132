"""Which merged versions there are, and whether one is what was registered: verify, reproduce, …."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.commands import addresses, options, printing, volume
from mlflow_breadcrumbs.registry import uris
from mlflow_breadcrumbs.support import wording

if TYPE_CHECKING:
    from mlflow_breadcrumbs.audit import inventory, reproduce, verify

REFUSED = 3
"""The exit code of a verification that said no."""

FORMATS = ("slsa", "cyclonedx", "openlineage", "prov", "model-card")
"""`export.FORMATS`, without importing MLflow for a help text."""


@click.command("verify")
@click.argument("uri", required=False, type=addresses.VERSION)
@click.option("--all", "everything", is_flag=True, help="Every version in the registry.")
@click.option(
    "--key",
    type=options.TEXT,
    metavar="PUB",
    help="Public key (PEM): a merged version must be signed by it.",
)
@options.ledger_option
@options.json_option
@click.pass_context
def verify_command(
    context: click.Context, uri: str | None, everything: bool, key: str | None, as_json: bool
) -> None:
    """Hold what is recorded of a version against its bytes, and against each other.

    Each check is ok, changed, missing or unknown (nothing was recorded). Exit code 3 if any is
    changed or missing; with --quiet only these are shown.

    \b
    mlflow-breadcrumbs verify models:/clip-merged@champion
    mlflow-breadcrumbs verify --all --json
    """
    if everything == bool(uri):
        raise click.UsageError("Give one URI, or --all.")
    from mlflow_breadcrumbs.audit import trail, verify
    from mlflow_breadcrumbs.commands import terminal

    shown: dict[str, Any]
    if uri:
        report = verify.verify(uri, key=key, show=terminal.show)
        reports: Sequence[verify.VersionReport] = [report]
        shown = report.to_dict()
    else:
        reports = verify.verify_all(key=key, show=terminal.show)
        shown = {
            "ok": all(report.ok for report in reports),
            "versions": [report.to_dict() for report in reports],
        }
    trail.verified(reports)
    if as_json:
        printing.print_json(shown)
    elif uri:
        _print_checks(report)
    else:
        _print_summary(reports)
    if not all(report.ok for report in reports):
        context.exit(REFUSED)


@click.command("list")
@click.argument("name", required=False)
@click.option(
    "--most",
    type=options.WHOLE,
    default=50,
    show_default=True,
    help="Versions that are listed, the newest first.",
)
@options.json_option
def list_command(name: str | None, most: int, as_json: bool) -> None:
    """List the merged versions, of one registered model or of all, the newest first.

    With their sources, the average normalized accuracy of the merge, the aliases that point there
    now, whether there is a signature (`verify --key` says whose), and when they were registered.

    \b
    mlflow-breadcrumbs list clip-merged
    """
    from mlflow_breadcrumbs.audit import inventory
    from mlflow_breadcrumbs.commands import terminal

    found = inventory.merged(name or None, most=most, show=terminal.show)
    if as_json:
        printing.print_json(found.to_dict())
        return
    if found.versions:
        terminal.print_table([_line(each) for each in found.versions], LISTED)
    of = f" of {name}" if name else ""
    printing.echo(
        f"the newest {len(found.versions)} merged versions{of}; --most lists more"
        if found.more
        else wording.counted(len(found.versions), "merged versions") + of
    )


LISTED = {
    "uri": "version",
    "sources": "sources",
    "average_normalized_accuracy": "normalized",
    "aliases": "aliases now",
    "signed": "signed",
    "created": "registered (UTC)",
}


def _line(version: "inventory.ListedVersion") -> dict[str, Any]:
    """A version as a line of the table; its URIs as short as they may be given."""
    signed = {True: "yes", False: "no", None: "unknown"}
    return version.to_dict() | {
        "uri": uris.short(version.uri),
        "sources": ", ".join(map(uris.short, version.sources)),
        "aliases": ", ".join(version.aliases),
        "signed": signed[version.signed],
    }


@click.command("reproduce")
@click.argument("uri", type=addresses.VERSION)
@click.option(
    "--backend",
    type=options.choice(*options.BACKENDS),
    default="auto",
    show_default=True,
    help="What computes the merge; every one gives the same bits.",
)
@click.option("--threads", type=options.WHOLE, help="Of the cpu backend.  [default: all]")
@options.json_option
@click.pass_context
def reproduce_command(
    context: click.Context, uri: str, backend: str | None, threads: int | None, as_json: bool
) -> None:
    """Merge a version again, from its lineage alone, and compare every bit.

    Nothing is registered. Exit code 3 if the weights differ; where the recipe decomposes matrices
    (tsv_m, iso_c), if they differ by more than the tolerance that the lineage states.

    \b
    mlflow-breadcrumbs reproduce models:/clip-merged@champion
    """
    from mlflow_breadcrumbs.audit import reproduce
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.engine.backends import choosing
    from mlflow_breadcrumbs.registry import projects

    found = reproduce.reproduce(
        uri, backend=choosing.choose(name=backend or "auto", threads=threads), show=terminal.show
    )
    verdict = "within the tolerance" if found.reproduced else "not the same"
    verdict = "bit-identical" if found.identical else verdict
    projects.point(f"reproduce {found.uri}", f"Merged again: {verdict}.", version=found.uri)
    if as_json:
        printing.print_json(found.to_dict())
    else:
        _print_reproduction(found)
    if not found.reproduced:
        context.exit(REFUSED)


@click.command("export")
@click.argument("uri", type=addresses.VERSION)
@click.option(
    "--format",
    "form",
    type=options.choice(*FORMATS),
    help="slsa is lineage.json itself; the others need the extra `audit`.",
)
@click.option(
    "--output",
    type=options.Optional(click.Path(dir_okay=False)),
    metavar="FILE",
    help="Where the export goes.  [default: stdout]",
)
@click.option(
    "--sign",
    "key",
    type=options.TEXT,
    metavar="KEY",
    help="Private key (PEM): sign the version's files and keep model.sig beside them.",
)
@options.ledger_option
@options.json_option
@click.pass_context
def export_command(
    context: click.Context,
    uri: str,
    form: str | None,
    output: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Write a merged version's lineage in a form that auditors' tools read, or sign the version.

    Signing comes first, and only a version that passes `verify` is signed; otherwise exit code 3.

    \b
    mlflow-breadcrumbs export models:/clip-merged/1 --format cyclonedx --output bom.json
    mlflow-breadcrumbs export models:/clip-merged/1 --sign signing.pem
    """
    if form is None and key is None:
        raise click.UsageError("Give --format, --sign, or both.")
    from mlflow_breadcrumbs.audit import export, trail

    done: dict[str, Any] = {"uri": uri}
    if key is not None:
        try:
            done |= {"uri": export.seal(uri, key), "signature": "model.sig"}
        except errors.IntegrityError as error:
            printing.echo(f"Error: {error}", err=True)
            context.exit(REFUSED)
    if form is not None:
        text = export.export(uri, form)
        done["format"] = form
        if as_json and output is None:
            done["content"] = text
        else:
            done["output"] = output or "-"
            with click.open_file(output or "-", "w", encoding="utf-8", lazy=True) as file:
                # A terminal obeys control characters; a file and a pipe get every byte.
                file.write(printing.shown(text) if file.isatty() else text)
        trail.exported(uri, form, text)
    if as_json:
        printing.print_json(done)
        return
    if output is not None:
        printing.remark(f"{output}: {uri} as {form}")
    if key is not None:
        printing.echo(f"{done['uri']} signed", err=form is not None)


def _print_reproduction(found: "reproduce.Reproduction") -> None:
    """The verdict, the tensors that differ, the digests."""
    from mlflow_breadcrumbs.commands import terminal

    if found.identical:
        printing.echo(f"{found.uri}: bit-identical, {_tensors(found)} merged again")
        printing.echo(found.reproduced_digest)
        return
    if found.reproduced:
        largest = max(found.differences, key=lambda entry: entry.relative or 0.0)
        printing.echo(
            f"{found.uri}: reproduced within tolerance, {_tensors(found)} merged again; "
            f"{len(found.differences)} differ, most {largest.tensor} by {largest.relative:.2g} of "
            f"its norm ({largest.tolerance:g} is allowed)"
        )
        printing.echo(str(found.registered_digest))
        return
    if found.differences:
        terminal.print_table(
            [
                {
                    "tensor": entry.tensor,
                    "elements": f"{entry.elements} of {entry.total}",
                    "max_abs": _short(entry.max_abs),
                    "relative": _short(entry.relative),
                    "tolerance": _short(entry.tolerance) if entry.tolerance else "none",
                }
                for entry in found.differences
            ],
            {
                "tensor": "tensor",
                "elements": "elements that differ",
                "max_abs": "largest difference",
                "relative": "relative norm",
                "tolerance": "allowed",
            },
        )
    printing.echo(f"{found.uri}: NOT reproduced")
    printing.echo(f"recorded in lineage.json: {found.recorded_digest}")
    printing.echo(f"merged again:             {found.reproduced_digest}")
    printing.echo(f"in the registry:          {found.registered_digest or 'can not be read'}")


def _tensors(found: "reproduce.Reproduction") -> str:
    return wording.counted(found.tensors, "tensors")


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _print_checks(report: "verify.VersionReport") -> None:
    """Every check of one version, or those that failed; and how many there are of each status."""
    from mlflow_breadcrumbs.commands import terminal

    shown = report.failures if volume.is_quiet() else report.checks
    if shown:
        terminal.print_table(
            [check.to_dict() | {"detail": _abridged(check.detail)} for check in shown],
            {"name": "check", "status": "status", "detail": "detail"},
        )
    counts = ", ".join(f"{count} {status}" for status, count in report.counts.items() if count)
    printing.echo(f"{report.uri} ({report.kind}): {counts or 'nothing to check'}")
    if report.lacks_signature:
        printing.echo(f"{report.uri} is not signed; all else is as recorded")


def _abridged(detail: str) -> str:
    """A detail for people: the first twelve of a digest's digits; `--json` has them all."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", detail)


def _print_summary(reports: "Sequence[verify.VersionReport]") -> None:
    """One line per version, or only of those that failed; then the checks that failed."""
    from mlflow_breadcrumbs.audit import verify
    from mlflow_breadcrumbs.commands import terminal

    columns = ("uri", "kind", *verify.STATUSES, "result")
    rows = [report.row() for report in reports if not (volume.is_quiet() and report.ok)]
    if rows:
        terminal.print_table(rows, dict(zip(columns, columns, strict=True)))
    for report in reports:
        for check in report.failures:
            printing.echo(f"{report.uri}: {check.name}: {check.status}: {_abridged(check.detail)}")
    failed = sum(not report.ok for report in reports)
    printing.echo(f"{wording.counted(len(reports), 'versions')}, {failed} failed")
