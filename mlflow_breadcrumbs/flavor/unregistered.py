"""Merged weights laid out as the MLflow model that they will become, for those who look at one.

The files are copies: whatever is done to them, what is registered later is not touched.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME

from mlflow_breadcrumbs import flavor
from mlflow_breadcrumbs.flavor import foreign
from mlflow_breadcrumbs.models import task_heads
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import copies


def lay_out(
    base: versions.OpenedVersion,
    weights: Path,
    heads: Iterable[task_heads.Head],
    folder: Path,
) -> Path:
    """The folder of a model that loads as its base does.

    Args:
        base: opened with all of its files.
        weights: the merged checkpoint.
        heads: of an open_clip model's tasks.
        folder: that does not exist.

    Returns:
        The folder.
    """
    if base.flavor == flavor.FLAVOR_NAME:
        config = flavor.load_config(base.folder)
        flavor.save_model(folder, config=config, weights=weights, heads=heads)
        return folder
    unwanted = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json")
    shutil.copytree(base.folder, folder, ignore=unwanted)
    place = folder / foreign.weights_file(base)
    several = foreign.files_of(weights)
    for file in several:
        copies.copy(file, place if len(several) == 1 else place.with_name(file.name))
    record = Model.load(str(folder / MLMODEL_FILE_NAME))
    # What MLflow measures of this folder is not the base's.
    record.model_id = record.run_id = record.model_uuid = None
    record.save(str(folder / MLMODEL_FILE_NAME))
    return folder
