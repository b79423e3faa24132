"""Image sets as MLflow's records of data, so that a run shows on which images it worked."""

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset

from mlflow_breadcrumbs.models import image_sets


def log_image_set(image_set: image_sets.ImageSet, *, context: str) -> None:
    """Log an image set as an input of the active run.

    MLflow keeps 36 characters of a digest, so it gets the first 32 hexadecimal ones; the source's
    tags have all of it.

    Args:
        image_set: The images.
        context: What they were used for: `training`, `validation` or `testing`.
    """
    source = CodeDatasetSource(
        {
            "breadcrumbs.image_set": image_set.name,
            "breadcrumbs.digest": image_set.digest,
            "breadcrumbs.images": str(len(image_set)),
            "breadcrumbs.classes": str(len(image_set.classes)),
        }
    )
    digest = image_set.digest.removeprefix("sha256:")[:32]
    mlflow.log_input(MetaDataset(source, name=image_set.name, digest=digest), context=context)
