"""The end of a merge that was done shard by shard: its parts are one whole, put into place."""

import time
from collections.abc import Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import backends, checkpoints, merging, writing
from mlflow_breadcrumbs.engine.shards import notes
from mlflow_breadcrumbs.engine.shards.plans import ShardPlan
from mlflow_breadcrumbs.support import wording


def finish(
    plan: ShardPlan, *, overwrite: bool = False, verify: bool = False
) -> merging.MergeResult:
    """Put the shards of a merge into place, once all have been done.

    A call that was stopped may be made again, until it has succeeded once.

    Args:
        plan: the merge.
        overwrite: replace an output that exists.
        verify: read every shard once more, and hold it against its note; otherwise its size.

    Raises:
        MergeError: shards are missing, a note is damaged, or a source is too far from the base.
        IntegrityError: an input has another digest than was expected, or a shard than its note has.
        CheckpointError: the output exists, or can't be written.
    """
    with plan.opened() as job:
        result = finish_on(plan, job, overwrite=overwrite, verify=verify)
    notes.clear(plan)
    return result


def finish_on(
    plan: ShardPlan, job: backends.Job, *, overwrite: bool = False, verify: bool = False
) -> merging.MergeResult:
    """Finish a plan whose inputs are open, see `finish`; the plan's folder stays."""
    started = time.perf_counter()
    shards = plan.layout(job)
    check_output(plan, shards, overwrite=overwrite)
    found = notes.find(plan)
    if missing := notes.missing(plan, found):
        listed = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise errors.MergeError(
            f"{wording.counted(len(missing), 'shards')} of {len(plan.shards)} "
            f"{'is' if len(missing) == 1 else 'are'} not done: {listed}. "
            f"Do {'it' if len(missing) == 1 else 'them'} (mlflow-breadcrumbs work PLAN --missing), "
            "then finish"
        )
    done = [found[number] for number in sorted(found)]
    if verify:
        _verify(plan, done)
    outcome = notes.outcome(job, done)
    digests = merging.input_digests(job, outcome.hexdigests)
    if digests:
        expected = [planned.weights_digest for planned in (plan.base, *plan.sources)]
        merging.check_digests(job, digests, expected)
    merging.check_norms(job, outcome, plan.max_norm_ratio)
    infos, written = merging.output_infos(job), notes.written(done)
    digest = checkpoints.combine_digests((name, infos[name], written[name]) for name in infos)
    notes.begin_finishing(plan)
    files = {shard: note.file for shard, note in zip(shards, done, strict=True)}
    path = plan.staging.publish(files)
    return merging.MergeResult.of(
        job,
        outcome,
        output=path,
        weights_digest=digest,
        digests=digests,
        seconds=sum(note.seconds for note in done) + time.perf_counter() - started,
        backend=", ".join(sorted({note.backend for note in done})),
        bytes_read=plan.bytes_read,
        noises=merging.noises(job, outcome),
    )


def check_output(
    plan: ShardPlan, shards: Sequence[writing.OutputShard], *, overwrite: bool = False
) -> None:
    """Raise `CheckpointError` for an output that exists, unless it is this merge's own.

    A call that was stopped while it moved files has left some in place; the next one goes on.

    Args:
        plan: the merge.
        shards: what `ShardPlan.layout` gives.
        overwrite: replace an output that exists.
    """
    is_there = plan.staging.has_output(sharded=len(shards) > 1)
    if notes.is_finishing(plan) and not overwrite and is_there:
        found = notes.find(plan).values()
        if len(found) == len(shards) and all(notes.is_in_place(plan, note) for note in found):
            return
    plan.staging.check_output(overwrite=overwrite)


def _verify(plan: ShardPlan, done: Sequence[notes.ShardNote]) -> None:
    """Read every shard that is to be moved."""
    for note in done:
        if not notes.is_whole(plan, note):
            raise errors.IntegrityError(
                f"{plan.staging.file(note.file)} is not what was written: shard {note.shard} has "
                f"to be done again (mlflow-breadcrumbs work PLAN --shard {note.shard})"
            )
