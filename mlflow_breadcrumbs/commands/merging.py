"""The main job."""

import functools
import shlex
from typing import TYPE_CHECKING, Any

import click

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.commands import (
    addresses,
    changes,
    evaluator_choice,
    experiments,
    mergekit_choice,
    merging_files,
    options,
    printing,
    spreading,
    task_choice,
)
from mlflow_breadcrumbs.engine import drafts
from mlflow_breadcrumbs.registry import uris
from mlflow_breadcrumbs.support import scales

if TYPE_CHECKING:
    from mlflow_breadcrumbs.evaluation import evaluator_files
    from mlflow_breadcrumbs.pipeline import merge_request, outcomes


@click.command("merge")
@functools.partial(addresses.sources_options, required=False)
@mergekit_choice.option
@changes.change_options
@click.option(
    "--registered-model",
    type=options.TEXT,
    metavar="NAME",
    help="Where the result goes.  [with --from, by default: where that version is]",
)
@task_choice.option(
    "Task file: evaluate on these images; none: don't.  [default: the base's; with --from, none]"
)
@evaluator_choice.option
@options.draft_options
@options.engine_options
@options.device_option
@options.batch_size_option
@options.cache_option
@merging_files.AS_ADAPTER
@options.switch(
    "--choose",
    help="Try the few best recipes on the tasks' validation images, and merge by the best.",
)
@click.option("--alias", type=options.TEXT, help="Point this alias at the merged version.")
@click.option(
    "--max-shard-size",
    type=options.Size(),
    help="Write files of at most this size, as 5GB.  [default: as the base's files]",
)
@click.option(
    "--work-folder",
    type=options.TEXT,
    metavar="FOLDER",
    help="Keep what is merged here until it is registered; a call after a killed one goes on.",
)
@options.switch(
    "--plan-only",
    help="Only plan the merge in the work folder; workers do its shards (work), then merge again.",
)
@merging_files.DRY_RUN
@spreading.executor_options
@click.option("--force", is_flag=True, help="Make a new version even if this merge exists.")
@options.force_alias_option
@experiments.experiment_option
@options.notify_option
@options.ledger_option
@options.json_option
def merge_command(
    mergekit: str | None,
    origin: str | None,
    registered_model: str | None,
    tasks: str | None,
    evaluator: str | None,
    backend: str | None,
    threads: int | None,
    max_norm_ratio: float,
    device: str,
    batch_size: int,
    no_cache: bool,
    choose: bool | None,
    alias: str | None,
    force: bool,
    force_alias: bool,
    keep_parts: bool | None,
    adapter_rank: int | None,
    max_shard_size: int | None,
    work_folder: str | None,
    plan_only: bool | None,
    dry_run: bool,
    executor_name: str | None,
    workers: int | None,
    ray_address: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Merge registered versions into one new registered version: the main job.

    A URI is NAME/VERSION or NAME@ALIAS, or the same as MLflow writes it, with models:/ before it.

    \b
    mlflow-breadcrumbs merge --base models:/clip/1 \\
        --source models:/clip-cars@best --source models:/clip-signs/3=0.5 \\
        --registered-model clip-merged --tasks tasks.yaml --alias candidate

    \b
    mlflow-breadcrumbs merge --from models:/clip-merged/1 --add models:/clip-birds/1
    """
    if dry_run and (plan_only or choose):
        raise click.UsageError(
            "--dry-run goes with neither --plan-only, which writes a plan, nor --choose, which "
            "merges and measures"
        )
    theirs = mergekit_choice.chosen(mergekit, given | {"choose": choose, "origin": origin})
    if theirs is not None:
        given["base"] = uris.full(theirs.base)
        given["sources"] = tuple((uris.full(name), None) for name in theirs.sources)
    change = changes.read(origin, given | {"choose": choose})
    target = changes.target(registered_model, change)
    if change is None:
        if choose and given["method"] is None:
            given["method"] = drafts.AUTO
        everything = addresses.all_sources(given["sources"], given["source_list"])
        base = given["base"]
        draft = (
            options.make_draft(everything, given)
            if theirs is None
            else drafts.RecipeDraft(theirs.recipe)
        )
        method, sources = given["method"], tuple(uri for uri, _ in everything)
    else:
        base, draft = change.base, drafts.RecipeDraft(change.recipe)
        method, sources = change.method, change.sources
    patterns = draft.patterns
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.pipeline import flow, merge_request, planning
    from mlflow_breadcrumbs.registry import permissions
    from mlflow_breadcrumbs.support import executors

    permissions.check(target)  # before anything of the base is read
    own = evaluator_choice.chosen(evaluator, tasks)
    tasks = None if own else task_choice.chosen(tasks, None if change else base)
    choice = None
    if choose:
        choice = _choose(
            base, sources, tasks, own, draft, device, batch_size, threads, max_norm_ratio
        )
        draft, method = drafts.RecipeDraft(choice.recipe), choice.method
    request = merge_request.MergeRequest(
        base=base,
        sources=sources,
        registered_model=target,
        recipe=draft.recipe,
        left_open=draft.open,
        patterns=patterns,
        choice=choice,
        tasks=tasks,
        evaluator=own,
        device=device,
        batch_size=batch_size,
        cache=not no_cache,
        backend=backend or "auto",
        threads=spreading.threads_of(executor_name, threads),
        max_norm_ratio=max_norm_ratio,
        max_shard_size=max_shard_size,
        work_folder=work_folder,
        alias=alias,
        force=force,
        force_alias=force_alias,
        method=method,
        keep_parts=bool(keep_parts),
        adapter_rank=adapter_rank,
        change=change,
    )
    if plan_only:
        _plan(request, as_json=as_json)
        return
    if dry_run:
        merging_files.print_budget(planning.budget(request, terminal.show), as_json=as_json)
        return
    if executor_name == "ray" and work_folder is None:
        raise click.UsageError("--executor ray needs a --work-folder that all its workers mount")
    with spreading.opened(executor_name, workers, ray_address, threads, device) as executor:
        result = flow.merge(request, terminal.show, executor or executors.LOCAL)
    measured = tasks or own
    following = _next_command(request, result) if result.warnings and measured else None
    if as_json:
        printing.print_json(result.to_dict() | ({"next": following} if following else {}))
        return
    if rows := result.rows():
        shown = printing.with_intervals([scales.shown(row) for row in rows])
        terminal.print_table(shown, TASK_COLUMNS)
    printing.print_notes(result.notes)
    if result.choice:
        printing.echo(f"Chosen: {result.choice.why}.")
    state = "exists already, nothing was merged" if result.reused else "registered"
    pointed = f", alias {result.alias}" if result.alias else ""
    printing.echo(f"{result.version.uri} {state}{pointed}")
    printing.echo(result.version.weights_digest)
    for warning in result.warnings:
        printing.echo(f"Warning: {warning}.")
    if following:
        printing.echo(f"Next: {following}")


def _plan(request: "merge_request.MergeRequest", *, as_json: bool) -> None:
    """Plan a merge, and say what to call."""
    if request.work_folder is None or request.keep_parts or request.change:
        raise click.UsageError(
            "--plan-only needs a --work-folder that all workers mount, and goes with neither "
            "--from nor --keep-parts"
        )
    from mlflow_breadcrumbs.commands import sharding, terminal
    from mlflow_breadcrumbs.pipeline import planning

    path, made = planning.plan(request, terminal.show)
    if as_json:
        printing.print_json({"plan": str(path), **sharding.summary(made)})
        return
    sharding.print_plan(path, made)
    printing.echo(f"Next: {shlex.join(['mlflow-breadcrumbs', 'work', str(path), '--missing'])}")
    printing.echo("Then: this command again, without --plan-only")


def _next_command(request: "merge_request.MergeRequest", result: "outcomes.MergedVersion") -> str:
    """What to call where a task goes badly: the choice among recipes, or after it, who is to blame.

    In the study the best of the candidates is far above any recipe that adds element by element,
    whatever its scale; see docs/study.md.
    """
    chosen = result.choice is not None and "tried" in result.choice.measured
    if chosen or request.change:
        worst = min(result.rows()[:-1], key=lambda row: row["normalized_accuracy"])
        words = ["blame", result.version.uri, "--task", worst["task"], *_measuring(request)]
    else:
        weights = [f"={weight:g}" for weight in request.recipe.weights]
        words = ["merge", "--base", request.base]
        for uri, weight in zip(
            request.sources, weights or [""] * len(request.sources), strict=True
        ):
            words += ["--source", uri + weight]
        words += ["--registered-model", request.registered_model, *_measuring(request), "--choose"]
    return shlex.join(["mlflow-breadcrumbs", *map(str, words)])


def _measuring(request: "merge_request.MergeRequest") -> list[str]:
    """The words that say by what a merge was measured."""
    if request.evaluator is not None:
        return ["--evaluator", request.evaluator.description]
    return ["--tasks", str(request.tasks)]


def _choose(
    base: str,
    sources: tuple[str, ...],
    tasks: str | None,
    evaluator: "evaluator_files.UserEvaluator | None",
    draft: drafts.RecipeDraft,
    device: str,
    batch_size: int,
    threads: int | None,
    max_norm_ratio: float,
) -> drafts.Choice:
    """The best of the candidates on validation images."""
    if tasks is None and evaluator is None:
        raise errors.TaskError("--choose looks at validation images; give --tasks")
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.search import candidates, workbench

    printing.remark(f"Choosing: {candidates.cost(len(sources), whole=evaluator is not None)}.")
    materials = workbench.Materials(
        base=base,
        sources=sources,
        tasks=tasks,
        evaluator=evaluator,
        device=device,
        batch_size=batch_size,
        threads=threads,
        max_norm_ratio=max_norm_ratio,
    )
    return candidates.choose(materials, draft, terminal.show)


TASK_COLUMNS = {
    "task": "task",
    "zero_shot_accuracy": "base",
    "finetuned_accuracy": "source",
    "accuracy": "merged",
    "interval": "95% interval",
    "normalized_accuracy": "merged / source",
}
