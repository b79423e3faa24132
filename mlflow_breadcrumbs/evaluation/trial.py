"""Merged weights tried on a few made-up images, before a version is made of them."""

from pathlib import Path
from typing import Any, cast

import torch

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.models import architecture, features

IMAGES = 4
"""Noise, and one image that is the mean of what the model was trained on."""


def check(config: architecture.ModelConfig, weights: Path, device: str) -> None:
    """Run the image tower on a batch.

    Args:
        config: of the model.
        weights: the merged checkpoint.
        device: what `devices.choose_device` gave.

    Raises:
        MergeError: a feature is NaN or infinite.
    """
    size = config.preprocess_cfg["size"]
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.randn((IMAGES, 3, height, width), generator=torch.Generator().manual_seed(0))
    pixels[0] = 0
    model = _load(config, weights)
    cast(Any, model).visual.float().to(device)
    with features.inference(model):
        found, _ = features.encode(model, pixels, IMAGES, device)
    try:
        features.check_finite(found, "made-up ones")
    except errors.CheckpointError as error:
        raise errors.MergeError(
            f"the merged model is refused, and nothing was registered. {error} "
            "Lower alpha, or see what the recipe's include takes in"
        ) from error


def _load(config: architecture.ModelConfig, weights: Path) -> torch.nn.Module:
    """The model with these weights in its image tower; not filled with random numbers first."""
    model = architecture.outline(config)
    visual = cast(Any, model).visual
    with checkpoints.Checkpoint.open(weights) as checkpoint:
        tensors = {name: checkpoint.tensor(name) for name in checkpoint.names}
        try:
            model.load_state_dict(tensors, assign=True)
        except RuntimeError:  # the message of the usual way is better
            flavor.load_weights(model, weights)
    if any(part.is_meta for part in (*visual.parameters(), *visual.buffers())):
        with torch.random.fork_rng(devices=[]):  # the random weights are about to be replaced
            model = architecture.build(config)
        flavor.load_weights(model, weights)
    return model
