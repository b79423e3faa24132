"""The headers of safetensors files and the indexes of their shards: found, and held against limits.

The library `safetensors` judges whether a file is sound. Nothing here reads a tensor.
"""

import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import safetensors

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import bundles
from mlflow_breadcrumbs.support import confined, json_documents

INDEX_SUFFIX = ".safetensors.index.json"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""What `peft` calls an adapter's files, see `adapters`."""

ITEM_SIZES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "U16": 2,
        "I16": 2,
        "U32": 4,
        "I32": 4,
        "U64": 8,
        "I64": 8,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "F16": 2,
        "BF16": 2,
        "F32": 4,
        "F64": 8,
        "C64": 8,
    }
)
"""Bytes per element, by the safetensors names of the dtypes that can be read."""

TENSORS = 100_000
"""Of a checkpoint at most; the largest language models have some ten thousand."""
SHARDS = 500
"""Of a checkpoint at most; each is a file that is open."""
DIMENSIONS = 32
"""Of a tensor at most."""
NAME = 255
"""Characters of a tensor's name at most, and bytes of a file's name."""
HEADER = 100_000_000
"""Bytes of a header at most, which the library holds it to."""


class TensorEntry(NamedTuple):
    """What the header says of one tensor."""

    dtype: str
    """The safetensors name."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the data in bytes."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    @property
    def is_floating_point(self) -> bool:
        """Whether the elements are real floating-point numbers."""
        return self.dtype.startswith(("F", "BF"))


class Position(NamedTuple):
    """Where a tensor's bytes are: in which file, and the offset of the first one in it."""

    file: int
    offset: int


class CheckpointHeaders(NamedTuple):
    """What the headers of a checkpoint say, all files together."""

    path: Path
    """The file, or the index of its shards."""
    files: tuple[Path, ...]
    entries: dict[str, TensorEntry]
    places: dict[str, Position]
    prefixes: tuple[str, ...] = ()
    """Per file what stands before its tensors' names, where these are several checkpoints."""


def read(path: str | Path) -> CheckpointHeaders:
    """The headers of a `.safetensors` file, of an index's shards, or of a folder that holds one.

    Several checkpoints are read as one where `bundles` says so.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or not safetensors.
    """
    bundle = bundles.parse(path)
    return _read_one(_locate(Path(path))) if bundle is None else _read_all(bundle, Path(path))


def _read_all(bundle: bundles.Bundle, path: Path) -> CheckpointHeaders:
    """The headers of several checkpoints, as those of one."""
    files: list[Path] = []
    prefixes: list[str] = []
    entries: dict[str, TensorEntry] = {}
    places: dict[str, Position] = {}
    for name, prefix in zip(bundle.names, bundle.prefixes, strict=True):
        found = _read_one(Path(bundle.folder) / name)
        own = {f"{prefix}{tensor}": entry for tensor, entry in found.entries.items()}
        if twice := sorted(own.keys() & entries.keys()):
            raise errors.CheckpointError(
                f"{path} has two tensors {twice[0]!r}, one of them in {name}; rename one"
            )
        entries |= own
        for tensor, place in found.places.items():
            places[f"{prefix}{tensor}"] = Position(len(files) + place.file, place.offset)
        files += found.files
        prefixes += [prefix] * len(found.files)
    _check_count(path, len(entries))
    return CheckpointHeaders(path, tuple(files), entries, places, tuple(prefixes))


def _read_one(path: Path) -> CheckpointHeaders:
    """The headers of a file, or of an index's shards."""
    files = _shards(path) if path.name.endswith(INDEX_SUFFIX) else {path: None}
    entries: dict[str, TensorEntry] = {}
    places: dict[str, Position] = {}
    for number, (file, expected) in enumerate(files.items()):
        header, start = _read_header(file)
        if expected is not None and set(header) != expected:
            raise errors.CheckpointError(
                f"{path} and its shard {file.name} disagree on the tensors in it: "
                f"{_difference(expected, set(header))}. Make the shards and the index again"
            )
        for name, entry in header.items():
            entries[name] = TensorEntry(entry["dtype"], tuple(entry["shape"]))
            places[name] = Position(number, start + entry["data_offsets"][0])
    if not entries:
        raise errors.CheckpointError(f"{path} holds no tensors; nothing can be merged")
    _check_count(path, len(entries))
    return CheckpointHeaders(path, tuple(files), entries, places)


def _locate(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{INDEX_SUFFIX}")) or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise errors.CheckpointError(
            f"the folder {path} holds {len(found)} checkpoints "
            f"({', '.join(file.name for file in found) or 'no .safetensors'}); name one file"
        )
    return found[0]


def is_shard_name(file: object) -> bool:
    """Whether an index may name this as a shard: a file beside it."""
    return isinstance(file, str) and file == os.path.basename(file) and file not in ("", ".", "..")


def _shards(index: Path) -> dict[Path, set[str] | None]:
    """The shard files of an index and the tensors that each must hold."""
    content = json_documents.read(index, str(index), errors.CheckpointError)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise errors.CheckpointError(
            f"{index} is not a safetensors index: a JSON object with `weight_map`"
        )
    _check_count(index, len(weight_map))
    shards: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if not is_shard_name(file):
            raise errors.CheckpointError(
                f"{index} puts the tensor {name!r} into {file!r}; "
                "a shard must be a file name beside the index"
            )
        if len(os.fsencode(file)) > NAME:
            raise errors.CheckpointError(
                f"{index} names a shard of {len(file):,} characters ({file[:40]}…), which no file "
                "system holds; make the shards and the index again"
            )
        path = index.with_name(file)
        if path.is_symlink() and confined.linked(path) is None:
            raise errors.CheckpointError(
                f"{index} names the shard {file!r}, which is a symlink to a file that is not "
                "beside it, nor in the same Hugging Face cache; copy the folder with what the "
                f"links lead to (cp -rL {index.parent} COPY), and give the copy"
            )
        if not path.exists():
            raise errors.CheckpointError(
                f"{index} names the shard {file!r}, which is missing; complete the download"
            )
        names = shards.setdefault(path, set())
        assert names is not None
        names.add(name)
    if len(shards) > SHARDS:
        raise errors.CheckpointError(
            f"{index} names {len(shards):,} shards, {SHARDS} is the most; make larger shards"
        )
    return shards


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors' header entries, and the offset at which the data starts."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise errors.CheckpointError(f"{path} is not a file; name a .safetensors file")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise errors.CheckpointError(
            f"cannot read the checkpoint {path}: {error.strerror}"
        ) from error
    # A header of 640 bytes begins as a pickle does; but JSON follows its length.
    pickles = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")
    if start.startswith(pickles) and start[8:] != b"{":
        raise errors.CheckpointError(
            f"{path} is a PyTorch pickle, not safetensors; a pickle can run code when it is read. "
            "Save the model with safetensors.torch.save_model; of an open_clip model, `mlflow-"
            "breadcrumbs import` reads plain tensors out of a .pt safely"
        )
    with path.open("rb") as file:  # some hundred thousand tensors take minutes
        length = int.from_bytes(file.read(8), "little")
        count = file.read(min(length, HEADER)).count(b'"data_offsets"')
    _check_count(path, count)
    try:
        # The library holds lengths, offsets, shapes and dtypes against the file's size.
        with safetensors.safe_open(path, framework="np"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise errors.CheckpointError(
            f"{path} ({size} bytes) is not a sound safetensors file: {error}. "
            "Copy or download it again"
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json_documents.parse(
            file.read(length), f"the header of {path}", errors.CheckpointError
        )
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _check_name(path, name)
        _check_shape(path, name, entry["shape"])
        if entry["dtype"] not in ITEM_SIZES:
            raise errors.CheckpointError(
                f"{path}: the tensor {name!r} has the dtype {entry['dtype']}, which can't be read; "
                f"convert it to one of {', '.join(ITEM_SIZES)}"
            )
    return header, 8 + length


def _check_count(path: Path, tensors: int) -> None:
    if tensors > TENSORS:
        raise errors.CheckpointError(
            f"{path} holds {tensors:,} tensors, {TENSORS:,} is the most: no model has so many"
        )


def _check_shape(path: Path, name: str, shape: list[int]) -> None:
    """An empty tensor may have any other dimensions; libraries multiply them all the same."""
    if (
        len(shape) > DIMENSIONS
        or math.prod(side for side in shape if side) > json_documents.LARGEST
    ):
        text = str(shape)
        text = text if len(text) <= 60 else f"{text[:57]}…"
        raise errors.CheckpointError(
            f"{path}: the tensor {name!r} has the shape {text}, "
            f"which no library holds: at most {DIMENSIONS} dimensions, of less than 2⁵³ elements"
        )


def _check_name(path: Path, name: str) -> None:
    if len(name) > NAME:
        raise errors.CheckpointError(
            f"{path} has a tensor name of {len(name):,} characters ({name[:40]!r}…); {NAME} is the "
            "most. Rename the tensor"
        )
    if not name or "\0" in name or ".." in name.replace("\\", "/").split("/"):
        raise errors.CheckpointError(
            f"{path} has a tensor named {name!r}; "
            "a name must not be empty, hold a NUL or step out of a folder. Rename the tensor"
        )


def _difference(expected: set[str], found: set[str]) -> str:
    parts = []
    if expected - found:
        parts.append(f"missing {', '.join(sorted(expected - found))}")
    if found - expected:
        parts.append(f"not in the index {', '.join(sorted(found - expected))}")
    return "; ".join(parts)
