"""The tags of this package on versions, logged models and runs."""

from collections.abc import Mapping

from mlflow.utils.validation import MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH

from mlflow_breadcrumbs import errors

OURS = "breadcrumbs."
"""What every key of ours begins with."""
TASK = "breadcrumbs.task"
RECIPE_DIGEST = "breadcrumbs.recipe_digest"
WEIGHTS_DIGEST = "breadcrumbs.weights_digest"
BASE = "breadcrumbs.base"
SOURCES = "breadcrumbs.sources"
LINEAGE_DIGEST = "breadcrumbs.lineage_digest"
MERGE_DIGEST = "breadcrumbs.merge_digest"
CHOICE_DIGEST = "breadcrumbs.choice_digest"
"""On versions whose recipe was found from the weights: what was left open, of which inputs."""
REQUEST_DIGEST = "breadcrumbs.request_digest"
"""On runs and logged models: all that makes two calls the same; so a stopped call is found."""
FORCED = "breadcrumbs.forced"
"""On versions that were made though the same merge existed."""
KIND = "breadcrumbs.kind"
RECALLED = "breadcrumbs.recalled"
"""On versions that are not to be used: why. The ledger is what counts."""
RESULT = "breadcrumbs.result"
RESULT_RUN = "breadcrumbs.result_run"
"""On the run of `mlflow run`, where the result is in another: the version's URI, that run's id."""
LICENCES = ("license", "licence")


def check(tags: Mapping[str, str]) -> None:
    """Raise `RegistryError` for a tag that is longer than MLflow keeps."""
    for key, value in tags.items():
        if len(value) > MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH:
            raise errors.RegistryError(
                f"the version's tag {key} would have {len(value)} characters, and MLflow keeps "
                f"{MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH}; merge fewer sources, in several steps"
            )


def of_source(weights_digest: str) -> str:
    """The tag key by which the merges of a source are found; its value is the source's URI."""
    return f"breadcrumbs.source/{weights_digest.removeprefix('sha256:')}"
