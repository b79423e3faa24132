"""A path that somebody else gave, or a link that somebody else made, kept inside a folder."""

import os
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


def linked(link: Path) -> Path | None:
    """The plain file that a link leads to, if it is beside it or in the same cache; else nothing.

    Hugging Face's cache of a repository has `snapshots/COMMIT/NAME` as links to files in `blobs`.
    """
    folder = Path(os.path.abspath(link)).parent
    above = (parent.parent for parent in (folder, *folder.parents) if parent.name == "snapshots")
    return inside(next(above, folder), os.path.abspath(link))
