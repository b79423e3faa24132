"""How large an image may be: held against before it is read, and before it is decoded.

A file of a hundred bytes can ask for gigabytes: what an image takes is in its header, not in its
size. The limits hold for images in requests, in folders and in Parquet files alike. Each is set by
an environment variable of the process that reads the images.
"""

import dataclasses
import os
from typing import Self

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import defaults

PREFIX = "BREADCRUMBS_MAX_"
"""Of the variables: `BREADCRUMBS_MAX_IMAGE_PIXELS` and so on, one per field."""


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """The most that is read; each at least 1."""

    image_pixels: int = defaults.MAX_IMAGE_PIXELS
    """Width times height of one image."""
    image_side: int = defaults.MAX_IMAGE_SIDE
    """Pixels of the longer side."""
    image_aspect: int = defaults.MAX_IMAGE_ASPECT
    """Longer side divided by the shorter: the shorter is resized to the model's, so a thin image
    grows."""
    image_bytes: int = defaults.MAX_IMAGE_BYTES
    """Of one encoded file."""
    request_pixels: int = defaults.MAX_REQUEST_PIXELS
    """Of all images of one request to a served model together."""

    @classmethod
    def from_environment(cls) -> Self:
        """Take the variables that are set, and the defaults for the others.

        Raises:
            TaskError: A variable is not a whole number, 1 or more.
        """
        found = {}
        for field in dataclasses.fields(cls):
            given = os.environ.get(variable(field.name), "").strip()
            if not given:
                continue
            if not (given.isascii() and given.isdigit() and len(given) < 19 and int(given)):
                raise errors.TaskError(
                    f"{variable(field.name)} is {given!r}; give a whole number, 1 or more."
                )
            found[field.name] = int(given)
        return cls(**found)

    def check_size(self, width: int, height: int, origin: str) -> None:
        """Refuse an image by its width and height, before it is decoded.

        Raises:
            TaskError: It has too many pixels, or is too long or too thin.
        """
        long, short = max(width, height), max(1, min(width, height))
        what = f"The image {origin} has {width:,} × {height:,} pixels"
        if width * height > self.image_pixels:
            raise self._refusal(f"{what}, {width * height:,} in all", "image_pixels")
        if long > self.image_side:
            raise self._refusal(f"{what}, {long:,} a side", "image_side")
        if long > self.image_aspect * short:
            times = f"{long / short:,.1f}".removesuffix(".0")
            raise self._refusal(f"{what}: one side is {times} times the other", "image_aspect")

    def check_bytes(self, size: int, origin: str) -> None:
        """Refuse an encoded image by its size in bytes, before it is read.

        Raises:
            TaskError: It is larger.
        """
        if size > self.image_bytes:
            raise self._refusal(f"The image {origin} has {size:,} bytes", "image_bytes")

    def check_request(self, pixels: int, images: int) -> None:
        """Refuse the images of a request by their pixels together.

        Raises:
            TaskError: They are too many.
        """
        if pixels > self.request_pixels:
            raise self._refusal(
                f"The {images:,} images of the request have {pixels:,} pixels", "request_pixels"
            )

    def _refusal(self, what: str, field: str) -> errors.TaskError:
        return errors.TaskError(
            f"{what}; at most {getattr(self, field):,} are taken ({variable(field)} sets it)."
        )


def variable(field: str) -> str:
    """The environment variable of a limit."""
    return PREFIX + field.upper()
