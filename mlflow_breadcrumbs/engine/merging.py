"""One merged checkpoint from a base and its fine-tuned sources: check, compute, write.

`merge` streams: it reads tensor by tensor, hands each to a backend, and writes the result at once.
What it is made of (`plan`, `compute`, the checks, `MergeResult.of`) also serves merges that are
done shard by shard, see `shards`.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import (
    alignment,
    backends,
    checkpoints,
    deciding,
    drafts,
    layer_groups,
    lowering,
    patterns,
    recipe,
    rounding,
    running,
    tolerance,
    unnamed_classes,
    writing,
)
from mlflow_breadcrumbs.engine.backends import choosing, copying
from mlflow_breadcrumbs.engine.remote import ahead
from mlflow_breadcrumbs.support import defaults, processes, progress

MERGEABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of tensors that can be merged; integers and bools stay the base's."""


@dataclasses.dataclass(frozen=True)
class MergeResult:
    """What a merge wrote."""

    output: Path | str
    """The merged checkpoint: a `.safetensors` file, or the index of its shards; or its address."""
    weights_digest: str
    recipe: recipe.MergeRecipe
    merged_tensors: int
    """Tensors that were merged; the others are the base's."""
    parameters: int
    """Elements of the merged tensors."""
    statistics: tuple[backends.MaskStatistics, ...]
    seconds: float
    backend: str
    touched: tuple[float, ...] = ()
    """[sources + 1] share of the merged parameters that 0, 1, … sources changed: those whose
    contribution, after mask and consensus, is not zero. Sums to 1."""
    bytes_read: int = 0
    """Of the base and the sources together."""
    base_digest: str | None = None
    """The base's weights digest, when the inputs were verified."""
    source_digests: tuple[str, ...] | None = None
    """The sources' weights digests, when the inputs were verified."""
    tolerances: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """By output dtype, how far decomposed matrices may be off when this is done again; see
    `tolerance`. Empty where the bits are fixed."""
    running: tuple[str, ...] = ()
    """Running statistics and counters, which are the base's; see `running`."""
    choice: drafts.Choice | None = None
    """What was left open and found from the weights before the merge."""
    noises: tuple[rounding.Noise, ...] = ()
    """What rounding did to the sources that are stored in fewer bits than the base."""
    idle: tuple[str, ...] = ()
    """Of each pattern of the recipe that matches no tensor, a sentence without its full stop."""
    unnamed: tuple[str, ...] = ()
    """Tensors of heads that were merged though their classes have no names."""
    alignments: Mapping[str, alignment.Alignment] = dataclasses.field(default_factory=dict)
    """By label, what was decided of the tensors of the sources that are not quite as the base."""
    adapter: lowering.LoweredChange | None = None
    """What was written in place of the whole checkpoint; the digest is that of the model which the
    base makes with it."""

    @classmethod
    def of(
        cls,
        job: backends.Job,
        outcome: backends.Outcome,
        *,
        output: Path | str,
        weights_digest: str,
        digests: Sequence[str],
        **known: Any,
    ) -> "MergeResult":
        """What a merge that has been computed and written comes to.

        Args:
            job: the merge.
            outcome: of all its tensors.
            output: the path to open.
            weights_digest: of what was written.
            digests: the weights digests of the base and the sources; empty if not verified.
            known: other fields of the result.
        """
        parameters = sum(job.base.info(name).numel for name in job.merged)
        return cls(
            output=output,
            weights_digest=weights_digest,
            recipe=job.recipe,
            merged_tensors=len(job.merged),
            parameters=parameters,
            statistics=tuple(outcome.statistics),
            touched=tuple(count / max(parameters, 1) for count in outcome.touched),
            base_digest=digests[0] if digests else None,
            source_digests=tuple(digests[1:]) if digests else None,
            tolerances=tolerance.tolerances(job),
            running=tuple(job.running),
            **(seen(job) | known),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the merge, sentences without their full stop."""
        found = [running.note(self.running)] if self.running else []
        found += self.idle
        found += [unnamed_classes.note(self.unnamed)] if self.unnamed else []
        for label, aligned in self.alignments.items():
            found += aligned.notes(label)
        found += [said for noise in self.noises if (said := noise.note())]
        return (*found, *(self.adapter.notes if self.adapter else ()))

    def source_rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """What the masks did to each source, all tensors together; one row per label.

        `norm` is the Euclidean norm of the task vector, `kept` the fraction of its elements and
        `energy_kept` the fraction of Σ τ² that the mask kept (0 for a source equal to the base).
        """
        rows = []
        for number, label in enumerate(labels):
            own = [entry for entry in self.statistics if entry.source == number]
            energy = sum(entry.energy for entry in own)
            kept = sum(entry.energy_kept for entry in own)
            rows.append(
                {
                    "source": label,
                    "norm": math.sqrt(energy),
                    "kept": sum(entry.kept for entry in own)
                    / max(1, sum(entry.elements for entry in own)),
                    "energy_kept": kept / energy if energy else 0.0,
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The result for `--json`, without the statistics per tensor."""
        inputs = {"base_digest": self.base_digest, "source_digests": self.source_digests}
        return {
            "output": str(self.output),
            "weights_digest": self.weights_digest,
            "recipe_digest": self.recipe.digest,
            "recipe": self.recipe.to_dict(),
            **({"choice": self.choice.to_dict()} if self.choice else {}),
            "merged_tensors": self.merged_tensors,
            "parameters": self.parameters,
            "seconds": round(self.seconds, 3),
            "backend": self.backend,
            **({"tolerance": dict(self.tolerances)} if self.tolerances else {}),
            **({"alignment": said_of(self.alignments)} if self.alignments else {}),
            **({"adapter": self.adapter.to_dict()} if self.adapter else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
            **{key: value for key, value in inputs.items() if value is not None},
        }


def check_norm_ratio(ratio: float | None) -> None:
    """Raise `MergeError` for a limit that no source could keep; 0 is one, `None` is no limit."""
    if ratio is not None and not ratio > 0:
        raise errors.MergeError(
            f"max_norm_ratio is {ratio}; it must be above 0 (inf takes any source)"
        )


def merge(
    base: checkpoints.Checkpoint,
    sources: Sequence[checkpoints.Checkpoint],
    settings: recipe.MergeRecipe,
    output: str | Path,
    *,
    labels: Sequence[str] | None = None,
    backend: backends.Backend | None = None,
    verify: bool = False,
    expected: Sequence[str | None] | None = None,
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO,
    max_shard_size: int | None = None,
    overwrite: bool = False,
    keep_running: bool = True,
    show: progress.Progress = progress.silent,
) -> MergeResult:
    """Merge `sources` into `base` by the recipe and write the result to `output`.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        sources: in the order that the sum takes.
        settings: the recipe.
        output: a path ending in `.safetensors`; it appears whole or not at all.
        labels: how messages name each source; the files' paths when not given.
        backend: computes the merge; `choosing.choose()` when not given.
        verify: compute the weights digests of the inputs from the same bytes.
        expected: the weights digest that the base and then each source must have, `None` where
            any will do; implies `verify`.
        max_norm_ratio: refuse a source whose ‖τ‖ is more than so many times ‖θ‖, both over the
            merged tensors; `None` takes any.
        max_shard_size: bytes of tensor data per output file at most; `None` writes one file.
        overwrite: replace an output that exists.
        keep_running: see `plan`.
        show: is told the bytes read.

    Raises:
        RecipeError: the recipe has another number of weights than there are sources.
        MergeError: the checkpoints don't fit together, or a value is not finite.
        IntegrityError: an input's digest is not the expected one, or an input was written to
            meanwhile; no output appears.
        CheckpointError: the output can't be written.
    """
    started = time.perf_counter()
    check_norm_ratio(max_norm_ratio)
    backend = backend or choosing.choose()
    job = plan(base, sources, settings, labels, keep_running=keep_running)
    job = dataclasses.replace(job, verify=verify or expected is not None)
    infos = output_infos(job)
    shards = writing.layout(Path(output).name, infos, max_shard_size)
    writing.check_apart(job.inputs, Path(output), shards)
    with writing.CheckpointWriter(
        output, infos, max_shard_size=max_shard_size, overwrite=overwrite
    ) as writer:
        with show("merge", total=job.nbytes, unit="bytes") as advance:
            outcome = compute(job, writer, backend, advance)
        digests = input_digests(job, outcome.hexdigests)
        if expected is not None:
            check_digests(job, digests, expected)
        check_norms(job, outcome, max_norm_ratio)
        for checkpoint in job.inputs:
            checkpoint.check_unchanged()
        digest = writer.weights_digest
    return MergeResult.of(
        job,
        outcome,
        output=writer.output,
        weights_digest=digest,
        digests=digests,
        seconds=time.perf_counter() - started,
        backend=backend.name,
        bytes_read=job.nbytes,
        noises=noises(job, outcome),
    )


def compute(
    job: backends.Job, writer: writing.Writer, backend: backends.Backend, advance: progress.Advance
) -> backends.Outcome:
    """Write the tensors of a job, and say what was found on the way.

    Args:
        job: what `plan` gave, or a part of it.
        writer: takes all tensors of the job.
        backend: computes those that are merged.
        advance: is told the bytes read.

    Returns:
        What the backend found; its digests are those of all tensors of the job.

    Raises:
        MergeError: a value is not finite, or a source has another integer tensor.
    """
    with ahead.reading(job, writer) as taking:
        copied = copying.copy_unmerged(job, taking, advance, processes.processors())
        if job.merged:
            outcome = backend.run(job, taking, advance)
        else:
            outcome = backends.Outcome([], [0] * len(job.inputs), [], [{} for _ in job.inputs])
    hexdigests = [some | own for some, own in zip(copied, outcome.hexdigests, strict=True)]
    return dataclasses.replace(outcome, hexdigests=hexdigests)


def noises(job: backends.Job, outcome: backends.Outcome) -> tuple[rounding.Noise, ...]:
    """What rounding did to the sources of a merge."""
    return rounding.of_sources(
        job,
        dict(zip(job.merged, outcome.base_energies, strict=True)),
        ((entry.source, entry.energy) for entry in outcome.statistics),
    )


def merge_into(
    writer: writing.Writer,
    job: backends.Job,
    *,
    backend: backends.Backend,
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO,
) -> None:
    """Compute a planned merge into a writer, the inputs taken for what they are.

    Args:
        writer: made for `output_infos(job)`.
        job: what `plan` gave.
        backend: computes the merge.
        max_norm_ratio: as for `merge`.

    Raises:
        MergeError: a value is not finite, or a source is too far from the base.
    """
    outcome = compute(job, writer, backend, progress.unheard)
    check_norms(job, outcome, max_norm_ratio)


def output_infos(job: backends.Job) -> dict[str, checkpoints.TensorInfo]:
    """The tensors that a merge writes, with dtype and shape."""
    return {
        name: checkpoints.TensorInfo(job.dtypes.get(name, info.dtype), info.shape)
        for name in sorted((*job.merged, *job.copied))
        for info in [job.base.info(name)]
    }


def plan(
    base: checkpoints.Checkpoint,
    sources: Sequence[checkpoints.Checkpoint],
    settings: recipe.MergeRecipe,
    labels: Sequence[str] | None = None,
    *,
    keep_running: bool = True,
    apart: frozenset[str] = frozenset(),
) -> backends.Job:
    """Hold the checkpoints against each other and the recipe; nothing is read but headers.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        sources: in the order that the sum takes; in the job they are aligned, see `alignment`.
        settings: the recipe.
        labels: how messages name each source; the files' paths when not given.
        keep_running: running statistics and counters are the base's, see `running`. Only a merge
            by a release that summed them is done again without.
        apart: tensors that further sources, which are not merged now, keep for themselves.

    Raises:
        RecipeError: the recipe has another number of weights than there are sources.
        MergeError: no sources, or their tensors are not the base's; lists some of each kind of
            difference, and their cause where it is known.
    """
    if not sources:
        raise errors.MergeError("there are no sources; a merge needs at least one (--source)")
    weights = settings.weight_of(len(sources))
    labels = list(labels) if labels is not None else [source.location for source in sources]
    aligned, apart = deciding.align(base, sources, settings, labels, apart)
    job = dataclasses.replace(
        outline(base, settings, keep_running=keep_running, apart=apart),
        sources=aligned,
        labels=labels,
        weights=weights,
    )
    for name in job.merged:
        for label, checkpoint in zip(["the base", *labels], job.inputs, strict=True):
            if checkpoint.info(name).dtype not in MERGEABLE:
                raise errors.MergeError(
                    f"{label} has the tensor {name!r} as {_short(checkpoint.info(name).dtype)}, "
                    "which can't be merged; convert it to bfloat16 or float32, or exclude it"
                )
    return job


def alignments(job: backends.Job) -> dict[str, alignment.Alignment]:
    """By label, what was decided of the sources that are not read as they are."""
    found = zip(job.labels, map(alignment.of, job.sources), strict=False)
    return {label: aligned for label, aligned in found if aligned is not None}


def seen(job: backends.Job) -> dict[str, Any]:
    """What headers and configurations tell of a merge, as fields of its result."""
    return {
        "alignments": alignments(job),
        "idle": patterns.notes(job.base, job.sources, job.recipe),
        "unnamed": unnamed_classes.merged(job.sources, job.merged, total=len(job.sources)),
    }


def said_of(found: Mapping[str, alignment.Alignment]) -> dict[str, dict[str, Any]]:
    """The same for `--json`."""
    return {label: aligned.to_dict() for label, aligned in found.items()}


def outline(
    base: checkpoints.Checkpoint,
    settings: recipe.MergeRecipe,
    *,
    keep_running: bool = True,
    apart: frozenset[str] = frozenset(),
) -> backends.Job:
    """A job without sources yet: which tensors of a base are merged, and into which dtypes.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        settings: the recipe.
        keep_running: see `plan`.
        apart: tensors that some source keeps for itself.

    Raises:
        MergeError: the recipe chooses no tensor.
    """
    unsummed = frozenset(running.kept(base, settings) if keep_running else ())
    merged = [
        name
        for name in base.names
        if settings.merges(name)
        and base.info(name).dtype.is_floating_point
        and name not in unsummed
        and name not in apart
    ]
    if not merged:
        raise errors.MergeError(
            f"no floating-point tensor of the base matches include {list(settings.include)} "
            f"without exclude {list(settings.exclude)}; widen the patterns"
        )
    return backends.Job(
        base=base,
        sources=(),
        labels=(),
        weights=(),
        recipe=settings,
        merged=merged,
        copied=sorted(set(base.names) - set(merged)),
        running=sorted(unsummed),
        depths=layer_groups.depths(base.names) if settings.depth else {},
        dtypes={
            name: base.info(name).dtype
            if settings.dtype == "base"
            else getattr(torch, settings.dtype)
            for name in merged
        },
    )


def input_digests(job: backends.Job, hexdigests: Sequence[Mapping[str, str]]) -> list[str]:
    """The weights digests of the base and the sources; empty when they were not verified.

    Args:
        job: the merge.
        hexdigests: per input, base first: the SHA-256 of every tensor.
    """
    return [
        checkpoint.digest_of(found)
        for checkpoint, found in zip(job.inputs, hexdigests, strict=True)
        if job.verify
    ]


def check_digests(
    job: backends.Job, digests: Sequence[str], expected: Sequence[str | None]
) -> None:
    """Hold the inputs' weights digests against those that were expected."""
    for label, found, recorded in zip(("the base", *job.labels), digests, expected, strict=True):
        if recorded is not None and recorded != found:
            raise errors.IntegrityError(
                f"the weights of {label} have the digest {found}, but {recorded} was expected: "
                "they were changed. Nothing was written; restore them, or register them anew"
            )


def check_norms(job: backends.Job, outcome: backends.Outcome, limit: float | None) -> None:
    """Refuse a source that is too far from the base."""
    base = math.sqrt(outcome.base_energy)
    for position, label in enumerate(job.labels):
        own = [entry.energy for entry in outcome.statistics if entry.source == position]
        norm = math.sqrt(sum(own))
        if limit is not None and norm > limit * base:
            raise errors.MergeError(
                f"{label} is farther from the base than fine-tuning goes: its task vector has the "
                f"norm {norm:.4g}, the base {base:.4g}, and the limit is {limit:g} times that. "
                "Give the base that it comes from, leave it out, or raise the limit "
                "(--max-norm-ratio)"
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
