"""The main flow: registered versions in, one merged, evaluated, registered version out.

Read `merge` from top to bottom; everything below it is one of its steps.
"""

import dataclasses
import datetime
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from mlflow_breadcrumbs import flavor, ledger
from mlflow_breadcrumbs.engine import lowering, merging, running
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.evaluation import accuracy_records, caches, scorecard, trial
from mlflow_breadcrumbs.ledger import finishing
from mlflow_breadcrumbs.lineage import ancestry_tags, statement, stories
from mlflow_breadcrumbs.models.tasks import Task
from mlflow_breadcrumbs.pipeline import (
    adapting,
    changing,
    computing,
    earlier,
    examining,
    heading,
    inputs,
    keeping,
    merge_request,
    outcomes,
    planning,
    pointing,
    recording,
    recovery,
    registration,
)
from mlflow_breadcrumbs.pipeline.merge_request import MergeRequest
from mlflow_breadcrumbs.registry import (
    projects,
    records,
    registering,
    runs,
    tag_keys,
    versions,
)
from mlflow_breadcrumbs.support import canonical, executors, progress

_logger = logging.getLogger(__name__)


def merge(
    request: MergeRequest,
    show: progress.Progress = progress.silent,
    executor: executors.Executor = executors.LOCAL,
) -> outcomes.MergedVersion:
    """Merge registered versions into a new registered version.

    However a call is stopped, the same call again ends with one version: one that is registered is
    found, a model that is only logged is taken up, anything less is made anew.

    Args:
        request: what is asked for.
        show: is told the bytes read, and more.
        executor: does the shards; workers elsewhere must see the request's work folder. MLflow is
            spoken to by this process alone.

    Raises:
        BreadcrumbsError: one of its kinds; nothing was registered, or the message names what was.
    """
    device, backend = planning.check(request)
    if executor is not executors.LOCAL:
        backend = choosing.ChosenThere(request.device, request.backend, threads=request.threads)
    resolved = inputs.resolve(request.base, request.sources)
    recorded = changing.recorded_digests(request.change, resolved)
    told = earlier.digests(request.registered_model, resolved, recorded)
    if found := _find(request, told, resolved):
        return found
    with versions.workspace() as folder:
        held = keeping.find(request.change, folder)
        computing.check_executor(executor, held, keep=request.keep_parts)
        known = request.change.digests if request.change else {}
        taken = inputs.open_all(resolved, folder, known=known, lazily=True)
        # What is measured has to be here; other weights are read where they are.
        if request.tasks or request.evaluator:
            taken.bring()
        draft = request.draft
        request = planning.settled(request, taken, draft, backend, show)
        if draft.open and (found := _find(request, told, resolved)):
            return found
        pairs = inputs.plan_evaluation(taken, request.tasks) if request.tasks is not None else ()
        asked = merge_request.digest(request, taken, pairs)
        if left := recovery.take_up(request.registered_model, asked):
            return _present(request, left, again=False)
        registration.check_tags(taken)
        name = f"merge {request.registered_model}"
        mark = {tag_keys.REQUEST_DIGEST: asked}
        with (
            runs.run(name, "merge", tags=mark, nested=True) as run_id,
            ledger.recording("merge", request.registered_model, run_id=run_id) as job,
        ):
            run = _MergeRun(run_id, registration.now(), pairs, device, show)
            work = computing.work_folder(request.work_folder, asked, otherwise=folder)
            recording.log_inputs(run_id, request.recipe, taken, request.named)
            taken = heading.with_heads(taken, request.recipe, folder)
            computed = computing.merge(
                taken,
                held,
                request.recipe,
                work / computing.weights_name(taken),
                backend=backend,
                keep=request.keep_parts,
                threads=request.threads,
                max_norm_ratio=request.max_norm_ratio,
                max_shard_size=computing.shard_size(taken, request.max_shard_size),
                resumable=request.work_folder is not None,
                executor=executor,
                show=show,
            )
            there = None
            if None in taken.known:
                taken = taken.read(computed.digests)
                there = _find_read(request, taken, pairs)
            if there is not None:
                version, metrics = there.version, there.metrics
                job.done(version, recipe_digest=request.recipe.digest)
            else:
                tags = registration.tags_of(request, taken, asked)
                if draft.open:
                    tags[tag_keys.CHOICE_DIGEST] = ancestry_tags.choice_digest(
                        draft, taken.digests, taken.purposes
                    )
                version, metrics, digest, made = _register(request, taken, computed, tags, run)
                job.done(
                    version,
                    recipe_digest=request.recipe.digest,
                    metrics=metrics,
                    **{accuracy_records.LINEAGE: digest},
                    **(request.change.said() if request.change else {}),
                )
    if request.work_folder is not None:
        shutil.rmtree(work, ignore_errors=True)
    # Another job may have registered the same merge meanwhile; then its version is the result.
    reused = version.run_id != run_id
    if reused:
        _tell_project(request, version, run_id)
    if there is not None:
        return there
    decided = request.change.notes if request.change else ()
    return outcomes.MergedVersion(
        version,
        request.recipe.digest,
        reused=reused,
        metrics=metrics,
        notes=(
            *decided,
            *taken.notes,
            *computed.result.notes,
            *computed.notes,
            *(made.notes if made else ()),
        ),
        choice=request.choice,
        alias=request.alias,
        adapter=made.to_dict() if made else None,
        alignment=merging.said_of(taken.alignments),
    )


@dataclasses.dataclass(frozen=True)
class _MergeRun:
    """The run that a merge is done in."""

    run_id: str
    started: datetime.datetime
    pairs: Sequence[tuple[int, Task]]
    """The tasks that are measured, each with the position of its source."""
    device: str
    """The torch device that models run on."""
    show: progress.Progress


def _register(
    request: MergeRequest,
    taken: inputs.Inputs,
    computed: computing.Computed,
    tags: dict[str, str],
    run: _MergeRun,
) -> tuple[records.RegisteredVersion, dict[str, float], str, lowering.LoweredChange | None]:
    """Measure what was merged and register it.

    Returns:
        The version, its metrics, its lineage's digest, and the adapter if one was asked for.
    """
    run_id, merged = run.run_id, computed.result
    if run.pairs or (taken.is_ours and running.can_break(merged.running, request.recipe)):
        trial.check(flavor.load_config(taken.base.folder), Path(merged.output), run.device)
    recording.log_masks(run_id, taken, merged)
    recording.log_alignments(run_id, taken, request.recipe, merged.unnamed)
    recording.log_notes(run_id, (*taken.notes, *merged.notes))
    kept = None
    if request.keep_parts and computed.joined:
        kept = keeping.log(run_id, computed.joined)
    card = _evaluate(request, taken, merged, run)
    if card:
        accuracy_records.log_evaluation(run_id, card, request.split)
    recording.log_effort(run_id, merged)
    made, named = None, None
    if request.adapter_rank is not None:
        made = adapting.log(
            *(run_id, taken, Path(merged.output), request.adapter_rank),
            threads=request.threads,
            show=run.show,
        )
        named = adapting.named(made)
    placed = registration.place(request, taken, merged)
    stated = registration.lineage(
        run_id, run.started, request, taken, computed, placed, card, kept, named, run.device
    )
    if not taken.is_ours and (card or taken.own):
        measured = [score.task for score in card.scores] if card else []
        tags[tag_keys.TASK] = ",".join(dict.fromkeys((*taken.own, *measured)))
    version = registration.register(request, taken, merged, placed, stated, tags)
    stories.tell(version, statement.parse(stated))
    return version, card.metrics() if card else {}, canonical.sha256(stated), made


def _find(
    request: MergeRequest,
    digests: Sequence[str | None],
    resolved: Sequence[versions.ResolvedVersion],
) -> outcomes.MergedVersion | None:
    """The version that is this merge already, if the digests of all inputs are known."""
    known = [digest for digest in digests if digest is not None]
    if request.force or len(known) < len(digests):
        return None
    found = _find_by(request, known)
    if found is None or not earlier.serves(found, resolved):
        found = _find_by(request, known, inputs.purposes(resolved))
    if found is None:
        return None
    _logger.info("%s is this merge already", found.uri)
    stopped = finishing.finish(found.registered, "merge")
    return _present(request, found.registered, again=not stopped)


def _find_by(
    request: MergeRequest, digests: Sequence[str], purposes: ancestry_tags.Purposes | None = None
) -> versions.ResolvedVersion | None:
    """The version with the key of these inputs; with purposes, of a merge that keeps heads."""
    if request.left_open:
        key = ancestry_tags.choice_digest(request.draft, digests, purposes)
        return registering.find_merge(request.registered_model, key, tag_keys.CHOICE_DIGEST)
    key = ancestry_tags.merge_digest(request.recipe, digests, purposes)
    return registering.find_merge(request.registered_model, key)


def _find_read(
    request: MergeRequest, taken: inputs.Inputs, pairs: Sequence[tuple[int, Task]]
) -> outcomes.MergedVersion | None:
    """The version that is this merge already, once all digests were read.

    Or what a stopped call left that knew the digests, and asked by them.
    """
    if found := _find(request, taken.digests, taken.resolved):
        return found
    asked = merge_request.digest(request, taken, pairs)
    left = recovery.take_up(request.registered_model, asked)
    return _present(request, left, again=False) if left else None


def _present(
    request: MergeRequest, version: records.RegisteredVersion, *, again: bool
) -> outcomes.MergedVersion:
    """A version that was there already as the result.

    Args:
        request: what was asked for.
        version: that was found.
        again: the merge was done before; without it, this call ends one that was stopped.
    """
    alias, notes = request.alias, []
    if not again:
        stories.tell_again(version)
    if alias is not None:
        pointed = pointing.point(version, alias, force=request.force_alias or not again)
        alias = alias if pointed.moved else None
        notes += [pointed.note] if pointed.note else []
    if request.keep_parts and not keeping.has_parts(version.uri):
        notes.append(
            f"{version.uri} was merged without --keep-parts; with --force it is merged again"
        )
    rank = request.adapter_rank
    if rank is not None and adapting.rank_of(version.uri) != rank:
        notes.append(
            f"{version.uri} was merged without --as-adapter {rank}; with --force it is merged again"
        )
    _tell_project(request, version)
    return outcomes.MergedVersion(
        version,
        request.recipe.digest,
        reused=True,
        metrics=versions.metrics_of(version.run_id),
        notes=tuple(notes),
        alias=alias,
    )


def _tell_project(
    request: MergeRequest, version: records.RegisteredVersion, origin: str | None = None
) -> None:
    """Say where the result is in a run that did not make it."""
    projects.point(
        f"merge {request.registered_model}",
        f"This merge exists already: it is {version.uri}.",
        version=version.uri,
        run_id=version.run_id,
        origin=origin,
    )


def _evaluate(
    request: MergeRequest,
    taken: inputs.Inputs,
    merged: merging.MergeResult,
    run: _MergeRun,
) -> scorecard.Scorecard | None:
    """Accuracies of the merged weights, and of base and sources beside them."""
    if request.evaluator is not None:
        output = Path(merged.output)
        return examining.measure(request.evaluator, taken, output, request.split, run.show)
    if not run.pairs:
        return None
    return scorecard.measure(
        flavor.load_config(taken.base.folder),
        taken.base.weights,
        taken.candidates,
        Path(merged.output),
        run.pairs,
        base_digest=taken.digests[0],
        merged_digest=merged.weights_digest,
        split=request.split,
        device=run.device,
        batch_size=request.batch_size,
        cache=caches.default() if request.cache else None,
        show=run.show,
    )
