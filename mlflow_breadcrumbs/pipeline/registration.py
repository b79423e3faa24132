"""The end of a merge in the registry: its lineage, its tags, the version."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import flavor, ledger
from mlflow_breadcrumbs.engine import checkpoints, merging
from mlflow_breadcrumbs.evaluation import recorded_tasks, scorecard
from mlflow_breadcrumbs.flavor import foreign
from mlflow_breadcrumbs.lineage import ancestry_tags, kept_adapters, kept_parts, statement
from mlflow_breadcrumbs.pipeline import computing, inputs
from mlflow_breadcrumbs.pipeline.merge_request import MergeRequest
from mlflow_breadcrumbs.registry import (
    failures,
    pages,
    records,
    registering,
    tag_keys,
    versions,
)
from mlflow_breadcrumbs.support import canonical


def lineage(
    run_id: str,
    started: datetime.datetime,
    request: MergeRequest,
    taken: inputs.Inputs,
    computed: computing.Computed,
    placed: foreign.MergedFiles,
    card: scorecard.Scorecard | None,
    kept: kept_parts.KeptParts | None,
    adapter: kept_adapters.KeptAdapter | None,
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
            alignment=_aligned(taken, version.resolved.uri),
        )
        for version, digest, weight, own in zip(
            taken.everything, taken.digests, weights, own_configs, strict=True
        )
    ]
    return statement.build(
        file_name=placed.main,
        file_digest=checkpoints.file_digest(placed.files[placed.main]),
        weights_digest=merged.weights_digest,
        settings=request.recipe,
        given={
            "base": taken.base.resolved.given,
            "sources": [source.resolved.given for source in taken.sources],
            "registeredModel": request.registered_model,
            "tasks": recorded_tasks.located(request.tasks),
            **({"evaluator": request.evaluator.description} if request.evaluator else {}),
            **({"method": request.method} if request.method else {}),
            **(request.change.given() if request.change else {}),
        },
        inputs=entries,
        invocation=statement.Invocation(run_id, started, now(), device, merged.backend),
        evaluation=[row | {"split": request.split} for row in card.rows()] if card else (),
        tolerances=merged.tolerances,
        running=merged.running,
        choice=request.choice,
        parts=kept,
        adapter=adapter,
    )


def _aligned(taken: inputs.Inputs, uri: str) -> dict[str, Any] | None:
    """What lineage says of a source's tensors, and the digests of its heads by task."""
    heads = {task: head.digest for task, head in taken.own.items() if head.source == uri}
    said: dict[str, Any] = {"heads": heads} if heads else {}
    if uri in taken.given_up and uri != taken.base.resolved.uri:
        said["headsLeftOut"] = list(taken.given_up[uri])
    if uri in taken.alignments:
        return taken.alignments[uri].to_dict() | said
    return {"merged": taken.tensors} | said if said else None


def place(
    request: MergeRequest, taken: inputs.Inputs, merged: merging.MergeResult
) -> foreign.MergedFiles:
    """The merged weights as the files that the version will have."""
    output = Path(merged.output)
    if taken.is_ours:
        return foreign.MergedFiles(flavor.WEIGHTS_FILE, {flavor.WEIGHTS_FILE: output})
    return foreign.arrange(taken.base, output, request.max_shard_size)


def register(
    request: MergeRequest,
    taken: inputs.Inputs,
    merged: merging.MergeResult,
    placed: foreign.MergedFiles,
    stated: bytes,
    tags: Mapping[str, str],
) -> records.RegisteredVersion:
    """Log the model, then register it with every tag in one step, then set the alias."""
    tags = {
        **tags,
        tag_keys.WEIGHTS_DIGEST: merged.weights_digest,
        tag_keys.LINEAGE_DIGEST: canonical.sha256(stated),
    }
    extra, name = {statement.FILE: stated}, pages.logged_name(request.registered_model)
    with failures.explained("cannot log the merged model"):
        if taken.is_ours:
            info = flavor.log_model(
                name,
                config=flavor.load_config(taken.base.folder),
                weights=placed.files[placed.main],
                weights_digest=merged.weights_digest,
                keep_weights=False,
                heads=list(taken.all_heads.values()),
                extra_files=extra,
                tags=tags,
            )
        else:
            info = foreign.log_model(
                name,
                base=taken.base,
                weights=placed,
                heads=taken.own.values(),
                extra_files=extra,
                tags=tags,
            )
    version = registering.register(request.registered_model, model_id=info.model_id, tags=tags)
    if request.alias is not None:
        ledger.set_alias(version.name, request.alias, version.version)
    return version


def tags_of(request: MergeRequest, taken: inputs.Inputs, asked: str) -> dict[str, str]:
    """The version's tags, as far as they follow from what went in."""
    tags = ancestry_tags.of_merge(request.recipe, _uris(taken), taken.digests, taken.purposes)
    tags[tag_keys.REQUEST_DIGEST] = asked
    if taken.all_heads:
        tags[tag_keys.TASK] = ",".join(taken.all_heads)
    if request.force:
        tags[tag_keys.FORCED] = "true"
    return tags


def check_tags(taken: inputs.Inputs) -> None:
    """Raise `RegistryError`, before anything is computed, for tags that are too long."""
    tag_keys.check(ancestry_tags.by_name(_uris(taken)) | {tag_keys.TASK: ",".join(taken.all_heads)})


def _uris(taken: inputs.Inputs) -> list[str]:
    return [version.resolved.uri for version in taken.everything]


def now() -> datetime.datetime:
    """The moment, with its time zone."""
    return datetime.datetime.now(datetime.UTC)
