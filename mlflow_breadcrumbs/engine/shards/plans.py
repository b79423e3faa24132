"""What there is to do in a merge that is done shard by shard, as a small JSON file."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import os
import posixpath
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import (
    adapters,
    alignment,
    backends,
    checkpoints,
    library_configs,
    merging,
    recipe,
    stored_bytes,
    writing,
)
from mlflow_breadcrumbs.engine.backends.cpu import masking, reading
from mlflow_breadcrumbs.engine.remote import stores
from mlflow_breadcrumbs.engine.shards import places
from mlflow_breadcrumbs.support import canonical, defaults, json_documents, processes

FORMAT = "urn:mlflow-breadcrumbs:plan:v1"


@dataclasses.dataclass(frozen=True)
class PlannedInput:
    """A checkpoint that a merge reads."""

    label: str
    """How messages name it."""
    path: str
    """Of the file, or of the index of its shards."""
    state: tuple[stored_bytes.FileState, ...]
    weights_digest: str | None = None
    """That it must have, where that is known."""


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """An output file and what goes into it."""

    file: str
    tensors: tuple[str, ...]
    bytes_read: int
    bytes_written: int


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """A merge that is done shard by shard."""

    fields: dict[str, Any]
    """Of the recipe."""
    base: PlannedInput
    sources: tuple[PlannedInput, ...]
    output: str
    """The path of the merged checkpoint, `….safetensors`."""
    max_shard_size: int | None
    shards: tuple[PlannedShard, ...]
    verify: bool = True
    """Whether the inputs' digests are computed from the bytes that are merged."""
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO
    """As for `merging.merge`."""
    cuts: tuple[tuple[masking.ModelCut, masking.ModelCut], ...] = ()
    """Per source, of the unit `model`."""
    ended_by: str | None = None
    """The command that ends the merge, where it is not `finish`."""
    aligned: str | None = None
    """Of what was decided of the sources' tensors, where one is not quite as the base is."""
    format: str = FORMAT

    @property
    def recipe(self) -> recipe.MergeRecipe:
        """By which the sources are merged."""
        return recipe.MergeRecipe.from_dict(self.fields)

    @functools.cached_property
    def digest(self) -> str:
        """Of the plan: what two workers must agree on."""
        return canonical.digest(self.to_dict())

    @functools.cached_property
    def staging(self) -> places.ShardPlace:
        """The folder for shards and notes, beside the output."""
        name = posixpath.basename(self.output)
        return places.of(self.output, f".{name}.{self.digest.removeprefix('sha256:')[:8]}.shards")

    @property
    def bytes_read(self) -> int:
        """Of all inputs; the unit `model` has read the sources four times more for the plan."""
        return sum(shard.bytes_read for shard in self.shards)

    @property
    def bytes_written(self) -> int:
        """Of all output files."""
        return sum(shard.bytes_written for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON holds it."""
        found: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        for field in ("ended_by", "aligned"):
            if found[field] is None:
                del found[field]  # plans of before have their digest without it
        return found

    def save(self, path: str | Path) -> None:
        """Write the plan, whole or not at all; an older plan is replaced.

        Raises:
            CheckpointError: the file can't be written, or there is one that is no plan.
        """
        if _is_taken(path):
            raise errors.CheckpointError(
                f"{path} exists and is no plan, so it is not replaced; name another file (--plan)"
            )
        if stores.is_address(path):
            folder, name = posixpath.split(str(path))
            stores.ObjectFolder(folder).write(name, self._text())
            return
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(self._text())
            os.replace(temporary, target)
        except OSError as error:
            raise errors.CheckpointError(
                f"cannot write the plan {path}: {error.strerror}; name another file (--plan)"
            ) from error

    def _text(self) -> bytes:
        return json.dumps(self.to_dict(), indent=1).encode()

    @contextlib.contextmanager
    def opened(self) -> Iterator[backends.Job]:
        """The whole merge, with the inputs open.

        Raises:
            MergeError: the plan was changed since.
            IntegrityError: an input is not the one that was planned with.
            CheckpointError: an input can't be read.
        """
        with contextlib.ExitStack() as stack:
            inputs: list[checkpoints.Checkpoint] = []
            for planned in (self.base, *self.sources):
                opened = (
                    adapters.open_source(inputs[0], planned.path)
                    if inputs
                    else checkpoints.Checkpoint.open(planned.path)
                )
                checkpoint = stack.enter_context(opened)
                if checkpoint.file_states != planned.state:
                    raise errors.IntegrityError(
                        f"{planned.path} is not the file that the merge was planned with: its "
                        "size or time is another. Restore it with its time, or plan again"
                    )
                inputs.append(checkpoint)
            labels = [source.label for source in self.sources]
            job = merging.plan(inputs[0], inputs[1:], self.recipe, labels)
            if alignment.digest(job.sources) != self.aligned:
                raise errors.MergeError(
                    f"the plan for {self.output} goes by other heads and names of the sources' "
                    f"tensors than their {library_configs.FILE} says now. Restore it, or plan again"
                )
            self._check_shards(job)
            yield dataclasses.replace(job, verify=self.verify)

    def _check_shards(self, job: backends.Job) -> None:
        """Raise `MergeError` for shards that are not those of this merge."""
        ours = [(shard.file, shard.tensors, shard.bytes_written) for shard in self.shards]
        theirs = [(s.name, tuple(sorted(s.offsets)), s.size) for s in self.layout(job)]
        cuts = len(self.sources) if job.recipe.unit == "model" else 0
        if ours != theirs or len(self.cuts) != cuts:
            raise errors.MergeError(
                f"the plan for {self.output} was changed: its shards or cuts are not those of its "
                "recipe and inputs. Make it again with `mlflow-breadcrumbs plan`"
            )

    def layout(self, job: backends.Job) -> list[writing.OutputShard]:
        """The output files, with their headers."""
        infos = merging.output_infos(job)
        return writing.layout(os.path.basename(self.output), infos, self.max_shard_size)

    def part(self, job: backends.Job, number: int) -> backends.Job:
        """The part of the whole merge that makes one shard.

        Args:
            job: what `opened` gave.
            number: of the shard, from 1.
        """
        own = set(self.shards[number - 1].tensors)
        return dataclasses.replace(
            job,
            merged=[name for name in job.merged if name in own],
            copied=[name for name in job.copied if name in own],
        )


_ADAPTER = pydantic.TypeAdapter(ShardPlan)


def make(
    base: checkpoints.Checkpoint,
    sources: Sequence[checkpoints.Checkpoint],
    settings: recipe.MergeRecipe,
    output: str | Path,
    *,
    labels: Sequence[str] | None = None,
    expected: Sequence[str | None] | None = None,
    verify: bool = True,
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO,
    max_shard_size: int | None = None,
    threads: int | None = None,
    ended_by: str | None = None,
) -> ShardPlan:
    """Plan a merge; nothing is read but headers, and the sources where the unit is `model`.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        sources: in the order that the sum takes.
        settings: the recipe.
        output: a path ending in `.safetensors`.
        labels: how messages name each source; the files' paths when not given.
        expected: the weights digest that the base and then each source must have, `None` where
            any will do; implies `verify`.
        verify: compute the weights digests of the inputs from the bytes that are merged.
        max_norm_ratio: as for `merging.merge`.
        max_shard_size: bytes of tensor data per output file at most; `None` plans one file.
        threads: that count; all processors when `None`.
        ended_by: the command that ends the merge, where it is not `finish`.

    Raises:
        RecipeError: the recipe has another number of weights than there are sources.
        MergeError: the checkpoints don't fit together, or can't be merged shard by shard.
    """
    merging.check_norm_ratio(max_norm_ratio)
    return of(
        merging.plan(base, sources, settings, labels),
        output,
        expected=expected,
        verify=verify,
        max_norm_ratio=max_norm_ratio,
        max_shard_size=max_shard_size,
        threads=threads,
        ended_by=ended_by,
    )


def of(
    job: backends.Job,
    output: str | Path,
    *,
    expected: Sequence[str | None] | None = None,
    verify: bool = True,
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO,
    max_shard_size: int | None = None,
    threads: int | None = None,
    ended_by: str | None = None,
) -> ShardPlan:
    """The plan of a merge that has been checked; see `make`."""
    merging.check_norm_ratio(max_norm_ratio)
    if not divisible(job.base, job.recipe):
        raise errors.MergeError(
            "the unit 'model' of a float64 base can't be merged shard by shard: its masks are "
            "found and applied in one go. Use merge-files, or the unit tensor"
        )
    writing.check_suffix(Path(output))
    infos = merging.output_infos(job)
    shards = writing.layout(Path(output).name, infos, max_shard_size)
    _check_apart(job, output, shards)
    digests = expected if expected is not None else [None] * len(job.inputs)
    planned = [
        PlannedInput(label, _whole(checkpoint), checkpoint.file_states, digest)
        for label, checkpoint, digest in zip(
            ("the base", *job.labels), job.inputs, digests, strict=True
        )
    ]
    return ShardPlan(
        fields=job.recipe.to_dict(),
        base=planned[0],
        sources=tuple(planned[1:]),
        output=str(output) if stores.is_address(output) else os.path.abspath(output),
        max_shard_size=max_shard_size,
        shards=tuple(
            PlannedShard(
                file=shard.name,
                tensors=tuple(sorted(shard.offsets)),
                bytes_read=sum(
                    checkpoint.info(name).nbytes
                    for checkpoint in job.inputs
                    for name in shard.offsets
                ),
                bytes_written=shard.size,
            )
            for shard in shards
        ),
        verify=verify or expected is not None,
        max_norm_ratio=None if max_norm_ratio == math.inf else max_norm_ratio,
        ended_by=ended_by,
        aligned=alignment.digest(job.sources),
        cuts=tuple(_cuts(job, threads or processes.processors())),
    )


def divisible(
    base: checkpoints.Checkpoint,
    settings: recipe.MergeRecipe,
    backend: backends.Backend | None = None,
) -> bool:
    """Whether a merge can be done shard by shard.

    The masks of the unit `model` are found ahead by the CPU backend alone, and not for float64.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        settings: the recipe.
        backend: that is to compute it; any when not given.
    """
    if settings.unit != "model":
        return True
    wide = any(base.info(name).dtype == torch.float64 for name in base.names)
    return not wide and (backend is None or backend.name == "cpu")


def read(path: str | Path) -> ShardPlan:
    """The plan in a file.

    Raises:
        MergeError: it can't be read, or is no plan.
    """
    return parse(_content(path), str(path))


def parse(content: Any, origin: str) -> ShardPlan:
    """The plan in a JSON value.

    Args:
        content: what JSON holds.
        origin: how messages name it.

    Raises:
        MergeError: it is no plan, or one of a later release.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise errors.MergeError(
            f"{origin} is no plan of a merge that this release reads (format {FORMAT}); "
            "make it with `mlflow-breadcrumbs plan`"
        )
    try:
        plan = _ADAPTER.validate_python(content)
        merging.check_norm_ratio(plan.max_norm_ratio)
        writing.check_suffix(Path(plan.output))
        if not os.path.isabs(plan.output) and not stores.is_address(plan.output):
            raise errors.MergeError(
                f"{origin} is a damaged plan: its output {plan.output!r} is no path from the root. "
                "Make it again"
            )
        return plan
    except pydantic.ValidationError as error:
        raise errors.MergeError(
            f"{origin} is a damaged plan: {first_fault(error)}. Make it again"
        ) from error


def first_fault(error: pydantic.ValidationError) -> str:
    """Where a plan or a note is damaged, and how; nobody writes these files by hand."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}"


def _content(path: str | Path) -> Any:
    """What is in a JSON file, on a disk or in a store."""
    origin = f"the plan {path}"
    if stores.is_address(path):
        folder, name = posixpath.split(str(path))
        content = stores.small(stores.ObjectFolder(folder), name)
        return json_documents.parse(content, origin, errors.MergeError)
    return json_documents.read(path, origin, errors.MergeError)


def _is_taken(path: str | Path) -> bool:
    """Whether there is a file that is no plan, of whatever release."""
    if stores.is_address(path):
        folder, name = posixpath.split(str(path))
        if stores.ObjectFolder(folder).size(name) is None:
            return False
    elif not Path(path).exists():
        return False
    try:
        content = _content(path)
    except (errors.MergeError, errors.CheckpointError):
        return True
    return not (isinstance(content, dict) and str(content.get("format")).startswith(FORMAT[:-1]))


def _check_apart(
    job: backends.Job, output: str | Path, shards: Sequence[writing.OutputShard]
) -> None:
    """Raise `CheckpointError` for an output of which a file may be an input's."""
    if not stores.is_address(output):
        writing.check_apart(job.inputs, Path(output), shards)
        return
    folder = posixpath.dirname(stores.normal(output))
    for checkpoint in job.inputs:
        place = posixpath.dirname(stores.normal(checkpoint.location))
        if stores.is_address(checkpoint.location) and place == folder:
            raise errors.CheckpointError(
                f"the output {output} would lie beside the input {checkpoint.location}, whose "
                "files it may replace; write to another folder"
            )


def _whole(checkpoint: checkpoints.Checkpoint) -> str:
    """Where a checkpoint is, for workers that may run in other folders."""
    location = checkpoint.location
    return location if stores.is_address(location) else os.path.abspath(location)


def _cuts(job: backends.Job, threads: int) -> masking.ModelCuts:
    """The cuts of the unit `model`; none for other units."""
    if job.recipe.unit != "model":
        return ()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        point = (job.recipe.density, job.recipe.gamma)
        return masking.model_cuts(job, [point], pool, reading.by_thread())[0]
