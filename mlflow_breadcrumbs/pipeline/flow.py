"""The main flow: registered versions in, one merged, evaluated, registered version out.

Read `merge` from top to bottom; everything below it is one of its steps.
"""

import dataclasses
import datetime
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow_breadcrumbs import errors, flavor, ledger
from mlflow_breadcrumbs.engine import (
    backends,
    checkpoints,
    drafts,
    merging,
    parts,
    recipe,
    running,
)
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.evaluation import accuracy_records, caches, recorded_tasks, scorecard, trial
from mlflow_breadcrumbs.flavor import foreign
from mlflow_breadcrumbs.ledger import finishing
from mlflow_breadcrumbs.lineage import ancestry_tags, kept_parts, statement, stories
from mlflow_breadcrumbs.models.tasks import Split, Task
from mlflow_breadcrumbs.pipeline import (
    changing,
    computing,
    inputs,
    keeping,
    outcomes,
    pointing,
    recording,
    recovery,
)
from mlflow_breadcrumbs.registry import (
    aliases,
    failures,
    pages,
    permissions,
    projects,
    records,
    registering,
    runs,
    tag_keys,
    versions,
)
from mlflow_breadcrumbs.support import canonical, defaults, devices, progress

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class MergeRequest:
    """What a user asks for."""

    base: str
    """Registry URI of the version that every source was fine-tuned from."""
    sources: tuple[str, ...]
    """Registry URIs, in the order of the sum."""
    registered_model: str
    recipe: recipe.MergeRecipe
    left_open: frozenset[str] = frozenset()
    """What of the recipe is found from the weights first, see `drafts`."""
    choice: drafts.Choice | None = None
    """How the recipe came about, where it was not given."""
    tasks: str | None = None
    """A task file, or an artifact URI of one; without it nothing is evaluated."""
    split: Split = "test"
    device: str = "auto"
    """Where models run for the evaluation: `auto`, `cpu`, `cuda` or `cuda:N`."""
    batch_size: int = defaults.BATCH_SIZE
    cache: bool = True
    """Take accuracies that were measured before from the user's cache."""
    backend: str = "auto"
    """What computes the merge: a name of `choosing.NAMES`."""
    threads: int | None = None
    """Of the CPU backend; all processors when `None`."""
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO
    """Refuse a source whose task vector is longer than so many times the base."""
    alias: str | None = None
    force: bool = False
    """Make a new version even if this merge exists already."""
    force_alias: bool = False
    """Point the alias at a merge that exists already, even if it goes back by that."""
    method: str | None = None
    """By which the recipe was filled in, for the lineage."""
    keep_parts: bool = False
    """Keep what each source contributes in the run, for the next change."""
    change: changing.MergeChange | None = None
    """The merge that base, sources and recipe come from, with what was added and taken out."""

    @property
    def named(self) -> dict[str, str | None]:
        """What the run has as parameters beside the recipe and the versions, as `mlflow run`."""
        fields = ("registered_model", "tasks", "alias")
        return {field: getattr(self, field) for field in fields}


def merge(
    request: MergeRequest, show: progress.Progress = progress.silent
) -> outcomes.MergedVersion:
    """Merge registered versions into a new registered version.

    However a call is stopped, the same call again ends with one version: one that is registered is
    found, a model that is only logged is taken up, anything less is made anew.

    Raises:
        BreadcrumbsError: one of its kinds; nothing was registered, or the message names what was.
    """
    device, backend = _check(request)
    resolved = inputs.resolve(request.base, request.sources)
    recorded = changing.recorded_digests(request.change, resolved)
    if found := _find(request, recorded):
        return found
    with versions.workspace() as folder:
        held = keeping.find(request.change, folder)
        known = request.change.digests if request.change else {}
        # What is evaluated has to be here; what is only merged is read where it is.
        taken = inputs.open_all(resolved, folder, known=known, lazily=not request.tasks)
        draft = drafts.RecipeDraft(request.recipe, request.left_open)
        request = _settled(request, taken, draft, backend, show)
        if (None in recorded or draft.open) and (found := _find(request, taken.digests)):
            return found
        pairs = inputs.plan_evaluation(taken, request.tasks) if request.tasks is not None else ()
        asked = _request_digest(request, taken, pairs)
        if left := recovery.take_up(request.registered_model, asked):
            return _present(request, left, again=False)
        tags = _tags(request, taken, asked)
        if draft.open:
            tags[tag_keys.CHOICE_DIGEST] = ancestry_tags.choice_digest(draft, taken.digests)
        name = f"merge {request.registered_model}"
        mark = {tag_keys.REQUEST_DIGEST: asked}
        with (
            runs.run(name, "merge", tags=mark, nested=True) as run_id,
            ledger.recording("merge", request.registered_model, run_id=run_id) as job,
        ):
            started = _now()
            recording.log_inputs(run_id, request.recipe, taken, request.named)
            computed = computing.merge(
                taken,
                held,
                request.recipe,
                folder / "merged" / flavor.WEIGHTS_FILE,
                backend=backend,
                keep=request.keep_parts,
                threads=request.threads,
                max_norm_ratio=request.max_norm_ratio,
                show=show,
            )
            merged = computed.result
            if pairs or (taken.is_ours and running.can_break(merged.running, request.recipe)):
                trial.check(flavor.load_config(taken.base.folder), Path(merged.output), device)
            recording.log_masks(run_id, taken, merged)
            kept = None
            if request.keep_parts and computed.joined:
                kept = keeping.log(run_id, computed.joined)
            card = _evaluate(request, taken, merged, pairs, device, show)
            if card:
                accuracy_records.log_evaluation(run_id, card, request.split)
            recording.log_effort(run_id, merged)
            lineage = _statement(run_id, started, request, taken, computed, card, kept, device)
            version = _register(request, taken, merged, lineage, tags)
            stories.tell(version, statement.parse(lineage))
            metrics = card.metrics() if card else {}
            job.done(
                version,
                recipe_digest=request.recipe.digest,
                metrics=metrics,
                **{accuracy_records.LINEAGE: canonical.sha256(lineage)},
                **(request.change.said() if request.change else {}),
            )
    # Another job may have registered the same merge meanwhile; then its version is the result.
    reused = version.run_id != run_id
    if reused:
        _tell_project(request, version, run_id)
    decided = request.change.notes if request.change else ()
    return outcomes.MergedVersion(
        version,
        request.recipe.digest,
        reused=reused,
        metrics=metrics,
        notes=(*decided, *taken.notes, *merged.notes, *computed.notes),
        choice=request.choice,
        alias=request.alias,
    )


def _settled(
    request: MergeRequest,
    taken: inputs.Inputs,
    draft: drafts.RecipeDraft,
    backend: backends.Backend,
    show: progress.Progress,
) -> MergeRequest:
    """The request with nothing left open."""
    choice = computing.settle(taken, draft, backend, show)
    if choice is None:
        return request
    return dataclasses.replace(
        request,
        recipe=choice.recipe,
        left_open=frozenset(),
        choice=choice,
        method=choice.method or request.method,
    )


def _check(request: MergeRequest) -> tuple[str, backends.Backend]:
    """Hold the request against all that is known without the registry; device and backend."""
    check_target(request.registered_model, request.alias)
    request.recipe.weight_of(len(request.sources))
    if request.keep_parts and drafts.METHOD in request.left_open:
        raise errors.MergeError(
            "--keep-parts is of no use for the method auto, which takes methods that need whole "
            f"sources; name one that masks them, as --method breadcrumbs. {parts.REMEDY}"
        )
    if request.keep_parts:
        parts.check_recipe(request.recipe)
    ledger.check()
    permissions.check(request.registered_model)
    backend = choosing.choose(request.device, request.backend, threads=request.threads)
    return devices.choose_device(request.device), backend


def check_target(name: str, alias: str | None) -> None:
    """Raise `RegistryError` unless a version can get this name and alias."""
    versions.check_name(name)
    if alias is not None:
        aliases.check_alias(alias)


def _find(request: MergeRequest, digests: Sequence[str | None]) -> outcomes.MergedVersion | None:
    """The version that is this merge already, if the digests of all inputs are known."""
    known = [digest for digest in digests if digest is not None]
    if request.force or len(known) < len(digests):
        return None
    if request.left_open:
        draft = drafts.RecipeDraft(request.recipe, request.left_open)
        asked = ancestry_tags.choice_digest(draft, known)
        found = registering.find_merge(request.registered_model, asked, tag_keys.CHOICE_DIGEST)
    else:
        key = ancestry_tags.merge_digest(request.recipe, known)
        found = registering.find_merge(request.registered_model, key)
    if found is None:
        return None
    _logger.info("%s is this merge already", found.uri)
    stopped = finishing.finish(found.registered, "merge")
    return _present(request, found.registered, again=not stopped)


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


def _request_digest(
    request: MergeRequest, taken: inputs.Inputs, pairs: Sequence[tuple[int, Task]]
) -> str:
    """What makes two calls the same: the merge, where it goes, and what is measured."""
    return canonical.digest(
        {
            "merge": ancestry_tags.merge_digest(request.recipe, taken.digests),
            "registeredModel": request.registered_model,
            "force": request.force,
            **({"parts": True} if request.keep_parts else {}),
            "split": request.split,
            "tasks": request.tasks,
            "measured": [
                [task.name, list(task.classes), list(task.templates), task.limit]
                for _, task in pairs
            ],
        }
    )


def _evaluate(
    request: MergeRequest,
    taken: inputs.Inputs,
    merged: merging.MergeResult,
    pairs: Sequence[tuple[int, Task]],
    device: str,
    show: progress.Progress,
) -> scorecard.Scorecard | None:
    """Accuracies of the merged weights, and of base and sources beside them."""
    if not pairs:
        return None
    return scorecard.measure(
        flavor.load_config(taken.base.folder),
        taken.base.weights,
        taken.candidates,
        Path(merged.output),
        pairs,
        base_digest=taken.digests[0],
        merged_digest=merged.weights_digest,
        split=request.split,
        device=device,
        batch_size=request.batch_size,
        cache=caches.default() if request.cache else None,
        show=show,
    )


def _statement(
    run_id: str,
    started: datetime.datetime,
    request: MergeRequest,
    taken: inputs.Inputs,
    computed: computing.Computed,
    card: scorecard.Scorecard | None,
    kept: kept_parts.KeptParts | None,
    device: str,
) -> bytes:
    """The lineage of the merged weights."""
    merged = computed.result
    weights = (None, *request.recipe.weight_of(len(taken.sources)))
    shares = {noise.label: float(f"{noise.share:.3g}") for noise in merged.noises}
    own_configs = (None, *(fit.own for fit in taken.fits))
    entries = [
        statement.Input(
            role="base" if weight is None else "source",
            given=version.resolved.given,
            uri=version.resolved.uri,
            weights_digest=digest,
            model_id=version.resolved.model_id,
            dtypes=computed.dtypes(digest) or checkpoints.float_dtypes(version.stored),
            tasks=version.resolved.tasks,
            weight=weight,
            licence=versions.licence_of(version.resolved),
            preprocessing=own.preprocess_cfg if own else None,
            rounding=shares.get(version.resolved.uri),
        )
        for version, digest, weight, own in zip(
            taken.everything, taken.digests, weights, own_configs, strict=True
        )
    ]
    return statement.build(
        file_name=flavor.WEIGHTS_FILE if taken.is_ours else foreign.weights_file(taken.base),
        file_digest=checkpoints.file_digest(merged.output),
        weights_digest=merged.weights_digest,
        settings=request.recipe,
        given={
            "base": taken.base.resolved.given,
            "sources": [source.resolved.given for source in taken.sources],
            "registeredModel": request.registered_model,
            "tasks": recorded_tasks.located(request.tasks),
            **({"method": request.method} if request.method else {}),
            **(request.change.given() if request.change else {}),
        },
        inputs=entries,
        invocation=statement.Invocation(run_id, started, _now(), device, merged.backend),
        evaluation=[row | {"split": request.split} for row in card.rows()] if card else (),
        tolerances=merged.tolerances,
        running=merged.running,
        choice=request.choice,
        parts=kept,
    )


def _register(
    request: MergeRequest,
    taken: inputs.Inputs,
    merged: merging.MergeResult,
    lineage: bytes,
    tags: Mapping[str, str],
) -> records.RegisteredVersion:
    """Log the model, then register it with every tag in one step, then set the alias."""
    tags = {
        **tags,
        tag_keys.WEIGHTS_DIGEST: merged.weights_digest,
        tag_keys.LINEAGE_DIGEST: canonical.sha256(lineage),
    }
    extra, name = {statement.FILE: lineage}, pages.logged_name(request.registered_model)
    with failures.explained("cannot log the merged model"):
        if taken.is_ours:
            info = flavor.log_model(
                name,
                config=flavor.load_config(taken.base.folder),
                weights=Path(merged.output),
                weights_digest=merged.weights_digest,
                keep_weights=False,
                heads=list(taken.all_heads.values()),
                extra_files=extra,
                tags=tags,
            )
        else:
            info = foreign.log_model(
                name, base=taken.base, weights=Path(merged.output), extra_files=extra, tags=tags
            )
    version = registering.register(request.registered_model, model_id=info.model_id, tags=tags)
    if request.alias is not None:
        ledger.set_alias(version.name, request.alias, version.version)
    return version


def _tags(request: MergeRequest, taken: inputs.Inputs, asked: str) -> dict[str, str]:
    """The version's tags, as far as they are known before the merge."""
    uris = [version.resolved.uri for version in taken.everything]
    tags = ancestry_tags.of_merge(request.recipe, uris, taken.digests)
    tags[tag_keys.REQUEST_DIGEST] = asked
    if taken.all_heads:
        tags[tag_keys.TASK] = ",".join(taken.all_heads)
    if request.force:
        tags[tag_keys.FORCED] = "true"
    tag_keys.check(tags)
    return tags


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
