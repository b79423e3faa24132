"""Several checkpoints in one folder, read as one.

A model may have its weights in more than one checkpoint: beside the sharded one that of a value
head, below it those of further modules. A location names them all:

    FOLDER/{model.safetensors,2_Dense/model.safetensors}

The first keeps the names of its tensors; before those of each further one stands where it is, as in
`2_Dense/linear.weight`.
"""

import posixpath
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".safetensors.index.json", ".safetensors")
USUAL = "model"
"""What libraries call a checkpoint; who says where it is need not say that too."""

_LOCATION = re.compile(r"(?:(.*)/)?\{([^{}]+)\}")


class Bundle(NamedTuple):
    """Checkpoints that are read as one."""

    folder: str
    """That they all are in, or below; a path or an address."""
    names: tuple[str, ...]
    """The files, or indexes of shards, as paths in the folder; the main one first."""

    @property
    def file(self) -> str:
        """All of them as the name of one file in the folder."""
        return f"{{{','.join(urllib.parse.quote(name) for name in self.names)}}}"

    @property
    def location(self) -> str:
        """What `parse` reads."""
        return f"{self.folder}/{self.file}" if self.folder else self.file

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What stands before the tensors' names of each; nothing for the main one's."""
        found = [""]
        for name in self.names[1:]:
            stem = next(name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix))
            folder, own = posixpath.split(stem)
            prefix = folder if folder and own == USUAL else stem
            found.append(f"{name if f'{prefix}/' in found else prefix}/")
        return tuple(found)


def of(paths: Sequence[str]) -> Bundle:
    """Checkpoints by their paths below one folder, the main one first."""
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    return Bundle(common, tuple(posixpath.relpath(path, common or ".") for path in paths))


def parse(location: str | Path) -> Bundle | None:
    """The checkpoints that a location names; `None` if it means one thing as any other does."""
    text = location.as_posix() if isinstance(location, Path) else location
    found = _LOCATION.fullmatch(text)
    if found is None:
        return None
    names = tuple(urllib.parse.unquote(name) for name in found[2].split(","))
    inside = all(
        name.endswith(SUFFIXES) and not name.startswith("/") and ".." not in name.split("/")
        for name in names
    )
    return Bundle(found[1] or "", names) if inside else None
