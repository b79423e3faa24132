"""Which version is live: promote, approve, roll back."""

from typing import Any

import click

from mlflow_breadcrumbs.commands import (
    addresses,
    evaluator_choice,
    options,
    printing,
    task_choice,
)
from mlflow_breadcrumbs.registry import uris

REFUSED = 3
"""The exit code where the answer is no: a rule, a lost race, no version to go back to."""

alias_option = click.option(
    "--alias", required=True, metavar="ALIAS", help="Which one, as champion."
)
name_option = click.option(
    "--name", "named", type=options.TEXT, hidden=True, help="The same, for `mlflow run`."
)
version_option = click.option("--version", type=options.WHOLE, help="Number of the version.")
uri_option = click.option(
    "--uri",
    type=addresses.VERSION,
    metavar="URI",
    help="The version instead, as NAME@candidate; pinned before anything else.",
)

expected_option = click.option(
    "--expect-current",
    type=options.TEXT,
    metavar="VERSION|none",
    help="Only if the alias is there now.  [default: where it is when this begins]",
)


@click.command("promote")
@click.argument("name", required=False, metavar="[NAME|URI]")
@name_option
@version_option
@uri_option
@alias_option
@click.option(
    "--policy",
    type=options.TEXT,
    metavar="FILE",
    help="What it must show (YAML); a server that guards the alias has its own.",
)
@task_choice.option(
    "Task file: measure what is missing or too old. Without it, or with none, nothing is measured."
)
@evaluator_choice.option
@expected_option
@click.option(
    "--experiment",
    type=options.TEXT,
    metavar="NAME",
    help="Of the decisions' runs.  [default: breadcrumbs-promotions]",
)
@click.option("--dry-run", is_flag=True, help="Only judge, and say what would be measured.")
@click.option(
    "--override",
    type=options.TEXT,
    metavar="REASON",
    help="Pass the policy by, on a server that guards the alias and has named your account.",
)
@options.batch_size_option
@options.device_option
@options.cache_option
@options.notify_option
@options.ledger_option
@options.json_option
@click.pass_context
def promote_command(
    ctx: click.Context,
    name: str | None,
    named: str | None,
    version: int | None,
    uri: str | None,
    alias: str,
    policy: str | None,
    tasks: str | None,
    evaluator: str | None,
    expect_current: str | None,
    experiment: str | None,
    dry_run: bool,
    override: str | None,
    batch_size: int,
    device: str,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Give a version an alias, if a policy lets it.

    Every rule is shown with what was found. Exit code 3 if one has not passed, or if the alias was
    moved by somebody else meanwhile.

    \b
    mlflow-breadcrumbs promote clip-merged/2 --alias champion --policy policy.yaml
    """
    chosen = _uri(name or named, version, uri)
    expected = _expected(expect_current)
    if override is not None:
        if policy or tasks or evaluator or dry_run:
            raise click.UsageError(
                "--override judges nothing; leave --policy, --tasks, --evaluator, --dry-run out."
            )
        _override(chosen, alias, override, expected, as_json)
        return
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.promotion import guards, policies, promote

    rules = policies.load(policy) if policy else guards.policy_of(chosen, alias)
    if rules is None:
        raise click.UsageError("Missing option '--policy': no server guards this alias.")
    own = evaluator_choice.chosen(evaluator, tasks)
    given: dict[str, Any] = {"batch_size": batch_size, "experiment": experiment}
    given = {field: value for field, value in given.items() if value} | expected
    request = promote.PromotionRequest(
        chosen,
        alias,
        rules,
        tasks=None if own else task_choice.chosen(tasks),
        evaluator=own,
        dry_run=dry_run,
        device=device,
        cache=not no_cache,
        **given,
    )
    decision = promote.promote(request, show=terminal.show)
    if as_json:
        printing.print_json(decision.to_dict())
    else:
        terminal.print_table(
            [printing.short_digests(row) for row in decision.verdict.rows()], COLUMNS
        )
        for entry in decision.recorded:
            printing.echo(f"on record already: {entry}")
        for each in decision.would_measure:
            printing.echo(f"would measure {each}")
        printing.echo(decision.sentence)
        if decision.run_id:
            printing.echo(f"decision: run {decision.run_id} of {request.experiment}")
    if decision.result != "promoted":
        ctx.exit(REFUSED)


@click.command("approve")
@click.argument("name", required=False, metavar="[NAME|URI]")
@name_option
@version_option
@uri_option
@click.option("--comment", default="", help="Why, for the history.")
@options.switch("--withdraw", help="Take your own approval back.")
@options.notify_option
@options.ledger_option
@options.json_option
def approve_command(
    name: str | None,
    named: str | None,
    version: int | None,
    uri: str | None,
    comment: str,
    withdraw: bool | None,
    as_json: bool,
) -> None:
    """Approve a version's weights, so that a policy that asks for approvals lets them through.

    The approval holds for exactly these bytes. Who made them can't approve them.

    \b
    mlflow-breadcrumbs approve clip-merged/2 --comment "looked at the confusions"
    """
    chosen = _uri(name or named, version, uri)
    from mlflow_breadcrumbs.promotion import approvals
    from mlflow_breadcrumbs.registry import projects

    done = (approvals.withdraw if withdraw else approvals.approve)(chosen, comment)
    people = ", ".join(entry.person for entry in done.standing) or "nobody"
    what = "withdrawn" if withdraw else "given"
    said = f"approval of {done.uri} {what} by {done.person} (event {done.event})"
    projects.point(f"approve {done.uri}", said, version=done.uri)
    if as_json:
        printing.print_json(done.to_dict())
        return
    printing.echo(said)
    printing.echo(f"approved by {people} now; weights {done.weights_digest}")


@click.command("recall")
@click.argument("uri", type=addresses.VERSION)
@click.option("--reason", type=options.TEXT, default="", help="Why: it is shown to everybody.")
@options.switch("--withdraw", help="The weights may be used again.")
@options.notify_option
@options.ledger_option
@options.json_option
def recall_command(uri: str, reason: str, withdraw: bool | None, as_json: bool) -> None:
    """Say that a version's weights are not to be used, and show what descends from them.

    Neither they nor anything that was made from them is promoted or gone back to until that is
    withdrawn. No alias is moved: those that are live are listed.

    \b
    mlflow-breadcrumbs recall clip-cars/1 --reason "trained on test images"
    """
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.promotion import recalls

    done = (recalls.withdraw if withdraw else recalls.recall)(uri, reason)
    if as_json:
        printing.print_json(done.to_dict())
        return
    rows = [entry.to_dict() | {"aliases": ", ".join(entry.aliases)} for entry in done.affected]
    if rows:
        terminal.print_table(
            rows, {"uri": "descends from it", "kind": "kind", "aliases": "aliases now"}
        )
    what = "is no longer recalled" if withdraw else "is recalled"
    printing.echo(f"{done.uri} {what} (event {done.event}); weights {done.weights_digest}")
    if done.live:
        printing.echo(f"live now: {', '.join(done.live)}")


@click.command("rollback")
@click.argument("name")
@alias_option
@click.option(
    "--to",
    type=options.WHOLE,
    metavar="VERSION",
    help="A version that had the alias.  [default: the last one that still verifies]",
)
@expected_option
@options.notify_option
@options.ledger_option
@options.json_option
@click.pass_context
def rollback_command(
    ctx: click.Context,
    name: str,
    alias: str,
    to: int | None,
    expect_current: str | None,
    as_json: bool,
) -> None:
    """Move an alias back to the version that had it before.

    The version must exist, with the weights that it was registered and promoted with. Nothing else
    is looked at, so that this works when runs and images are gone. Exit code 3 if there is none.

    \b
    mlflow-breadcrumbs rollback clip-merged --alias champion
    """
    from mlflow_breadcrumbs.promotion import rollback
    from mlflow_breadcrumbs.registry import projects

    version = None if to is None else str(to)
    done = rollback.rollback(name, alias, version, **_expected(expect_current))
    projects.point(f"rollback {name}@{alias}", done.sentence)
    if as_json:
        printing.print_json(done.to_dict())
    else:
        for note in done.skipped:
            printing.echo(note)
        printing.echo(done.sentence)
    if not done.moved:
        ctx.exit(REFUSED)


@click.command("recheck")
@click.argument("target", metavar="NAME@ALIAS")
@task_choice.option("Task file with fresh images.  [default: the version's, or its base's]")
@evaluator_choice.option
@click.option(
    "--policy",
    type=options.TEXT,
    metavar="FILE",
    help="What it must show.  [default: the policy that it was promoted by]",
)
@click.option(
    "--rollback", "roll_back", is_flag=True, help="Go back to the version before, if a rule fails."
)
@click.option(
    "--experiment",
    type=options.TEXT,
    metavar="NAME",
    help="Of the rechecks' runs.  [default: breadcrumbs-promotions]",
)
@options.batch_size_option
@options.device_option
@options.notify_option
@options.ledger_option
@options.json_option
@click.pass_context
def recheck_command(
    ctx: click.Context,
    target: str,
    tasks: str | None,
    evaluator: str | None,
    policy: str | None,
    roll_back: bool,
    experiment: str | None,
    batch_size: int,
    device: str,
    as_json: bool,
) -> None:
    """Measure the live version anew and see whether the rules still hold.

    For a scheduler. The run has the drift of every task, as metrics, table and picture. Exit code 3
    if a rule does not hold, whether or not the alias was rolled back.

    \b
    mlflow-breadcrumbs recheck clip-merged@champion --tasks fresh.yaml --rollback
    """
    live = uris.parse(uris.full(target)) if uris.names_version(target) else None
    if live is None or live.name is None or live.alias is None:
        raise click.UsageError(f"{target!r} is no version by its alias; give NAME@ALIAS.")
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.promotion import policies, recheck

    own = evaluator_choice.chosen(evaluator, tasks)
    request = recheck.RecheckRequest(
        live.name,
        live.alias,
        None if own else task_choice.needed(tasks, uris.full(target)),
        policies.load(policy) if policy else None,
        evaluator=own,
        roll_back=roll_back,
        device=device,
        batch_size=batch_size,
        **({"experiment": experiment} if experiment else {}),
    )
    done = recheck.recheck(request, show=terminal.show)
    if as_json:
        printing.print_json(done.to_dict())
    else:
        rows = [printing.short_digests(row) for row in done.verdict.rows()]
        terminal.print_table(rows, COLUMNS)
        terminal.print_table([entry.to_dict() for entry in done.drifts], DRIFT_COLUMNS)
        printing.echo(done.sentence)
        printing.echo(f"run {done.run_id}: drift.png")
    if not done.held:
        ctx.exit(REFUSED)


def _override(
    uri: str, alias: str, reason: str, expected: dict[str, str | None], as_json: bool
) -> None:
    """Have the server pass its policy by, and say so."""
    from mlflow_breadcrumbs.promotion import overriding

    done = overriding.ask(overriding.Emergency(uri, alias, reason, **expected))
    if as_json:
        printing.print_json(done.to_dict())
    else:
        printing.echo(done.sentence)


def _uri(name: str | None, version: int | None, uri: str | None) -> str:
    """The one version that is meant; a name alone may be a version's address."""
    if uri and not name and version is None:
        return uri
    if not uri and name and version is not None:
        return uris.of_version(name, version)
    if not uri and name and uris.names_version(name):
        return uris.full(name)
    raise click.UsageError("Give a version as NAME/VERSION or NAME@ALIAS, or NAME and --version.")


def _expected(text: str | None) -> dict[str, str | None]:
    """What `--expect-current` says, as fields of a request; none where it was not given."""
    if text is None:
        return {}
    if text != "none" and not text.isdecimal():
        raise click.UsageError(
            f"--expect-current is {text!r}; give a version's number, or none where no version "
            "has the alias yet."
        )
    return {"expected": None if text == "none" else text}


COLUMNS = {
    "name": "rule",
    "value": "value",
    "limit": "limit",
    "verdict": "verdict",
    "sentence": "why",
}

DRIFT_COLUMNS = {
    "task": "task",
    "images": "images",
    "before": "before",
    "accuracy": "now",
    "drift": "drift",
    "drift_low": "95% from",
    "drift_high": "to",
}
