"""From an image file to an RGB picture of 8 bits: what is refused, and what is converted how.

| in the file | in the picture |
|---|---|
| EXIF orientation | turned as it says |
| grey of 16 bits (PNG, PGM, TIFF) | the upper 8 bits: 0…65535 becomes 0…255 |
| floating point (TIFF, PFM) | 0…1 becomes 0…255; any other value is refused |
| integers of 32 bits | refused: nothing says which is white |
| colours of 16 bits | the upper 8 bits (Pillow does) |
| transparency | left out; the colours beneath stay |
| grey, palette, CMYK, YCbCr | RGB, without a colour profile |
| several frames | the first |

Nothing is decoded before its header was held against `image_limits`.
"""

import io
import logging
import os
import re
import stat
import threading
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import image_limits

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Of Pillow's formats those that are plain images; EPS, for one, starts another program."""

SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"),
        *(".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    }
)
"""What files of these formats are called, in lower case."""

_TILE = (322, 323)
"""TIFF's tags of the width and the height of a tile, which may be larger than the image."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an EXIF orientation."""

_logger = logging.getLogger(__name__)
_told: set[str] = set()
_telling = threading.Lock()


def read(path: Path) -> bytes:
    """Read an image file, once its kind and size are known to be an image file's.

    Raises:
        TaskError: It is no plain file (a pipe, for one, would never end), or too large.
        OSError: It can't be read.
    """
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    )
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise errors.TaskError(f"The image {path} is not a file.")
        image_limits.ImageLimits.from_environment().check_bytes(found.st_size, str(path))
        return file.read()


def size(content: bytes, origin: str) -> tuple[int, int]:
    """Width and height of an image file, by its header; nothing is decoded.

    Args:
        content: the file.
        origin: where it comes from, for messages.

    Raises:
        ImageError: it is not an image of `FORMATS`.
        TaskError: it is beyond the limits.
    """
    with _opened(content, origin) as image:
        return image.size


def decode(content: bytes, origin: str) -> Image.Image:
    """Decode an image file as RGB, turned upright.

    Args:
        content: the file.
        origin: where it comes from, for messages.

    Raises:
        ImageError: it is not an image of `FORMATS`, or damaged.
        TaskError: it is beyond the limits, or has values that no rule turns into 8 bits.
    """
    with _opened(content, origin) as image:
        try:
            image.load()
            turn = _turn(image)
        except Exception as error:  # each decoder has errors of its own
            raise _undecodable(content, origin, error) from error
        picture = to_rgb(image, origin)
    if turn is None:
        return picture
    _tell("an EXIF orientation", origin, "turned as it says")
    return picture.transpose(turn)


def to_rgb(image: Image.Image, origin: str) -> Image.Image:
    """Give a picture in memory as RGB of 8 bits; see the table of this module.

    Raises:
        TaskError: its values can't be turned into 8 bits.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        _tell("16 bits of grey", origin, "taken by the upper 8 bits")
        values = np.asarray(image)
        return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return _from_floats(image, origin)
    if image.mode == "I":
        raise errors.TaskError(
            f"The image {origin} holds integers of 32 bits, and nothing says which of them is "
            "white. Save it with 8 or 16 bits."
        )
    try:
        return image.convert("RGB")
    except Exception as error:  # LAB, for one; and decoders that only now find a damage
        raise errors.TaskError(
            f"The image {origin} can't be converted from {image.mode} to RGB: {error}."
        ) from error


def _from_floats(image: Image.Image, origin: str) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # with a NaN, both are NaN
        raise errors.TaskError(
            f"The image {origin} holds floating-point numbers from {low:g} to {high:g}, and "
            "nothing says which of them is white. Only 0 (black) to 1 (white) are taken: divide "
            "by the white value, or save it with 8 or 16 bits."
        )
    _tell("floating-point numbers", origin, "taken as 0 (black) to 1 (white)")
    return Image.fromarray((values * 255 + 0.5).astype(np.uint8)).convert("RGB")


def _opened(content: bytes, origin: str) -> Image.Image:
    """Read the header, and hold it against the limits."""
    limits = image_limits.ImageLimits.from_environment()
    limits.check_bytes(len(content), origin)
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(content), formats=known)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise errors.TaskError(f"The image {origin} is not decoded: {error}.") from error
    except Exception as error:  # each format has errors of its own
        raise _undecodable(content, origin, error) from error
    limits.check_size(*image.size, origin)
    tags = getattr(image, "tag_v2", {})  # of TIFF
    if isinstance(width := tags.get(_TILE[0]), int) and isinstance(
        height := tags.get(_TILE[1]), int
    ):
        limits.check_size(width, height, f"{origin}, in a tile,")
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What EXIF says is to be done; nothing where it says nothing that can be read."""
    try:
        return _TURNS.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    except Exception:  # noqa: BLE001 - damaged metadata of an image that is whole
        return None


def _undecodable(content: bytes, origin: str, error: Exception) -> errors.ImageError:
    why = re.sub(r" <_io\.BytesIO object[^>]*>", "", " ".join(str(error).split()))
    return errors.ImageError(
        f"The image {origin} can't be decoded ({len(content)} bytes): "
        f"{why or type(error).__name__}. Give PNG, JPEG, WebP, TIFF, GIF, BMP, PPM, AVIF or "
        "JPEG 2000."
    )


def _tell(what: str, origin: str, how: str) -> None:
    """Log a conversion, once per kind and process."""
    with _telling:
        if what in _told:
            return
        _told.add(what)
    _logger.warning("The image %s has %s, %s; so are all of its kind.", origin, what, how)
