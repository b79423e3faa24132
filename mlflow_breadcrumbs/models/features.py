"""What the image tower makes of images: vectors of length 1, in batches that fit into memory."""

import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import architecture, image_sets
from mlflow_breadcrumbs.support import defaults, devices, processes, progress

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What the image tower makes of an image set."""

    values: torch.Tensor
    """float32 [images, embed_dim] on the CPU, each row of length 1."""
    labels: torch.Tensor
    """int64 [images]."""
    batch_size: int
    """The batch that fitted into memory in the end."""
    seconds: float


def extract(
    model: torch.nn.Module,
    image_set: image_sets.ImageSet,
    preprocess: architecture.Preprocess,
    *,
    batch_size: int = defaults.BATCH_SIZE,
    device: str = "cpu",
    show: progress.Progress = progress.silent,
) -> Features:
    """Run the image tower over an image set.

    A batch that doesn't fit into the device's memory is halved, which is logged; it stays so.

    Args:
        model: An open_clip model; it is moved to the device, and left in the mode it was in.
        image_set: The images.
        preprocess: The model's transform for inference.
        batch_size: Images at a time, at least 1.
        device: What `devices.choose_device` gave.
        show: Told about each batch, in images.

    Raises:
        TaskError: There are no images, or one can't be read.
        CheckpointError: A feature is not finite.
        DeviceError: Not even one image fits into the device's memory.
    """
    if not len(image_set):
        raise errors.TaskError(f"The image set {image_set.name} is empty.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    start = time.perf_counter()
    values: list[torch.Tensor] = []
    done = 0
    with (
        inference(model.to(device)),
        concurrent.futures.ThreadPoolExecutor(min(8, processes.processors())) as pool,
        show(f"evaluate {image_set.name}", total=len(image_set), unit="images") as advance,
    ):
        while done < len(image_set):
            rows = range(done, min(done + batch_size, len(image_set)))
            pixels = torch.stack(list(pool.map(lambda i: preprocess(image_set[i][0]), rows)))
            encoded, batch_size = encode(model, pixels, batch_size, device)
            check_finite(encoded, f"{image_set.name}, image {done} and after")
            values.append(encoded)
            done += len(rows)
            advance(len(rows))
    labels = torch.tensor([example.label for example in image_set.examples])
    return Features(torch.cat(values), labels, batch_size, time.perf_counter() - start)


def encode(
    model: torch.nn.Module, pixels: torch.Tensor, batch_size: int, device: str
) -> tuple[torch.Tensor, int]:
    """Run the image tower over a few images, in halves where they don't fit into memory.

    Args:
        model: An open_clip model on the device.
        pixels: float32 [images, 3, height, width].
        batch_size: Images at a time.
        device: Where the model is.

    Returns:
        float32 [images, embed_dim] on the CPU, rows of length 1, and the batch size that fitted.

    Raises:
        DeviceError: Not even one image fits.
    """
    while True:
        try:
            parts = [
                _normalized(model, part.to(device)).cpu()
                for part in torch.split(pixels, batch_size)
            ]
            return torch.cat(parts), batch_size
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise errors.DeviceError(
                    f"Out of memory on '{device}' with one image of {tuple(pixels.shape[1:])}. "
                    "Use a device with more memory, or '--device cpu'."
                ) from error
        _logger.warning(
            "Out of memory on '%s' with batches of %d images; going on with %d.",
            device,
            batch_size,
            batch_size // 2,
        )
        batch_size //= 2
        devices.free_cache(device)


def check_finite(values: torch.Tensor, where: str) -> None:
    """Raise `CheckpointError` for features [images, embed_dim] of which one is NaN or infinite."""
    bad = ~torch.isfinite(values).all(dim=1)
    if bool(bad.any()):
        raise errors.CheckpointError(
            f"The weights give features that are not finite numbers for {int(bad.sum())} of "
            f"{len(values)} images ({where}), so nothing can be measured or served with them. "
            "Look for a negative running_var, or for weights that overflow; take other weights."
        )


def _normalized(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    encode_image = cast(Any, model).encode_image
    return torch.nn.functional.normalize(encode_image(pixels).float(), dim=-1)


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients for a while."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
