"""A path that somebody else gave, kept inside a folder."""

from pathlib import Path


def inside(folder: str | Path, given: str) -> Path | None:
    """The plain file that a path means, if it is in a folder or below; else nothing.

    Links are followed and `..` is undone before it is looked where the path leads. What is not
    there, can't be looked at or is no plain file is nothing, too: who asks learns no more.

    Args:
        folder: relative paths begin here.
        given: a path, absolute or relative.
    """
    try:
        root = Path(folder).resolve(strict=True)
        target = (root / given).resolve(strict=True)
        return target if target.is_relative_to(root) and target.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, links in a circle
        return None
