"""One shard of a planned merge, computed into the folder beside the output."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import backends, merging, writing
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.engine.backends.cpu import cpu_backend, masking
from mlflow_breadcrumbs.engine.remote import stores
from mlflow_breadcrumbs.engine.shards import notes
from mlflow_breadcrumbs.engine.shards.plans import ShardPlan
from mlflow_breadcrumbs.support import processes, progress


class _NamedByContent(writing.ShardWriter):
    """Names a shard after what is in it, so that files of one name have the same bytes."""

    def final_name(self, shard: writing.OutputShard) -> str:
        content = self.weights_digest.removeprefix("sha256:")[:16]
        return f"{shard.name.removesuffix('.safetensors')}-{content}.safetensors"


def work(
    plan: ShardPlan,
    number: int,
    *,
    backend: backends.Backend | None = None,
    threads: int | None = None,
    show: progress.Progress = progress.silent,
) -> notes.ShardNote:
    """Compute a shard, whether or not it has been done before.

    Several processes may do the same shard at once: each writes a file of its own name, and the
    last note counts.

    Args:
        plan: the merge.
        number: of the shard, from 1.
        backend: computes it; `choosing.choose()` when not given. The masks of the unit `model` are
            applied by the CPU's.
        threads: of the CPU's; all processors when `None`.
        show: is told the bytes read.

    Raises:
        MergeError: there is no such shard, or a value is not finite.
        IntegrityError: an input is not the one that was planned with.
        CheckpointError: the shard can't be written.
    """
    (note,) = work_all(plan, [number], backend=backend, threads=threads, show=show)
    return note


def work_all(
    plan: ShardPlan,
    numbers: Sequence[int],
    *,
    backend: backends.Backend | None = None,
    threads: int | None = None,
    show: progress.Progress = progress.silent,
) -> Iterator[notes.ShardNote]:
    """Compute several shards, each as `work` does; the inputs are opened once."""
    for number in numbers:
        check_number(plan, number)
    with plan.opened() as job:
        for number in numbers:
            title = f"shard {number} of {len(plan.shards)}"
            total = plan.shards[number - 1].bytes_read
            with show(title, total=total, unit="bytes") as advance:
                note = work_on(plan, job, number, advance, backend=backend, threads=threads)
            yield note


def work_on(
    plan: ShardPlan,
    job: backends.Job,
    number: int,
    advance: progress.Advance,
    *,
    backend: backends.Backend | None = None,
    threads: int | None = None,
) -> notes.ShardNote:
    """Compute a shard of a plan whose inputs are open; see `work`."""
    started = time.perf_counter()
    part = plan.part(job, number)
    if plan.cuts:
        masks = masking.model_masks(part, plan.cuts)
        backend = cpu_backend.Cpu(threads or processes.processors(), known=masks)
    backend = backend or choosing.choose(threads=threads)
    shard = plan.layout(job)[number - 1]
    infos = merging.output_infos(part)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(plan.staging.computing(shard.size))
        output = folder / shard.name if stores.is_address(plan.output) else Path(plan.output)
        writer = stack.enter_context(_NamedByContent(folder, [shard], infos, output))
        outcome = merging.compute(part, writer, backend, advance)
        for checkpoint in job.inputs:
            checkpoint.check_unchanged()
    note = notes.ShardNote(
        plan=plan.digest,
        shard=number,
        file=writer.final_name(shard),
        nbytes=shard.size,
        backend=backend.name,
        seconds=time.perf_counter() - started,
        hexdigests=dict(writer.hexdigests),
        inputs=tuple(outcome.hexdigests),
        statistics=tuple(outcome.statistics),
        touched=tuple(outcome.touched),
        base_energies=tuple(outcome.base_energies),
    )
    note.save(plan)
    return note


def missing(plan: ShardPlan) -> list[int]:
    """The numbers of the shards that have not been done; see `notes.find`."""
    return notes.missing(plan, notes.find(plan))


def check_number(plan: ShardPlan, number: int) -> None:
    """Raise `MergeError` unless the plan has a shard of this number."""
    if not 1 <= number <= len(plan.shards):
        raise errors.MergeError(
            f"there is no shard {number}: the plan has the shards 1 to {len(plan.shards)}"
        )
