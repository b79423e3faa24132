"""What an earlier merge of the same versions found, so that nothing is read to find that merge.

A version that another tool registered has no weights digest on record. The lineage of a merge of it
has: it names the version, its logged model and the digest of the bytes that were merged.
"""

from collections.abc import Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.lineage import ancestry_tags, contents, statement
from mlflow_breadcrumbs.pipeline import inputs
from mlflow_breadcrumbs.registry import registering, tag_keys, versions


def digests(
    name: str,
    resolved: Sequence[versions.ResolvedVersion],
    recorded: Sequence[str | None],
) -> Sequence[str | None]:
    """The weights digests of what goes into a merge, as far as anybody has recorded them.

    They serve to find a merge that exists. What a merge reads is held against `recorded` alone,
    since a lineage is no record of the version that it names.

    Args:
        name: of the registered model that the merge goes to; its versions are looked through.
        resolved: the base, then the sources.
        recorded: what is on record of each.

    Returns:
        As `recorded`, or all of them, where a version of that name was merged from just these.
    """
    if None not in recorded:
        return recorded
    tags = ancestry_tags.by_name([entry.uri for entry in resolved])
    for version in registering.named_alike(name, tags):
        stated = contents.lineage_of(version)
        if isinstance(stated, errors.BreadcrumbsError):
            continue
        if all(_is_same(*each) for each in zip(stated.inputs, resolved, recorded, strict=True)):
            return [entry.weights_digest for entry in stated.inputs]
    return recorded


def serves(version: versions.ResolvedVersion, resolved: Sequence[versions.ResolvedVersion]) -> bool:
    """Whether the heads that a merge kept are for what its sources are for now.

    Of a merge by a release that did not tell them apart by that; others have keys of their own.

    Args:
        version: a merge of the same weights, found by the key of those that keep no heads.
        resolved: the base, then the sources.
    """
    if tag_keys.TASK not in version.tags:
        return True
    stated = contents.lineage_of(version)
    if isinstance(stated, errors.BreadcrumbsError):
        return True
    kept = [(source.alignment or {}).get("heads", {}) for source in stated.sources]
    now = inputs.purposes(resolved)
    return all(
        not heads or set(heads) == set(tasks) for heads, tasks in zip(kept, now, strict=True)
    )


def _is_same(
    stated: statement.Input, entry: versions.ResolvedVersion, recorded: str | None
) -> bool:
    """Whether an input of a lineage is this version: by its digest, or by its logged model."""
    if recorded is not None:
        return stated.weights_digest == recorded
    return entry.model_id is not None and stated.model_id == entry.model_id
