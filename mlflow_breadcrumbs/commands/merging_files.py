"""The engine of a merge alone, on files; and what merges of either kind take and print."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mlflow_breadcrumbs.commands import (
    addresses,
    mergekit_choice,
    options,
    printing,
    spreading,
)
from mlflow_breadcrumbs.engine import drafts
from mlflow_breadcrumbs.support import wording

if TYPE_CHECKING:
    from mlflow_breadcrumbs.engine import merging
    from mlflow_breadcrumbs.engine.shards import budgets


DRY_RUN = click.option(
    "--dry-run",
    is_flag=True,
    help="Merge nothing: say what there is to read and write, and what it will take.",
)


AS_ADAPTER = click.option(
    "--as-adapter",
    "adapter_rank",
    type=options.WHOLE,
    metavar="RANK",
    help="Keep the change as one LoRA adapter of this rank: merge-files writes it, and no whole "
    "checkpoint, into the folder --output; merge into its run.",
)


@click.command("merge-files")
@functools.partial(addresses.files_options, required=False)
@mergekit_choice.option
@click.option(
    "--output",
    required=True,
    type=click.Path(),
    help="Merged .safetensors file; with --as-adapter, the adapter's folder.",
)
@AS_ADAPTER
@options.draft_options
@options.engine_options
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda",
    help="Where the merge is computed; auto is the CPU.",
)
@click.option(
    "--max-shard-size",
    type=options.Size(),
    help="Split the output into files of at most this size; with ray, each is one piece of work.  "
    f"[default with ray: {options.SHARD_SIZE}]",
)
@spreading.executor_options
@DRY_RUN
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@click.option(
    "--digests",
    is_flag=True,
    help="Print the inputs' weights digests too; they come from the bytes that were merged.",
)
@options.json_option
def merge_files(
    base: str | None,
    sources: tuple[addresses.Weighted, ...],
    mergekit: str | None,
    output: str,
    adapter_rank: int | None,
    backend: str | None,
    threads: int | None,
    max_norm_ratio: float,
    device: str,
    max_shard_size: int | None,
    executor_name: str | None,
    workers: int | None,
    ray_address: str | None,
    dry_run: bool,
    overwrite: bool,
    digests: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Merge safetensors checkpoints, without MLflow.

    A checkpoint is a .safetensors file, a *.safetensors.index.json of shards, or a folder with
    one of these. Workers elsewhere find files by the same paths.

    \b
    mlflow-breadcrumbs merge-files --base base.safetensors \\
        --source cars.safetensors --source signs.safetensors=0.5 --output merged.safetensors
    """
    if adapter_rank is not None and (executor_name == "ray" or max_shard_size is not None):
        raise click.UsageError(
            "--as-adapter goes with neither --executor ray nor --max-shard-size, which are for "
            "whole checkpoints"
        )
    theirs = mergekit_choice.chosen(mergekit, given | {"base": base, "sources": sources})
    if theirs is not None:
        draft = drafts.RecipeDraft(theirs.recipe)
        base, sources = theirs.base, tuple((name, None) for name in theirs.sources)
    else:
        mergekit_choice.needed(base, sources)
        draft = options.make_draft(sources, given)
    from mlflow_breadcrumbs.commands import terminal
    from mlflow_breadcrumbs.engine import files
    from mlflow_breadcrumbs.engine.backends import choosing

    base = str(base)
    if dry_run:
        chosen = choosing.choose(device, backend or "auto", threads=threads)
        paths = [path for path, _ in sources]
        print_budget(
            files.budget(base, paths, draft, chosen, max_shard_size, terminal.show), as_json=as_json
        )
        return
    threads = spreading.threads_of(executor_name, threads)
    if adapter_rank is not None:
        result = files.merge_as_adapter(
            base,
            [path for path, _ in sources],
            draft,
            output,
            adapter_rank,
            threads=threads,
            backend=choosing.choose(device, backend or "auto", threads=threads),
            max_norm_ratio=max_norm_ratio,
            verify=digests,
            overwrite=overwrite,
            show=terminal.show,
        )
        _print_result(result, [base, *(path for path, _ in sources)], as_json=as_json)
        return
    spread = (executor_name, workers, ray_address, threads, device)
    if executor_name == "ray" and max_shard_size is None:
        max_shard_size = options.size(options.SHARD_SIZE)
    with spreading.opened(*spread) as executor:
        choose = choosing.ChosenThere if executor else choosing.choose
        result = files.merge_files(
            base,
            [path for path, _ in sources],
            draft,
            output,
            backend=choose(device, backend or "auto", threads=threads),
            max_norm_ratio=max_norm_ratio,
            verify=digests,
            max_shard_size=max_shard_size,
            executor=executor,
            overwrite=overwrite,
            show=terminal.show,
        )
    _print_result(result, [base, *(path for path, _ in sources)], as_json=as_json)


def _print_result(result: "merging.MergeResult", inputs: Sequence[str], *, as_json: bool) -> None:
    """Say what a merge of files wrote."""
    if as_json:
        printing.print_json(result.to_dict())
    else:
        print_merge(result, inputs)


def print_budget(found: "budgets.Budget", *, as_json: bool) -> None:
    """Say what a merge would take."""
    if as_json:
        printing.print_json(found.to_dict())
        return
    for what, said in found.lines():
        printing.echo(f"{what + ':':<17}{said}")


def print_merge(result: "merging.MergeResult", inputs: Sequence[str]) -> None:
    """Say what was merged from which files, the base first, and the digests that are known."""
    from mlflow_breadcrumbs.commands import terminal

    terminal.print_table(
        result.source_rows(inputs[1:]),
        {
            "source": "source",
            "norm": "‖task vector‖",
            "kept": "kept",
            "energy_kept": "energy kept",
        },
    )
    printing.print_notes(result.notes)
    if result.choice:
        printing.echo(f"Chosen: {result.choice.why}.")
    printing.echo(
        f"{result.output}: {wording.counted(result.merged_tensors, 'tensors')}, "
        f"{result.parameters / 1e6:.1f} M parameters merged in {result.seconds:.1f} s"
    )
    if result.base_digest is not None:
        digests = (result.base_digest, *(result.source_digests or ()))
        for digest, path in zip(digests, inputs, strict=True):
            printing.echo(f"{digest}  {path}")
    printing.echo(f"{result.weights_digest}  {result.output}")
