"""What a worker says of a shard that it has done, as a JSON file beside it."""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence

import pydantic

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import backends, checkpoints
from mlflow_breadcrumbs.engine.shards.plans import ShardPlan, first_fault
from mlflow_breadcrumbs.support import canonical, json_documents

SUFFIX = ".json"
FINISHING = "finishing"
"""A file in the folder from the moment on at which files are moved into place."""


@dataclasses.dataclass(frozen=True)
class ShardNote:
    """What was found while a shard was computed."""

    plan: str
    """The plan's digest."""
    shard: int
    """From 1."""
    file: str
    """In the plan's folder; named after its content, so that a note always fits its file."""
    nbytes: int
    backend: str
    seconds: float
    hexdigests: dict[str, str]
    """The SHA-256 of each tensor that was written."""
    inputs: tuple[dict[str, str], ...]
    """Per input, base first: the SHA-256 of each tensor that was read; empty if not verified."""
    statistics: tuple[backends.MaskStatistics, ...]
    touched: tuple[int, ...]
    """[sources + 1]; see `backends.Outcome`."""
    base_energies: tuple[float, ...]
    """Of the merged tensors, by name."""

    def save(self, plan: ShardPlan) -> None:
        """Write the note, whole or not at all.

        Raises:
            CheckpointError: the folder can't be written to.
        """
        content = canonical.dumps(_ADAPTER.dump_python(self, mode="json"))
        plan.staging.write(name(plan, self.shard), content)


_ADAPTER = pydantic.TypeAdapter(ShardNote)


def name(plan: ShardPlan, number: int) -> str:
    """What the note of a shard is called, in the plan's folder."""
    return f"{plan.shards[number - 1].file}{SUFFIX}"


def find(plan: ShardPlan) -> dict[int, ShardNote]:
    """The notes that there are, by the shard's number; one whose file is gone counts for nothing.

    Raises:
        MergeError: a note is damaged, or speaks of another merge.
    """
    found = {}
    moved = is_finishing(plan)
    for number in range(1, len(plan.shards) + 1):
        content = plan.staging.read(name(plan, number))
        if content is None:
            continue
        file = plan.staging.file(name(plan, number))
        note = _parse(content, file)
        _check(plan, note, file)
        if plan.staging.size(note.file) == note.nbytes or (moved and is_in_place(plan, note)):
            found[number] = note
    return found


def missing(plan: ShardPlan, found: Collection[int]) -> list[int]:
    """The numbers of the shards that have no note among those found."""
    return [number for number in range(1, len(plan.shards) + 1) if number not in found]


def begin_finishing(plan: ShardPlan) -> None:
    """Remember that files are being moved into place; raises `CheckpointError`."""
    plan.staging.write(FINISHING, b"")


def is_finishing(plan: ShardPlan) -> bool:
    """Whether files are being moved into place, or were when that was stopped."""
    return plan.staging.size(FINISHING) is not None


def clear(plan: ShardPlan) -> None:
    """Remove the plan's folder, and all that is in it."""
    plan.staging.clear()


def is_in_place(plan: ShardPlan, note: ShardNote) -> bool:
    """Whether the shard is where it belongs, bit by bit: the file is read."""
    return is_sound(plan.staging.final(plan.shards[note.shard - 1].file), note)


def is_whole(plan: ShardPlan, note: ShardNote) -> bool:
    """Whether a shard that `find` found is what was written, bit by bit: the file is read."""
    if plan.staging.size(note.file) is None:  # it is in place, and `find` has read it
        return True
    return is_sound(plan.staging.file(note.file), note)


def is_sound(file: str, note: ShardNote) -> bool:
    """Whether a file has the tensors that a note says; it is read."""
    try:
        with checkpoints.Checkpoint.open(file) as opened:
            infos = [
                (name, opened.info(name), note.hexdigests.get(name, "")) for name in opened.names
            ]
            (state,) = opened.file_states
            if state.nbytes != note.nbytes:
                return False
            return checkpoints.weights_digest(opened) == checkpoints.combine_digests(infos)
    except errors.CheckpointError:
        return False


def _parse(content: bytes, file: str) -> ShardNote:
    try:
        return _ADAPTER.validate_python(json_documents.parse(content, file, errors.MergeError))
    except pydantic.ValidationError as error:
        raise _damaged(file, first_fault(error)) from error


def _damaged(file: str, fault: str) -> errors.MergeError:
    return errors.MergeError(
        f"{file} is a damaged note of a shard: {fault}. Remove it, and the shard is done again"
    )


def _check(plan: ShardPlan, note: ShardNote, file: str) -> None:
    """Raise `MergeError` for a note that is not of its shard, or lacks something."""
    if note.plan != plan.digest or not 1 <= note.shard <= len(plan.shards):
        raise errors.MergeError(
            f"{file} is not of this merge; remove the folder {plan.staging} and begin again"
        )
    tensors = set(plan.shards[note.shard - 1].tensors)
    inputs = len(plan.sources) + 1
    whole = (
        set(note.hexdigests) == tensors
        and len(note.inputs) == inputs == len(note.touched)
        and all(set(found) == (tensors if plan.verify else set()) for found in note.inputs)
        and {entry.tensor for entry in note.statistics} <= tensors
        and len(note.statistics) == len(note.base_energies) * len(plan.sources)
        and note.file == os.path.basename(note.file)
    )
    if not whole:
        raise _damaged(file, "it lacks tensors, inputs or statistics of its shard")


def outcome(job: backends.Job, found: Sequence[ShardNote]) -> backends.Outcome:
    """What all shards together say, in the order of the whole merge.

    Args:
        job: the whole merge.
        found: a note per shard.
    """
    order = {name: number for number, name in enumerate(job.merged)}
    statistics = [entry for note in found for entry in note.statistics]
    energies: dict[str, float] = {}
    for note in found:
        merged = sorted(name for name in note.hexdigests if name in order)
        energies |= dict(zip(merged, note.base_energies, strict=True))
    hexdigests: list[dict[str, str]] = [{} for _ in job.inputs]
    for note in found:
        for whole, own in zip(hexdigests, note.inputs, strict=True):
            whole.update(own)
    return backends.Outcome(
        statistics=sorted(statistics, key=lambda entry: (order[entry.tensor], entry.source)),
        touched=[sum(counts) for counts in zip(*(note.touched for note in found), strict=True)],
        base_energies=[energies[name] for name in job.merged],
        hexdigests=hexdigests,
    )


def written(found: Sequence[ShardNote]) -> Mapping[str, str]:
    """The SHA-256 of every tensor of the output."""
    return {name: content for note in found for name, content in note.hexdigests.items()}
