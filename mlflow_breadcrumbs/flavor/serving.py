"""A version in memory: it encodes and classifies images, as a Python object and as a pyfunc."""

import base64
import dataclasses
import functools
import itertools
import logging
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from PIL import Image

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import architecture, decoding, features, image_limits, task_heads
from mlflow_breadcrumbs.support import confined, defaults

IMAGE_ROOT = "BREADCRUMBS_IMAGE_ROOT"
"""The folder whose files a request may name; set where the model is served."""

_logger = logging.getLogger(__name__)


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
        self, images: Iterable[Image.Image], batch_size: int = defaults.BATCH_SIZE
    ) -> torch.Tensor:
        """Give the features of images, float32 [images, embed_dim] of length 1, on the CPU.

        Of images that an iterator makes, one is in memory at a time, and a batch as tensors.
        """
        parts = [torch.empty(0, self.config.embed_dim)]
        coming = iter(images)
        with features.inference(self.model):
            # `map` lets go of an image before it asks for the next; a variable would hold it.
            while batch := list(map(self.preprocess, itertools.islice(coming, batch_size))):
                pixels = torch.stack(batch)
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
    """What MLflow calls to predict.

    Args:
        model: the version.
        batch_size: images at a time.
        root: the folder whose files the column `image` may name; `None` for none.
    """

    def __init__(self, model: OpenClipModel, batch_size: int, root: Path | None = None) -> None:
        self._model = model
        self._batch_size = batch_size
        self._root = root

    def get_raw_model(self) -> OpenClipModel:
        """Give the model itself, for `PyFuncModel.get_raw_model`."""
        return self._model

    def predict(
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify one image per row.

        Bad input is MLflow's error, so that a server says it. So is a fault of ours, without its
        stack trace, which is logged: a server would put it into its answer.
        """
        try:
            return self._predict(model_input)
        except errors.BreadcrumbsError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        except Exception as error:
            _logger.exception("A request could not be answered.")
            raise MlflowException(
                f"The model could not answer: {type(error).__name__}. Its log says why.",
                INTERNAL_ERROR,
            ) from error

    def _predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        if not isinstance(frame, pd.DataFrame) or "image" not in frame:
            columns = list(frame.columns) if isinstance(frame, pd.DataFrame) else type(frame)
            raise errors.TaskError(f"Expected a DataFrame with a column 'image', not {columns}.")
        named = frame["task"] if "task" in frame else [None] * len(frame)
        chosen = [self._head(task, row) for row, task in enumerate(named)]
        cells = frame["image"].tolist()
        self._check_sizes(cells)
        pictures = (self._picture(value, row) for row, value in enumerate(cells))
        vectors = self._model.encode(pictures, self._batch_size)
        rows = []
        for head, vector in zip(chosen, vectors, strict=True):
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

    def _head(self, task: object, row: int) -> task_heads.Head:
        if task is not None and not isinstance(task, str):
            if not (isinstance(task, float) and math.isnan(task)) and task is not pd.NA:
                raise errors.TaskError(
                    f"The task in row {row} is {type(task).__name__}; give its name, or nothing "
                    "where the version has one."
                )
            task = None
        return task_heads.select(self._model.heads, task, whose="The model")

    def _check_sizes(self, cells: Sequence[object]) -> None:
        """Refuse the request by what its images' headers say, before one of them is decoded."""
        pixels = 0
        for row, value in enumerate(cells):
            path = self._path(value)
            try:
                content = decoding.read(path) if path else encoded(value, row)
                width, height = decoding.size(content, f"in row {row}")
            except (errors.ImageError, OSError) as error:
                raise (_refusal(row) if isinstance(value, str) else error) from error
            pixels += width * height
        image_limits.ImageLimits.from_environment().check_request(pixels, len(cells))

    def _picture(self, value: object, row: int) -> Image.Image:
        path = self._path(value)
        if path is None:
            return decoding.decode(encoded(value, row), f"in row {row}")
        try:
            return decoding.decode(decoding.read(path), f"in row {row}")
        except (errors.ImageError, OSError) as error:
            raise _refusal(row) from error

    def _path(self, value: object) -> Path | None:
        """The file in the folder of images that a cell names, if there is one."""
        named = self._root is not None and isinstance(value, str)
        return confined.inside(str(self._root), str(value)) if named else None


def encoded(value: object, row: int) -> bytes:
    """An image file from a cell: its bytes, or base64 with or without `data:…;base64,` before it.

    Raises:
        TaskError: it is none of these.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise errors.TaskError(
            f"The image in row {row} is {type(value).__name__}; give bytes or base64."
        )
    try:
        text = value.partition(",")[2] if value.startswith("data:") else value
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # also for what is not ASCII
        raise _refusal(row) from error


def image_root(logged: str | None) -> Path | None:
    """The folder whose files a request may name.

    Args:
        logged: what the version says, where it says something.

    Returns:
        What `BREADCRUMBS_IMAGE_ROOT` says, where it is set (nothing where it is empty), else what
        was logged; nothing where that is no folder of this machine.

    Raises:
        TaskError: the variable names no folder.
    """
    given = os.environ.get(IMAGE_ROOT)
    if given is None:
        return Path(logged) if logged and Path(logged).is_dir() else None
    if given and not Path(given).is_dir():
        raise errors.TaskError(f"{IMAGE_ROOT} is '{given}', which is no folder here.")
    return Path(given).resolve() if given else None


def without_traces() -> None:
    """Keep stack traces out of the answers of MLflow's server to a body that it can't parse.

    It puts them there before a model is asked. Its function has a switch that no caller sets; where
    the server isn't imported, or has no such function any more, there is nothing to do.
    """
    server = sys.modules.get("mlflow.pyfunc.scoring_server")
    raising = getattr(server, "_handle_serving_error", None)
    if raising is not None and raising.__defaults__ == (True,):
        raising.__defaults__ = (False,)


def _refusal(row: int) -> errors.TaskError:
    """One for all, so that nobody learns from it which files there are."""
    return errors.TaskError(
        f"The image in row {row} can't be taken: give the bytes of a PNG, JPEG or other image "
        "file, or these in base64. A path is taken where the model is served with a folder of "
        f"images ({IMAGE_ROOT}), and only of an image in there."
    )
