"""Labelled images in a DataFrame, as MLflow's evaluation has them: one image set per task."""

import functools
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.flavor import serving
from mlflow_breadcrumbs.models import decoding, image_sets, task_heads


def split(
    frame: pd.DataFrame, labels: Sequence[Any], by_task: Mapping[str, task_heads.Head]
) -> list[tuple[task_heads.Head, image_sets.ImageSet]]:
    """The images of each task with its head, in the order in which the tasks appear.

    Args:
        frame: a column `image` (paths, bytes of image files, or base64), and a column `task`
            where the version has several.
        labels: one per row: a class name of the task's head, or a class number.
        by_task: the version's heads.

    Raises:
        TaskError: a column is missing, a task is unknown, a label is none of the task's classes,
            or there are no rows.
    """
    if not isinstance(frame, pd.DataFrame) or "image" not in frame:
        shown = (
            f"a DataFrame of {', '.join(map(str, frame.columns))}"
            if isinstance(frame, pd.DataFrame)
            else f"of the type {type(frame).__name__}"
        )
        raise errors.TaskError(
            f"The data is {shown}; it must be a DataFrame with the images in a column 'image', as "
            "paths, bytes or base64."
        )
    if not len(frame):
        raise errors.TaskError("The data has no rows, so there is nothing to measure.")
    tasks = frame["task"] if "task" in frame else [None] * len(frame)
    found: dict[str, tuple[task_heads.Head, list[image_sets.Example]]] = {}
    for row, (value, task, label) in enumerate(zip(frame["image"], tasks, labels, strict=True)):
        named = None if pd.api.types.is_scalar(task) and pd.isna(task) else str(task)
        head = task_heads.select(dict(by_task), named, whose="The model")
        example = image_sets.Example(
            functools.partial(_read, value, row), _number(label, row, head), f"in row {row}"
        )
        found.setdefault(head.task, (head, []))[1].append(example)
    return [
        (head, image_sets.ImageSet(f"{task}/data", head.classes, tuple(examples)))
        for task, (head, examples) in found.items()
    ]


def _read(value: object, row: int) -> bytes:
    """The frame is the caller's own, so it may name any file."""
    if isinstance(value, str) and os.path.isfile(value):
        return decoding.read(Path(value))
    try:
        return serving.encoded(value, row)
    except errors.TaskError as error:
        shown = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        raise errors.TaskError(
            f"The image in row {row}, {shown}, is neither a file here nor base64 nor bytes."
        ) from error


def _number(label: Any, row: int, head: task_heads.Head) -> int:
    """The number of a class, given by its name or as a number."""
    if str(label) in head.classes:
        return head.classes.index(str(label))
    if isinstance(label, numbers.Integral) and 0 <= int(label) < len(head.classes):
        return int(label)
    known = ", ".join(head.classes[:20]) + (", …" if len(head.classes) > 20 else "")
    raise errors.TaskError(
        f"The label {label!r} in row {row} is no class of task '{head.task}', which has {known}; "
        f"give one of these names, or a number from 0 to {len(head.classes) - 1}."
    )
