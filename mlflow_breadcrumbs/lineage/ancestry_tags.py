"""The tags that say what went into a merge, so that any MLflow client finds it."""

from collections.abc import Sequence

from mlflow_breadcrumbs.engine import drafts, recipe
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.registry import tag_keys
from mlflow_breadcrumbs.support import canonical


def merge_digest(settings: recipe.MergeRecipe, weights_digests: Sequence[str]) -> str:
    """What makes two merges the same: the recipe, the base's digest, the sources' in order.

    For a call, where an input may have no digest yet, what it is known by instead.
    """
    base, *sources = weights_digests
    return canonical.digest({"recipe": settings.to_dict(), "base": base, "sources": sources})


def choice_digest(draft: drafts.RecipeDraft, weights_digests: Sequence[str]) -> str:
    """What makes two merges the same whose recipe is to be found from the weights."""
    return canonical.digest(
        {
            "merge": merge_digest(draft.recipe, weights_digests),
            "open": sorted(draft.open),
            "rule": drafts.RULE,
        }
    )


def tags_of(lineage: bytes) -> dict[str, str]:
    """The tags that follow from a `lineage.json`; `verify` holds a version's tags against them."""
    stated = statement.parse(lineage)
    entries = stated.inputs
    tags = of_merge(
        stated.settings,
        [entry.uri for entry in entries],
        [entry.weights_digest for entry in entries],
    )
    return tags | {
        tag_keys.WEIGHTS_DIGEST: stated.weights_digest,
        tag_keys.LINEAGE_DIGEST: canonical.sha256(lineage),
    }


def of_merge(
    settings: recipe.MergeRecipe, uris: Sequence[str], digests: Sequence[str]
) -> dict[str, str]:
    """The tags of what went into a merge, base first; one per source, for searching its merges."""
    return (
        {
            tag_keys.KIND: "merge",
            tag_keys.RECIPE_DIGEST: settings.digest,
            tag_keys.MERGE_DIGEST: merge_digest(settings, digests),
        }
        | by_name(uris)
        | {
            tag_keys.of_source(digest): uri
            for digest, uri in zip(digests[1:], uris[1:], strict=True)
        }
    )


def by_name(uris: Sequence[str]) -> dict[str, str]:
    """Those of the tags that name what went in, base first, and need no digest."""
    base, *sources = uris
    return {
        tag_keys.KIND: "merge",
        tag_keys.BASE: base,
        tag_keys.SOURCES: canonical.dumps(sources).decode(),
    }
