"""Files that a user asked for: checked before the work, written whole after it."""

import os
from pathlib import Path

from mlflow_breadcrumbs import errors


def check_output(path: str | Path, suffix: str) -> None:
    """Find out before the work whether a result can be written to a file.

    Raises:
        OutputError: the name has another suffix, or its folder is missing or can't be written to.
    """
    target = Path(path)
    if target.suffix.lower() != suffix:
        raise errors.OutputError(f"the output {path} is written as {suffix}; name it so")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise errors.OutputError(
            f"the output {path} can't be written: its folder does not exist, or it is one itself"
        )
    if not os.access(target.absolute().parent, os.W_OK):
        raise errors.OutputError(f"the output {path} can't be written: its folder is read-only")


def write(path: str | Path, content: bytes) -> None:
    """Write a result to a file.

    Raises:
        OutputError: it can't be written.
    """
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise errors.OutputError(f"the output {path} can't be written: {error}") from error
