"""A version in memory: it encodes and classifies images, as a Python object and as a pyfunc."""

import base64
import binascii
import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import architecture, features, image_sets, task_heads
from mlflow_breadcrumbs.support import defaults


@dataclasses.dataclass(frozen=True, eq=False)
class OpenClipModel:
    """A version, loaded: the model, what goes before it, and the heads behind it."""

    config: architecture.ModelConfig
    model: torch.nn.Module
    """float32, in evaluation mode, on `device`."""
    heads: dict[str, task_heads.Head]
    """By task."""
    device: str
    origin: str
    """The URI or folder that it was loaded from, for messages."""
    weights_digest: str | None = None
    """Of the weights, where their bytes were held against it."""

    @functools.cached_property
    def preprocess(self) -> architecture.Preprocess:
        """PIL image to float32 Tensor [3, height, width]."""
        return architecture.preprocess(self.config)

    @functools.cached_property
    def tokenizer(self) -> architecture.Tokenizer:
        """List of texts to int64 Tensor [texts, context_length]; an error without a text tower."""
        return architecture.tokenizer(self.config)

    def encode(
        self, images: Sequence[Image.Image], batch_size: int = defaults.BATCH_SIZE
    ) -> torch.Tensor:
        """Give the features of images, float32 [images, embed_dim] of length 1, on the CPU."""
        parts = [torch.empty(0, self.config.embed_dim)]
        with features.inference(self.model):
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                pixels = torch.stack([self.preprocess(image) for image in batch])
                parts.append(features.encode(self.model, pixels, batch_size, self.device)[0])
        return torch.cat(parts)

    def classify(self, images: Sequence[Image.Image], task: str | None = None) -> torch.Tensor:
        """Give the probabilities of a task's classes, [images, classes]; each row sums to 1.

        Args:
            images: RGB images of any size.
            task: The task; may be left out where the version has one.

        Raises:
            TaskError: The version has no such task, or several and none was named.
        """
        head = task_heads.select(self.heads, task, whose=f"'{self.origin}'")
        return head.probabilities(self.encode(images))


class Pyfunc:
    """What MLflow calls to predict."""

    def __init__(self, model: OpenClipModel, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size

    def get_raw_model(self) -> OpenClipModel:
        """Give the model itself, for `PyFuncModel.get_raw_model`."""
        return self._model

    def predict(
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify one image per row; bad input is MLflow's error, so that a server says it."""
        try:
            return self._predict(model_input)
        except errors.BreadcrumbsError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        if not isinstance(frame, pd.DataFrame) or "image" not in frame:
            columns = list(frame.columns) if isinstance(frame, pd.DataFrame) else type(frame)
            raise errors.TaskError(f"Expected a DataFrame with a column 'image', not {columns}.")
        named = frame["task"] if "task" in frame else [None] * len(frame)
        chosen = [
            task_heads.select(
                self._model.heads,
                None if task is None or pd.isna(task) else task,
                whose="The model",
            )
            for task in named
        ]
        pictures = [
            image_sets.decode(*content(value, row)) for row, value in enumerate(frame["image"])
        ]
        encoded = self._model.encode(pictures, self._batch_size)
        rows = []
        for head, vector in zip(chosen, encoded, strict=True):
            probabilities = head.probabilities(vector).tolist()
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            rows.append(
                {
                    "task": head.task,
                    "label": head.classes[best],
                    "probability": probabilities[best],
                    "probabilities": dict(zip(head.classes, probabilities, strict=True)),
                }
            )
        columns = ["task", "label", "probability", "probabilities"]
        return pd.DataFrame(rows, columns=columns, index=frame.index)


def content(value: object, row: int) -> tuple[bytes, str]:
    """An image file from a cell: bytes, a path, or base64 (with or without `data:…;base64,`).

    Returns:
        The bytes, and where they come from, for messages.

    Raises:
        TaskError: it is none of these.
    """
    origin = f"in row {row}"
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), origin
    if not isinstance(value, str):
        raise errors.TaskError(
            f"The image {origin} is {type(value).__name__}; give a path, bytes or base64."
        )
    if os.path.isfile(value):
        return Path(value).read_bytes(), f"'{value}' {origin}"
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(encoded, validate=True), origin
    except binascii.Error as error:
        shown = value if len(value) <= 60 else f"{value[:60]}…"
        raise errors.TaskError(
            f"The image {origin}, '{shown}', is neither a file here nor base64."
        ) from error
