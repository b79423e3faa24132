"""All shards of a merge in one process, which goes on where a killed one stopped."""

import contextlib
import dataclasses
import glob
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import backends, checkpoints, merging, recipe, writing
from mlflow_breadcrumbs.engine.shards import finishing, notes, places, plans, working
from mlflow_breadcrumbs.support import progress

LOCK = "lock"
"""Held in the folder of a plan while its shards are done here."""


def merge(
    base: checkpoints.Checkpoint,
    sources: Sequence[checkpoints.Checkpoint],
    settings: recipe.MergeRecipe,
    output: str | Path,
    *,
    labels: Sequence[str] | None = None,
    backend: backends.Backend | None = None,
    overwrite: bool = False,
    keep: bool = False,
    show: progress.Progress = progress.silent,
    **given: Any,
) -> merging.MergeResult:
    """Merge shard by shard; what a call with the same inputs did before it was killed is kept.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        sources: in the order that the sum takes.
        settings: the recipe.
        output: a path ending in `.safetensors`; its index appears last.
        labels: how messages name each source; the files' paths when not given.
        backend: as for `working.work`.
        overwrite: replace an output that exists.
        keep: leave the notes, so that the same call takes up even a finished output; who calls
            removes them, with the output's folder.
        show: is told the bytes read.
        given: arguments of `plans.of`.

    Raises:
        MergeError: see `merging.merge`.
        IntegrityError: see `merging.merge`.
        CheckpointError: the output can't be written, or another process is writing it.
    """
    started = time.perf_counter()
    job = merging.plan(base, sources, settings, labels)
    plan = plans.of(job, output, **given)
    job = dataclasses.replace(job, verify=plan.verify)
    finishing.check_output(plan, plan.layout(job), overwrite=overwrite)
    try:
        with _held(plan):
            _work(plan, job, backend, show)
            result = finishing.finish_on(plan, job, overwrite=overwrite)
    except (errors.MergeError, errors.IntegrityError):
        notes.clear(plan)  # what is done is of no use; after a full disk it is
        raise
    if not keep:
        notes.clear(plan)
        _clear_older(plan)
    return dataclasses.replace(result, seconds=time.perf_counter() - started)


def _work(
    plan: plans.ShardPlan,
    job: backends.Job,
    backend: backends.Backend | None,
    show: progress.Progress,
) -> None:
    """Do the shards that are missing."""
    done = notes.find(plan)
    with show("merge", total=plan.bytes_read, unit="bytes") as advance:
        for number, shard in enumerate(plan.shards, start=1):
            if number in done:
                advance(shard.bytes_read)
            else:
                working.work_on(plan, job, number, advance, backend=backend)


def _clear_older(plan: plans.ShardPlan) -> None:
    """Remove what other calls left that were stopped, for the output that is there now.

    Only folders with a lock are this module's, and only while nobody holds it.
    """
    if not isinstance(plan.staging, places.OnDisk):
        return
    output = Path(plan.output)
    for folder in output.parent.glob(f".{glob.escape(output.name)}.????????.shards"):
        lock = folder / LOCK
        if lock.exists():
            with contextlib.suppress(filelock.Timeout, OSError), filelock.FileLock(lock, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(plan: plans.ShardPlan) -> Iterator[None]:
    """Keep other processes from the folder of a plan; in a store, two at once do no harm."""
    if not isinstance(plan.staging, places.OnDisk):
        yield
        return
    try:
        plan.staging.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(plan.staging.path / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise errors.CheckpointError(
            f"another process is writing {plan.output}, in {plan.staging}; wait for it, or stop it"
        ) from error
    except OSError as error:
        raise writing.explain(error, Path(plan.output), plan.bytes_written) from error
    try:
        yield
    finally:
        lock.release()
