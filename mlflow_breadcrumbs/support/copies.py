"""Copies of large files: of the same bytes on the disk where the file system can, else anew."""

import contextlib
import os
import shutil
import stat
import sys
from pathlib import Path

_FICLONE = 0x40049409
"""The request that makes a file share another one's extents (ioctl_ficlonerange(2))."""


def copy(source: Path, target: Path) -> None:
    """Copy a file's bytes, shared where that can be."""
    if not clone(source, target):
        shutil.copyfile(source, target)


def clone(source: Path, target: Path) -> bool:
    """Make a new file that shares a file's bytes until one of the two is written to.

    Returns:
        Whether it could be done: by Btrfs and XFS, say, within one file system. Otherwise
        nothing is left.
    """
    if sys.platform != "linux":
        return False
    import fcntl  # there is none on Windows

    with source.open("rb") as original:
        try:
            with target.open("xb") as made:
                fcntl.ioctl(made, _FICLONE, original.fileno())
                return True
        except FileExistsError:
            return False
        except OSError:
            with contextlib.suppress(OSError):
                target.unlink()
            return False


def move(source: Path, target: Path) -> bool:
    """Move a file within its file system, if it would have the same owners when made in the target.

    Returns:
        Whether it could be done; otherwise all is as it was. Not into a folder that hands its group
        or its access list down: a file that is moved there would miss them.
    """
    try:
        folder = target.parent.stat()
        # Other systems than Linux hand the group down always.
        inherits = sys.platform != "linux" or folder.st_mode & stat.S_ISGID
        if inherits and folder.st_gid != source.stat().st_gid:
            return False
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a file system without attributes
                if "system.posix_acl_default" in os.listxattr(target.parent):
                    return False
        os.replace(source, target)
    except OSError:
        return False
    return True
