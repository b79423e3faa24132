"""The headers of a checkpoint elsewhere, held against the same limits as a file's.

Each file is made here as one with a hole: its header is true, its data is not there. What judges
files on a disk then judges these.
"""

import concurrent.futures
import posixpath
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import bundles, headers
from mlflow_breadcrumbs.engine.remote import fetching, stores
from mlflow_breadcrumbs.engine.stored_bytes import FileState
from mlflow_breadcrumbs.support import json_documents

FIRST = 1 << 16
"""Bytes that are read of a file before it is known how long its header is."""
AT_ONCE = 16
"""Headers that are fetched at the same time."""


def find(place: stores.Target) -> tuple[str, headers.CheckpointHeaders, fetching.Fetched]:
    """The headers of a checkpoint, and its bytes.

    Args:
        place: the folder, and the file or index, or several of them as `bundles` names them;
            without one, the only checkpoint in the folder.

    Returns:
        How it is called, its headers, its bytes.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or not safetensors.
    """
    folder, name = place.folder, place.file or _only(place.folder)
    location = f"{folder.address}/{name}"
    with tempfile.TemporaryDirectory() as temporary:
        outlines = Path(temporary)
        try:
            bundle = bundles.parse(name)
            names = bundle.names if bundle else (name,)
            states = _outline(folder, names, outlines)
            for index in (own for own in names if own.endswith(headers.INDEX_SUFFIX)):
                beside = posixpath.dirname(index)
                shards = (posixpath.join(beside, own) for own in _shards(outlines / index))
                states += _outline(folder, shards, outlines)
            found = headers.read(outlines / name)
        except errors.CheckpointError as error:
            said = str(error).replace(str(outlines), folder.address)
            raise errors.CheckpointError(said) from error
        by_name = {state.name: state for state in states}
        ordered = [by_name[file.relative_to(outlines).as_posix()] for file in found.files]
    return location, found, fetching.Fetched(folder, ordered, found)


def _only(folder: stores.Folder) -> str:
    """The one checkpoint of a folder."""
    names = folder.names()
    found = [name for name in names if name.endswith(headers.INDEX_SUFFIX)]
    found = found or [name for name in names if name.endswith(".safetensors")]
    if len(found) != 1:
        raise errors.CheckpointError(
            f"the folder {folder.address} holds {len(found)} checkpoints "
            f"({', '.join(found) or 'no .safetensors'}); name one file"
        )
    return found[0]


def _shards(index: Path) -> list[str]:
    """The files that an index names, as far as it is one; `headers` says what is wrong with it."""
    content = json_documents.read(index, str(index), errors.CheckpointError)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    named = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if len(named) > headers.SHARDS or not all(map(headers.is_shard_name, named)):
        return []
    return sorted(named)


def _outline(folder: stores.Folder, names: Iterable[str], target: Path) -> list[FileState]:
    """Make files with the header of each, or the whole of an index; what is known of them."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda name: _outline_one(folder, name, target / name), names))


def _outline_one(folder: stores.Folder, name: str, target: Path) -> FileState:
    state = folder.state(name)
    is_index = name.endswith(headers.INDEX_SUFFIX)
    content = _start(folder, name, min(headers.HEADER if is_index else FIRST, state.nbytes))
    length = 8 + int.from_bytes(content[:8], "little")
    if not is_index and len(content) < length <= min(state.nbytes, 8 + headers.HEADER):
        content = _start(folder, name, length)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        file.write(content)
        file.truncate(state.nbytes)
    return state


def _start(folder: stores.Folder, name: str, nbytes: int) -> bytes:
    """The first bytes of a file, of a store without ranges from a stream that is broken off."""
    if folder.ranged:
        return folder.read(name, 0, nbytes)
    found = bytearray()
    for chunk in folder.stream(name):
        found += chunk
        if len(found) >= nbytes:
            break
    return bytes(found[:nbytes])
