"""Logging a model without writing its weights twice.

`Model.log` has a flavor save into a temporary folder and then copies that into the store. Where the
store is on this machine's disk, the weights go there directly.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.models import Model

from mlflow_breadcrumbs.registry import artifacts


@dataclasses.dataclass(frozen=True)
class Storing:
    """What `Model.log` calls as a flavor's module."""

    save: Callable[..., None]
    """The flavor's `save_model`."""
    weights_files: tuple[str, ...]
    """Where it puts the weights, in its folder."""
    ours: bool
    """Nobody writes to these files any more; not even under another name."""

    def save_model(self, path: str, *, mlflow_model: Model, **settings: Any) -> None:
        """Save to MLflow's folder, and put the weights into the store where that is near."""
        tries = settings.pop("validate_serving_input", True)  # by loading the folder
        self.save(path, mlflow_model=mlflow_model, **settings)
        tried = tries and mlflow_model.saved_input_example_info is not None
        if mlflow_model.model_id is not None and not tried:
            for file in self.weights_files:
                artifacts.hand_over(Path(path), file, mlflow_model.model_id, ours=self.ours)
