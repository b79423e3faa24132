"""Files by descriptor, at an offset and from several threads, on every system.

`preadv` and `posix_fallocate` are missing on macOS, and `pread`, `pwrite` and folders that can be
opened on Windows; each function here takes the best call that there is.
"""

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

_BINARY: int = getattr(os, "O_BINARY", 0)
"""Windows would translate line breaks without it."""
_seeking = threading.Lock()
"""Where a descriptor must be moved first, threads take turns."""


def open_to_read(path: Path) -> int:
    """A descriptor of a file that exists."""
    return os.open(path, os.O_RDONLY | _BINARY)


def open_again(path: Path, twin: int) -> int:
    """A second descriptor of an open file, for reads here and there that say how much they want.

    The system does not read ahead on it: what it would fetch is needed much later, and may have
    left the cache by then.

    Args:
        path: of the file.
        twin: the first descriptor.

    Raises:
        OSError: there is another file by now.
    """
    descriptor = open_to_read(path)
    if not os.path.sameopenfile(descriptor, twin):
        os.close(descriptor)
        raise OSError(errno.ESTALE, "the file was replaced while it was opened")
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor


def create(path: Path) -> int:
    """A descriptor of a new file; raises `FileExistsError` where there is one."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)


def reserve(descriptor: int, size: int, folder: Path) -> None:
    """Give a new file its full size, so that a full disk is found before any work.

    Where the system can't reserve the blocks, the free space is looked at; another program may
    take it meanwhile, and then a later write fails.

    Raises:
        OSError: The disk has no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, size)


def read_into(descriptor: int, out: Any, offset: int) -> int:
    """Read at an offset into a writable buffer of bytes; how many there were."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [out], offset)
    view = memoryview(out).cast("B")
    if hasattr(os, "pread"):
        found = os.pread(descriptor, len(view), offset)
    else:
        with _seeking:
            os.lseek(descriptor, offset, os.SEEK_SET)
            found = os.read(descriptor, len(view))
    view[: len(found)] = found
    return len(found)


def write(descriptor: int, content: memoryview | bytes, offset: int) -> int:
    """Write at an offset; how many bytes were taken."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, content, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, content)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder outlive a crash; Windows sees to that itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
