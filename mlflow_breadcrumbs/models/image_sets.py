"""Labelled images: from folders, Parquet files, torchvision's data sets, or memory.

A reader (`read_folder`, `read_parquet`, `read_torchvision`) gives a `Pool`: examples that load
themselves when they are looked at, and the names of their labels where the source has names.
An `ImageSet` is one split of a task, with the labels numbered as the task's classes are.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import decoding


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled image, read when it is needed."""

    read: Callable[[], bytes | Image.Image]
    """Gives the encoded file, or the picture where there is no file."""
    label: int
    origin: str
    """Where it comes from, for messages: a path, or a file and a row."""

    def image(self) -> Image.Image:
        """Decode the picture as RGB; `decoding` says what is converted how.

        Raises:
            TaskError: It can't be read, or is beyond `image_limits`.
        """
        content = self._content()
        if isinstance(content, Image.Image):
            return decoding.to_rgb(content, self.origin)
        return decoding.decode(content, self.origin)

    def digest(self) -> bytes:
        """SHA-256 of the file's bytes, or of size and RGB pixels where there is no file.

        Raises:
            TaskError: It can't be read.
        """
        content = self._content()
        if isinstance(content, Image.Image):
            picture = decoding.to_rgb(content, self.origin)
            content = f"{picture.width}x{picture.height}".encode() + picture.tobytes()
        return hashlib.sha256(content).digest()

    def _content(self) -> bytes | Image.Image:
        try:
            return self.read()
        except OSError as error:
            raise errors.TaskError(f"The image {self.origin} can't be read: {error}.") from error


@dataclasses.dataclass(frozen=True)
class Pool:
    """The examples of one split of one source, labelled as the source labels them."""

    examples: tuple[Example, ...]
    names: tuple[str, ...] | None
    """Class names by label; None where the source has only numbers."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one split of a task; labels index `classes`."""

    name: str
    """`TASK/SPLIT`, for people."""
    classes: tuple[str, ...]
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Give the RGB image and its label."""
        example = self.examples[index]
        return example.image(), example.label

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return (self[index] for index in range(len(self)))

    def subset(self, limit: int | None) -> "ImageSet":
        """`limit` of the images, always the same; all of them for `None` or when there are fewer.

        A smaller subset is part of a larger one.
        """
        if limit is None or limit >= len(self):
            return self
        chosen = self.positions(limit)
        return dataclasses.replace(self, examples=tuple(self.examples[index] for index in chosen))

    def positions(self, limit: int | None) -> Sequence[int]:
        """Where the images of `subset(limit)` are in this set, ascending."""
        if limit is None or limit >= len(self):
            return range(len(self))
        return sorted(stable_order(len(self))[:limit])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over classes, image contents and labels, `sha256:…`.

        Names of files and the order of the images don't count; one changed pixel or label does.
        """
        lines = sorted(
            f"{example.digest().hex()} {self.classes[example.label]}" for example in self.examples
        )
        content = json.dumps([self.classes, lines], ensure_ascii=False, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def from_arrays(
    name: str,
    classes: Sequence[str],
    pixels: npt.NDArray[np.uint8],
    labels: Sequence[int] | npt.NDArray[np.integer[Any]],
) -> ImageSet:
    """Make an image set from memory.

    Args:
        name: What people call it.
        classes: Class names; label i is `classes[i]`.
        pixels: uint8, [images, height, width] (grey) or [images, height, width, 3] (RGB).
        labels: One per image.
    """
    examples = tuple(
        Example(functools.partial(Image.fromarray, picture), int(label), f"{name}[{index}]")
        for index, (picture, label) in enumerate(zip(pixels, labels, strict=True))
    )
    return ImageSet(name, tuple(classes), examples)


def stable_order(count: int) -> list[int]:
    """Give the indices 0 … count - 1 in an order that looks random and is the same for ever."""
    return sorted(range(count), key=lambda index: hashlib.sha256(str(index).encode()).digest())


def divide(pool: Pool, fraction: float) -> tuple[Pool, Pool]:
    """Set a fraction (0…1) of every class aside; always the same examples.

    Returns:
        The pool that remains and the pool set aside; at least one example of a class remains.
    """
    by_label: dict[int, list[int]] = {}
    for index, example in enumerate(pool.examples):
        by_label.setdefault(example.label, []).append(index)
    aside = {
        indices[position]
        for indices in by_label.values()
        for position in stable_order(len(indices))[: int(len(indices) * fraction + 0.5)]
        if len(indices) > 1
    }
    remaining = tuple(e for index, e in enumerate(pool.examples) if index not in aside)
    chosen = tuple(e for index, e in enumerate(pool.examples) if index in aside)
    return Pool(remaining, pool.names), Pool(chosen, pool.names)
