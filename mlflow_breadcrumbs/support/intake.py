"""Small files from outside: regular ones, of a size that was agreed, before a byte is read."""

import os
import stat
from pathlib import Path

from mlflow_breadcrumbs import errors

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""A pipe that nobody writes to is opened at once, and refused."""


def content(
    path: str | Path, origin: str, error: type[errors.BreadcrumbsError], most: int
) -> bytes:
    """The bytes of a file.

    Args:
        path: of the file.
        origin: how messages name it.
        error: what is raised.
        most: bytes that it may have.

    Raises:
        BreadcrumbsError: of the kind given: it can't be read, is a folder, a pipe or a device, or
            is too large.
    """
    try:
        descriptor = os.open(path, _FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{origin} can't be read: it is {_kind(status.st_mode)}, not a file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                found = file.read(most + 1)
        finally:
            os.close(descriptor)
    except OSError as cause:
        raise error(f"{origin} can't be read: {cause.strerror or cause}") from cause
    except ValueError as cause:  # a NUL in the path
        raise error(f"{origin} can't be read: {cause}") from cause
    if len(found) > most:
        raise error(
            f"{origin} is refused: it has {max(status.st_size, len(found)):,} bytes, and "
            f"{most:,} is the most"
        )
    return found


def text(path: str | Path, origin: str, error: type[errors.BreadcrumbsError], most: int) -> str:
    """The same as text in UTF-8."""
    return decoded(content(path, origin, error, most), origin, error)


def decoded(found: bytes, origin: str, error: type[errors.BreadcrumbsError]) -> str:
    """Bytes as text in UTF-8; the error of the kind given where they are none."""
    try:
        return found.decode()
    except UnicodeDecodeError as cause:
        raise error(f"{origin} is not text in UTF-8: {cause}") from cause


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return name
    return "a device"
