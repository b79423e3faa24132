"""What was merged as one LoRA adapter, kept in the run; the version itself stays whole."""

from pathlib import Path

import mlflow

from mlflow_breadcrumbs.engine import checkpoints, lowering
from mlflow_breadcrumbs.lineage import contents, kept_adapters, statement
from mlflow_breadcrumbs.pipeline import inputs
from mlflow_breadcrumbs.registry import run_files, versions
from mlflow_breadcrumbs.support import processes, progress

ENERGY = "adapter_energy_kept"
"""The metric, of all tensors; with a slash and its name, of a layer group."""


def log(
    run_id: str,
    taken: inputs.Inputs,
    merged: Path,
    rank: int,
    *,
    threads: int | None,
    show: progress.Progress,
) -> lowering.LoweredChange:
    """Make an adapter of merged weights, and keep it in the run with what it has of the change.

    Args:
        run_id: of the merge.
        taken: the base and the sources.
        merged: the merged checkpoint.
        rank: of the adapter.
        threads: matrices at a time; all processors when `None`.
        show: is told the tensors.

    Raises:
        MergeError: no matrix changed.
        MlflowException, OSError: the store refuses it, or its disk is full.
    """
    folder = merged.parent / kept_adapters.NAME
    with (
        checkpoints.Checkpoint.open(taken.base.stored) as base,
        checkpoints.Checkpoint.open(merged) as whole,
    ):
        made = lowering.write(
            base,
            whole,
            folder,
            rank,
            named=taken.base.resolved.uri,
            threads=threads or processes.processors(),
            overwrite=True,
            show=show,
        )
    mlflow.MlflowClient().log_artifacts(run_id, str(folder), kept_adapters.NAME)
    metrics = {ENERGY: made.energy_kept}
    metrics |= {f"{ENERGY}/{group}": kept for group, (_, kept) in made.groups.items()}
    run_files.log_metrics(run_id, metrics)
    return made


def named(made: lowering.LoweredChange) -> kept_adapters.KeptAdapter:
    """An adapter as the lineage names it."""
    return kept_adapters.KeptAdapter(
        rank=made.rank,
        energy_kept=made.energy_kept,
        file_digest=made.file_digest,
        weights_digest=made.weights_digest,
        nbytes=made.nbytes,
    )


def rank_of(uri: str) -> int | None:
    """The rank of the adapter that was kept of a merged version, by what its lineage says."""
    stated = contents.lineage_of(versions.resolve(uri))
    return stated.adapter_rank if isinstance(stated, statement.Statement) else None
