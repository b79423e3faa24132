"""All shards of a merge in one call, which goes on where a killed one stopped.

Who plans and finishes is this process; the shards are done here, or by workers elsewhere.
"""

import contextlib
import dataclasses
import functools
import glob
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import backends, checkpoints, merging, recipe, writing
from mlflow_breadcrumbs.engine.shards import finishing, notes, places, plans, working
from mlflow_breadcrumbs.support import executors, progress

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
    executor: executors.Executor = executors.LOCAL,
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
        backend: as for `working.work`; where the executor's workers are elsewhere, it travels.
        executor: does the shards.
        overwrite: replace an output that exists.
        keep: leave the notes, so that the same call takes up even a finished output; who calls
            removes them, with the output's folder.
        show: is told the bytes read.
        given: arguments of `plans.of`.

    Raises:
        MergeError: see `merging.merge`.
        IntegrityError: see `merging.merge`.
        CheckpointError: the output can't be written, or another process is writing it.
        ExecutorError: see `executors.Executor.run`.
    """
    started = time.perf_counter()
    job = merging.plan(base, sources, settings, labels)
    plan = plans.of(job, output, **given)
    job = dataclasses.replace(job, verify=plan.verify)
    finishing.check_output(plan, plan.layout(job), overwrite=overwrite)
    try:
        with _held(plan):
            _work(ShardWork(plan, backend, job), executor, show)
            result = finishing.finish_on(plan, job, overwrite=overwrite)
    except (errors.MergeError, errors.IntegrityError):
        notes.clear(plan)  # what is done is of no use; after a full disk it is
        raise
    if not keep:
        notes.clear(plan)
        _clear_older(plan)
    return dataclasses.replace(result, seconds=time.perf_counter() - started)


@dataclasses.dataclass(frozen=True)
class ShardWork:
    """What the shards of a merge share; a piece is a shard's number."""

    plan: plans.ShardPlan
    backend: backends.Backend | None = None
    job: backends.Job | None = None
    """The merge with its inputs open, where this process has it; a worker elsewhere opens them."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the open inputs behind."""
        return ShardWork, (self.plan, self.backend)

    @contextlib.contextmanager
    def begin(self) -> Iterator[Callable[[int, progress.Advance], notes.ShardNote]]:
        """What does a shard."""
        known = contextlib.nullcontext(self.job) if self.job else self.plan.opened()
        with known as job:
            do = functools.partial(working.work_on, self.plan, job)
            yield functools.partial(do, backend=self.backend)


def _work(work: ShardWork, executor: executors.Executor, show: progress.Progress) -> None:
    """Do the shards that are missing, and those that are not what was written any more."""
    plan = work.plan
    found = notes.find(plan)
    # Another call or a worker wrote these, so they are read before they are built upon.
    done = [number for number, note in found.items() if notes.is_whole(plan, note)]
    missing = notes.missing(plan, done)
    with show("merge", total=plan.bytes_read, unit="bytes") as advance:
        advance(sum(plan.shards[number - 1].bytes_read for number in done))
        amounts = [plan.shards[number - 1].bytes_read for number in missing]
        for _ in executor.run(work, missing, advance=advance, amounts=amounts):
            pass


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
