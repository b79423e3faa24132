"""The tags that say what went into a merge, so that any MLflow client finds it."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs.engine import drafts, recipe
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.registry import tag_keys, uris
from mlflow_breadcrumbs.support import canonical

Purposes = Sequence[Sequence[str]]
"""Per source, what it is for: its tasks, or else its registered name."""


def purpose(tasks: Sequence[str], uri: str) -> tuple[str, ...]:
    """What a source is for, by its tasks and its pinned URI; empty if neither says it."""
    name = uris.parse(uri).name
    return tuple(tasks) or (() if name is None else (name,))


def merge_digest(
    settings: recipe.MergeRecipe, weights_digests: Sequence[str], purposes: Purposes | None = None
) -> str:
    """What makes two merges the same: the recipe, the base's digest, the sources' in order.

    For a call, where an input may have no digest yet, what it is known by instead.

    Args:
        settings: the recipe.
        weights_digests: of the base, then of each source.
        purposes: what the sources are for, where heads are kept by that; `None` where none are.
    """
    base, *sources = weights_digests
    said: dict[str, Any] = {"recipe": settings.to_dict(), "base": base, "sources": sources}
    if purposes is not None:
        said["purposes"] = [list(tasks) for tasks in purposes]
    return canonical.digest(said)


def choice_digest(
    draft: drafts.RecipeDraft, weights_digests: Sequence[str], purposes: Purposes | None = None
) -> str:
    """What makes two merges the same whose recipe is to be found from the weights."""
    return canonical.digest(
        {
            "merge": merge_digest(draft.recipe, weights_digests, purposes),
            "open": sorted(draft.open),
            "rule": drafts.RULE,
        }
    )


def tags_of(lineage: bytes, recorded: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tags that follow from a `lineage.json`; `verify` holds a version's tags against them.

    Args:
        lineage: the file.
        recorded: the version's own tags, if any. Releases before this one did not tell merges with
            heads apart by their tasks, and a digest of that form is as good.
    """
    stated = statement.parse(lineage)
    entries = stated.inputs
    given = (
        stated.settings,
        [entry.uri for entry in entries],
        [entry.weights_digest for entry in entries],
    )
    tags = of_merge(*given)
    kept = any("heads" in (entry.alignment or {}) for entry in stated.sources)
    if kept and (recorded or {}).get(tag_keys.MERGE_DIGEST) != tags[tag_keys.MERGE_DIGEST]:
        tags = of_merge(*given, [purpose(entry.tasks, entry.uri) for entry in stated.sources])
    return tags | {
        tag_keys.WEIGHTS_DIGEST: stated.weights_digest,
        tag_keys.LINEAGE_DIGEST: canonical.sha256(lineage),
    }


def of_merge(
    settings: recipe.MergeRecipe,
    named: Sequence[str],
    digests: Sequence[str],
    purposes: Purposes | None = None,
) -> dict[str, str]:
    """The tags of what went into a merge, base first; one per source, for searching its merges.

    Args:
        settings: the recipe.
        named: URIs of the base and the sources.
        digests: their weights digests.
        purposes: see `merge_digest`.
    """
    return (
        {
            tag_keys.KIND: "merge",
            tag_keys.RECIPE_DIGEST: settings.digest,
            tag_keys.MERGE_DIGEST: merge_digest(settings, digests, purposes),
        }
        | by_name(named)
        | {
            tag_keys.of_source(digest): uri
            for digest, uri in zip(digests[1:], named[1:], strict=True)
        }
    )


def by_name(named: Sequence[str]) -> dict[str, str]:
    """Those of the tags that name what went in, base first, and need no digest."""
    base, *sources = named
    return {
        tag_keys.KIND: "merge",
        tag_keys.BASE: base,
        tag_keys.SOURCES: canonical.dumps(sources).decode(),
    }
