"""What each source contributes to a merge, kept in files: its masked task vector, sparse and exact.

A task vector is cut into runs of `RUN` elements, and a run in which anything is left is two tensors
in a safetensors file: its `bits` (uint8, one bit per element that is not zero, the highest bit
first) and its `values` (these elements in order, in the dtype that the merge computes in). So a sum
over parts adds the same numbers in the same order as one over the sources, and gives the same bits.

`index.json` beside the files has the digest of each, and what a merge has to know of a source
without reading it: the statistics of its masks, the dtypes it is stored in, what rounding did.
`extracting` makes parts, `joining` merges them.
"""

import dataclasses
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import backends, checkpoints, recipe, rounding
from mlflow_breadcrumbs.engine.backends import arithmetic
from mlflow_breadcrumbs.support import canonical, json_documents

FORMAT = "urn:mlflow-breadcrumbs:parts:v1"
FOLDER = "parts"
"""Where a version's parts lie, in the artifacts of the run that made it."""
INDEX = "index.json"

RUN = 1 << 18
"""Elements of a tensor that are read, and merged, at a time."""
FILE = 64 << 20
"""Bytes of packed runs that are held before they become a file."""

FROM_MASKED = ("sum", "mean", "tsv", "iso")
"""Ways to combine the sources for which their masked task vectors are enough."""

Values = npt.NDArray[Any]
"""Numbers of a run, or its bits."""


@dataclasses.dataclass(frozen=True)
class PartFile:
    """A file of a part."""

    name: str
    digest: str
    """`sha256:…` of its bytes."""
    nbytes: int


@dataclasses.dataclass(frozen=True)
class SourcePart:
    """What is known of one source's part."""

    source: str
    """The weights digest of the source."""
    dtypes: tuple[str, ...]
    """The safetensors names of the source's floating-point dtypes, sorted."""
    source_bytes: int
    """Of the source's tensors: what reading it would have cost."""
    statistics: tuple[backends.MaskStatistics, ...]
    """One per merged tensor, by name; their `source` is 0."""
    files: tuple[PartFile, ...]
    noise: rounding.Noise | None = None
    """What rounding did, where the source is stored in fewer bits than the base."""

    @property
    def nbytes(self) -> int:
        """The size of its files."""
        return sum(file.nbytes for file in self.files)


@dataclasses.dataclass(frozen=True)
class PartsIndex:
    """The parts of a merge, and what they were made from."""

    base: str
    """The weights digest of the base."""
    masks: Mapping[str, Any]
    """The recipe's fields that parts depend on; see `mask_fields`."""
    tensors: tuple[tuple[str, str, int], ...]
    """Name, dtype of the arithmetic, and elements of each merged tensor, by name."""
    parts: tuple[SourcePart, ...]
    """In the order of the sources."""

    @property
    def nbytes(self) -> int:
        """The size of all files."""
        return sum(part.nbytes for part in self.parts)

    def to_json(self) -> bytes:
        """The content of `index.json`, in canonical JSON."""
        return canonical.dumps(
            {
                "format": FORMAT,
                "base": self.base,
                "masks": dict(self.masks),
                "tensors": [list(entry) for entry in self.tensors],
                "parts": [_plain(part) for part in self.parts],
            }
        )


def mask_fields(settings: recipe.MergeRecipe) -> dict[str, Any]:
    """What of a recipe decides about parts; weights, alpha and how they are combined don't."""
    fields = settings.every_field()
    whole: dict[str, Any] = (
        {"vectors": settings.vectors} if settings.vectors == recipe.WHOLE_MEAN else {}
    )
    whole |= {"own": list(settings.own)} if settings.own else {}
    return whole | {key: fields[key] for key in ("density", "gamma", "unit", "include", "exclude")}


def tensor_table(job: backends.Job) -> tuple[tuple[str, str, int], ...]:
    """The merged tensors of a job as `PartsIndex.tensors` has them."""
    infos = [(name, job.base.info(name)) for name in job.merged]
    return tuple(
        (name, checkpoints.DTYPE_NAMES[arithmetic.working_dtype(info.dtype)], info.numel)
        for name, info in infos
    )


def check_recipe(settings: recipe.MergeRecipe) -> None:
    """Raise `MergeError` for a recipe whose merges no parts make cheaper.

    A part is a masked task vector. Some ways to combine matrices need more of a source than that;
    and where nothing is masked, a part is as large as its source.
    """
    why = None
    if settings.calibrate != "none" or settings.combine not in FROM_MASKED:
        why = "it needs the sources' whole changes, not only what their masks keep"
    elif settings.density == 1:
        why = "nothing is masked, so what a source contributes is as large as the source"
    if why is not None:
        raise errors.MergeError(
            f"--keep-parts is of no use for {_named(settings)}: {why}. {REMEDY}"
        )


def check_size(job: backends.Job) -> None:
    """Raise `MergeError` where a job's masks leave more bytes than its sources have.

    Sources in 16 bits have parts in 32, since a difference of two such numbers may need them.
    """
    infos = [job.base.info(name) for name in job.merged]
    kept = sum(
        info.numel / 8
        + job.recipe.density * info.numel * arithmetic.working_dtype(info.dtype).itemsize
        for info in infos
    )
    for label, source in zip(job.labels, job.sources, strict=True):
        whole = sum(source.info(name).nbytes for name in job.merged)
        if kept >= whole:
            raise errors.MergeError(
                f"--keep-parts is of no use for {_named(job.recipe)} with the source {label}: with "
                f"density {job.recipe.density:g}, what it contributes takes up to "
                f"{kept / 1e6:.1f} MB, and the source itself {whole / 1e6:.1f} MB. {REMEDY}"
            )


REMEDY = "Merge without --keep-parts; `merge --from` works all the same, and reads every source"


def _named(settings: recipe.MergeRecipe) -> str:
    """A recipe by the method that has its fields, or else by these."""
    fields = settings.every_field()
    for name, preset in recipe.PRESETS.items():
        own = {key: preset.get(key, default) for key, default in _TELLING.items()}
        if own == {key: fields[key] for key in _TELLING}:
            return f"the recipe {name} ({_said(settings)})"
    return f"the recipe with {_said(settings)}"


_TELLING = {"density": 1.0, "gamma": 0.0, "unit": "tensor", "combine": "sum", "calibrate": "none"}
"""Fields by which a method is known, and what they are where a preset does not say."""


def _said(settings: recipe.MergeRecipe) -> str:
    calibrated = f", calibrate {settings.calibrate}" if settings.calibrate != "none" else ""
    return f"density {settings.density:g}, combine {settings.combine}{calibrated}"


def read_index(content: bytes, origin: str) -> PartsIndex | None:
    """The index in a file; `None` for one of another format, which a later release wrote.

    Args:
        content: of `index.json`.
        origin: how messages name it.

    Raises:
        IntegrityError: it is no index.
    """
    whole = json_documents.parse(content, origin, errors.IntegrityError)
    if isinstance(whole, dict) and whole.get("format", FORMAT) != FORMAT:
        return None
    try:
        names = [(str(name), str(dtype), int(numel)) for name, dtype, numel in whole["tensors"]]
        return PartsIndex(
            base=str(whole["base"]),
            masks=dict(whole["masks"]),
            tensors=tuple(names),
            parts=tuple(_part(entry, names) for entry in whole["parts"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.IntegrityError(
            f"{origin} is no index of parts ({type(error).__name__}: {error}); "
            "merge anew, with --keep-parts"
        ) from error


def _plain(part: SourcePart) -> dict[str, Any]:
    """A part for JSON; the numbers of its statistics in the order of `_NUMBERS`."""
    return {
        "source": part.source,
        "dtypes": list(part.dtypes),
        "bytes": part.source_bytes,
        "statistics": [
            [_written(getattr(entry, field)) for field in _NUMBERS] for entry in part.statistics
        ],
        "files": [[file.name, file.digest, file.nbytes] for file in part.files],
        "noise": None
        if part.noise is None
        else [*part.noise.dtypes, _written(part.noise.expected), _written(part.noise.norm)],
    }


_NUMBERS = ("elements", "kept", "smallest_kept", "largest_kept", "energy", "energy_kept")


def _written(number: float) -> float | str:
    """A number for JSON, which has no infinity."""
    return number if math.isfinite(number) else str(number)


def _part(entry: Mapping[str, Any], tensors: Sequence[tuple[str, str, int]]) -> SourcePart:
    noise = entry["noise"]
    return SourcePart(
        source=str(entry["source"]),
        dtypes=tuple(str(dtype) for dtype in entry["dtypes"]),
        source_bytes=int(entry["bytes"]),
        statistics=tuple(
            backends.MaskStatistics(
                name, 0, int(row[0]), int(row[1]), *(float(number) for number in row[2:6])
            )
            for (name, _, _), row in zip(tensors, entry["statistics"], strict=True)
        ),
        files=tuple(_file(*file) for file in entry["files"]),
        noise=None
        if noise is None
        else rounding.Noise(
            "", (str(noise[0]), str(noise[1])), expected=float(noise[2]), norm=float(noise[3])
        ),
    )


def _file(name: Any, digest: Any, nbytes: Any) -> PartFile:
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise ValueError(f"{name!r} is not the name of a file of a part")
    return PartFile(name, str(digest), int(nbytes))


class PartWriter:
    """Writes the runs of one source into files of a folder, which are named by their content.

    Args:
        folder: it is there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Values] = {}
        self._size = 0
        self._files: list[PartFile] = []

    def add(self, tensor: int, start: int, values: Values) -> None:
        """Keep a run, flat: `RUN` elements of a tensor from `start` on, or its last ones.

        Raises:
            CheckpointError: the disk is full.
        """
        left = values != 0
        if not left.any():
            return
        packed = {
            f"{tensor}.{start}.bits": np.packbits(left),
            f"{tensor}.{start}.values": values[left],
        }
        self._held |= packed
        self._size += sum(content.nbytes for content in packed.values())
        if self._size >= FILE:
            self._flush()

    def finish(self) -> tuple[PartFile, ...]:
        """Write what is left; the files."""
        if self._held:
            self._flush()
        return tuple(self._files)

    def _flush(self) -> None:
        content = safetensors.numpy.save(self._held)
        digest = canonical.sha256(content)
        path = self._folder / f"{digest.removeprefix('sha256:')[:32]}.safetensors"
        # Under a name of its own first: a source that is changed alike may be at the same file.
        temporary = self._folder / f".{secrets.token_hex(8)}"
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError as error:
            raise errors.CheckpointError(
                f"cannot write {path}: {error.strerror or error}; make room on the disk of "
                "temporary files (TMPDIR), or merge without --keep-parts"
            ) from error
        self._files.append(PartFile(path.name, digest, len(content)))
        self._held, self._size = {}, 0


class OpenedPart:
    """The part of a source, ready to be merged.

    Args:
        known: what the index says of it.
        folder: where its files are.

    Raises:
        IntegrityError: a file is not the one that was written.
        CheckpointError: a file can't be read.
    """

    def __init__(self, known: SourcePart, folder: Path) -> None:
        self.known = known
        self.folder = folder
        self._opened: list[checkpoints.Checkpoint] = []
        self._of: dict[str, checkpoints.Checkpoint] = {}
        for file in known.files:
            path = folder / file.name
            found = checkpoints.file_digest(path)
            if found != file.digest:
                raise errors.IntegrityError(
                    f"the part {file.name} of the source {known.source} was changed: recorded "
                    f"{file.digest}, found {found}. Nothing was written; restore it, or delete the "
                    "parts, and the sources are read instead"
                )
            checkpoint = checkpoints.Checkpoint.open(path)
            self._opened.append(checkpoint)
            self._of |= dict.fromkeys(checkpoint.names, checkpoint)

    def run(self, tensor: int, start: int, room: torch.Tensor) -> torch.Tensor:
        """A run of the masked task vector, with its zeros.

        Args:
            tensor: its position among the merged tensors.
            start: the flat index of the run's first element.
            room: [elements] of the tensor's dtype; filled, and returned.

        Raises:
            IntegrityError: the file holds something else.
        """
        room.zero_()
        key = f"{tensor}.{start}"
        if f"{key}.bits" not in self._of:
            return room
        out = room.numpy()
        bits = self._tensor(f"{key}.bits", np.dtype(np.uint8))
        values = self._tensor(f"{key}.values", out.dtype)
        left = np.unpackbits(bits)
        if left.size < out.size or left.size > out.size + 7 or left.sum() != values.size:
            raise self._damaged(key)
        out[left[: out.size].view(np.bool_)] = values
        return room

    def check_unchanged(self) -> None:
        """Raise `IntegrityError` if a file was written to since it was opened."""
        for checkpoint in self._opened:
            checkpoint.check_unchanged()

    def close(self) -> None:
        """Let go of the files."""
        for checkpoint in self._opened:
            checkpoint.close()

    def _tensor(self, key: str, dtype: np.dtype[Any]) -> Values:
        if key not in self._of:
            raise self._damaged(key)
        found: Values = self._of[key].tensor(key).numpy()
        if found.dtype != dtype or found.ndim != 1:
            raise self._damaged(key)
        return found

    def _damaged(self, key: str) -> errors.IntegrityError:
        return errors.IntegrityError(
            f"the part of the source {self.known.source} is damaged at {key}; merge anew, with "
            "--keep-parts"
        )
