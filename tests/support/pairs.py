"""Versions of `merged` that tests promote: two sources, with another alpha each."""

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.pipeline import flow


def merge(zoo, alpha, tasks=True):
    """Another version, with other weights; its URI."""
    settings = recipe.MergeRecipe.from_method("breadcrumbs", sources=2, alpha=alpha)
    request = flow.MergeRequest(
        base=zoo.base,
        sources=zoo.sources[:2],
        registered_model="merged",
        recipe=settings,
        tasks=zoo.tasks if tasks else None,
        device="cpu",
    )
    return flow.merge(request).version.uri
