"""A merge of files shard by shard, by any number of workers: plan, work, finish."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_breadcrumbs.commands import addresses, merging_files, options, printing
from mlflow_breadcrumbs.support import defaults, wording

if TYPE_CHECKING:
    from mlflow_breadcrumbs.engine.shards import plans


@click.command("plan")
@addresses.files_options
@click.option(
    "--output",
    required=True,
    type=click.Path(),
    help="Merged .safetensors file; several shards are numbered and get an index.",
)
@click.option(
    "--plan", "target", type=click.Path(), help="Where the plan goes.  [default: OUTPUT.plan.json]"
)
@options.draft_options
@click.option(
    "--max-shard-size",
    type=options.Size(),
    default=options.SHARD_SIZE,
    show_default=True,
    help="A shard of the output is one piece of work, of at most this size.",
)
@click.option(
    "--max-norm-ratio",
    type=options.NUMBER,
    default=defaults.MAX_NORM_RATIO,
    show_default=True,
    help="Refuse, at the end, a source farther from the base than so many times its norm.",
)
@click.option("--threads", type=options.WHOLE, help="That read sources.  [default: all]")
@options.json_option
def plan_command(
    base: str,
    sources: tuple[tuple[str, float | None], ...],
    output: str,
    target: str | None,
    max_shard_size: int,
    max_norm_ratio: float,
    threads: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Plan a merge of files that workers do shard by shard.

    Headers are read, and for the unit model the sources. The plan is a small JSON file: the inputs
    with size and time, and what is in each shard. Paths must be the same for every worker.

    \b
    mlflow-breadcrumbs plan --base base.safetensors --source cars.safetensors \\
        --source signs.safetensors --output merged.safetensors
    mlflow-breadcrumbs work merged.safetensors.plan.json --shard 1   # on any machine
    mlflow-breadcrumbs finish merged.safetensors.plan.json
    """
    draft = options.make_draft(sources, given)
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.engine import files

    made, choice = files.plan_files(
        base,
        [path for path, _ in sources],
        draft,
        output,
        max_shard_size=max_shard_size,
        max_norm_ratio=max_norm_ratio,
        threads=threads,
        show=terminal.show,
    )
    path = target or f"{output}.plan.json"
    made.save(path)
    if as_json:
        chosen = {"choice": choice.to_dict()} if choice else {}
        printing.print_json({"plan": path, **summary(made), **chosen})
        return
    if choice:
        printing.echo(f"Chosen: {choice.why}.")
    print_plan(path, made)
    if made.staging.has_output(sharded=len(made.shards) > 1):
        printing.print_notes([f"{output} exists; finish replaces it only with --overwrite"])


@click.command("work")
@click.argument("plan", type=click.Path())
@click.option(
    "--shard",
    "numbers",
    type=click.IntRange(min=1),
    multiple=True,
    help="Number of a shard, from 1; repeatable.",
)
@click.option("--missing", is_flag=True, help="All shards that have not been done.")
@click.option(
    "--backend",
    type=options.choice(*options.BACKENDS),
    default="auto",
    show_default=True,
    help="What computes the shard; the masks of the unit model are the cpu backend's.",
)
@click.option("--threads", type=options.WHOLE, help="Of the cpu backend.  [default: all]")
@click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="auto is the CPU."
)
@options.json_option
def work_command(
    plan: str,
    numbers: tuple[int, ...],
    missing: bool,
    backend: str | None,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Do shards of a planned merge.

    Any process may do any shard, also again: the result is the same.

    \b
    mlflow-breadcrumbs work merged.safetensors.plan.json --shard 3
    """
    if bool(numbers) == missing:
        raise click.UsageError("name the shards (--shard 3), or all that are not done (--missing)")
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.engine.backends import choosing
    from mlflow_breadcrumbs.engine.shards import plans, working

    read = plans.read(plan)
    chosen = choosing.choose(device, backend or "auto", threads=threads)
    done = []
    wanted = working.missing(read) if missing else numbers
    for note in working.work_all(read, wanted, backend=chosen, threads=threads, show=terminal.show):
        done.append({"shard": note.shard, "file": note.file, "seconds": round(note.seconds, 3)})
        if not as_json:
            printing.echo(
                f"shard {note.shard} of {len(read.shards)}: {wording.size(note.nbytes)} "
                f"in {note.seconds:.1f} s"
            )
    left = working.missing(read)
    if as_json:
        printing.print_json({"done": done, "missing": left})
    else:
        said = f"{wording.counted(len(left), 'shards')} not done" if left else "All shards are done"
        printing.echo(f"{said}.")


@click.command("finish")
@click.argument("plan", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@click.option(
    "--verify",
    is_flag=True,
    help="Read every shard once more, and hold it against what its worker wrote.",
)
@options.json_option
def finish_command(plan: str, overwrite: bool, verify: bool, as_json: bool) -> None:
    """Put the shards of a planned merge into place, once all are done.

    Digests and statistics of all shards are combined, and the sources' norms checked; then the
    files are moved beside the output's index.

    \b
    mlflow-breadcrumbs finish merged.safetensors.plan.json
    """
    from mlflow_breadcrumbs.engine.shards import finishing, plans

    read = plans.read(plan)
    if read.ended_by is not None:
        raise click.UsageError(
            f"this merge is ended by `{read.ended_by}`, which registers it: call that again as it "
            "was called with --plan-only, without that"
        )
    result = finishing.finish(read, overwrite=overwrite, verify=verify)
    if as_json:
        printing.print_json(result.to_dict())
    else:
        merging_files.print_merge(
            result, [read.base.path, *(source.label for source in read.sources)]
        )


def print_plan(path: str | Path, plan: "plans.ShardPlan") -> None:
    """Say where a plan is, and what there is to do."""
    printing.echo(
        f"{path}: {wording.counted(len(plan.shards), 'shards')}, "
        f"{wording.size(plan.bytes_read)} to read, {wording.size(plan.bytes_written)} to write"
    )


def summary(plan: "plans.ShardPlan") -> dict[str, Any]:
    """What there is to do, for `--json`."""
    return {
        "output": plan.output,
        "recipe": plan.fields,
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "shards": [
            {
                "shard": number,
                "file": Path(shard.file).name,
                "tensors": len(shard.tensors),
                "bytes_read": shard.bytes_read,
                "bytes_written": shard.bytes_written,
            }
            for number, shard in enumerate(plan.shards, start=1)
        ],
    }
