"""A merge from parts: the base is read, each source only where it has no part yet.

Sources without a part are read for theirs first; then all parts are added up, run by run and in
source order, by the arithmetic of the definition. So the weights are those of `merging.merge` on
the whole sources, bit by bit; matrices that are decomposed get the very numbers that they would get
there.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import (
    backends,
    checkpoints,
    extracting,
    merging,
    parts,
    recipe,
    rounding,
    unnamed_classes,
    writing,
)
from mlflow_breadcrumbs.engine.backends import (
    arithmetic,
    copying,
    giving_up,
    matrices,
    reference,
    symmetric,
)
from mlflow_breadcrumbs.support import defaults, progress

NAME = "parts"
"""What computed such a merge, where others name a backend."""


@dataclasses.dataclass(frozen=True)
class JoinedMerge:
    """What a merge from parts wrote."""

    result: merging.MergeResult
    index: parts.PartsIndex
    """The parts of all sources, in their order."""
    files: tuple[Path, ...]
    """Those of the index, where they are."""
    bytes_without: int
    """What reading all sources whole would have cost, the base included."""


def merge(
    base: checkpoints.Checkpoint,
    sources: Sequence[checkpoints.Checkpoint | parts.OpenedPart],
    settings: recipe.MergeRecipe,
    output: str | Path,
    folder: Path,
    *,
    labels: Sequence[str],
    expected: Sequence[str | None],
    threads: int,
    worthwhile: bool = False,
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO,
    show: progress.Progress = progress.silent,
) -> JoinedMerge:
    """Merge sources into a base, each source from its part where it has one.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        sources: whole or as parts, in the order of the sum.
        settings: the recipe; one that `parts.check_recipe` takes.
        output: a path ending in `.safetensors`; it appears whole or not at all.
        folder: the parts that are made go there.
        labels: how messages name each source.
        expected: the weights digest that the base and then each source must have, `None` where
            any will do.
        threads: at least 1.
        worthwhile: refuse sources whose parts may be as large as they are.
        max_norm_ratio: as for `merging.merge`.
        show: is told the bytes read.

    Raises:
        RecipeError: the recipe has another number of weights than there are sources.
        MergeError: the checkpoints don't fit together, a value is not finite, or parts are of no
            use here.
        IntegrityError: a digest is not the expected one, a part is damaged, or an input was written
            to meanwhile; no output appears.
        CheckpointError: the output or a part can't be written.
    """
    started = time.perf_counter()
    merging.check_norm_ratio(max_norm_ratio)
    weights = settings.weight_of(len(sources))
    fresh = _plan_fresh(base, sources, settings, labels)
    if worthwhile:
        parts.check_size(fresh)
    job = dataclasses.replace(fresh, sources=(), labels=labels, weights=weights, recipe=settings)
    with (
        contextlib.ExitStack() as stack,
        writing.CheckpointWriter(output, merging.output_infos(job)) as writer,
    ):
        volume = sum(source.nbytes for source in fresh.inputs)
        volume += sum(s.known.nbytes for s in sources if isinstance(s, parts.OpenedPart))
        with show("merge", total=volume, unit="bytes") as told:
            advance = _Counter(told)
            copied = copying.copy_unmerged(fresh, writer, advance, threads)
            extracted = extracting.extract(fresh, folder, threads=threads, advance=advance)
            made = [
                _part(fresh, number, found, copied[number + 1])
                for number, found in enumerate(extracted)
            ]
            opened = _in_order(sources, made, folder, stack)
            outcome = _Joining(job, opened, writer, advance).outcome(threads)
        digests = [
            *merging.input_digests(job, [copied[0] | outcome.hexdigests[0]]),
            *(part.known.source for part in opened),
        ]
        merging.check_digests(job, digests, expected)
        merging.check_norms(job, outcome, max_norm_ratio)
        for checkpoint in fresh.inputs:
            checkpoint.check_unchanged()
        for part in opened:
            part.check_unchanged()
        digest = writer.weights_digest
    noises = _noises(fresh, made, outcome)
    known = tuple(
        dataclasses.replace(part.known, noise=noises.get(part.known.source, part.known.noise))
        for part in opened
    )
    result = merging.MergeResult.of(
        job,
        outcome,
        output=writer.output,
        weights_digest=digest,
        digests=digests,
        seconds=time.perf_counter() - started,
        backend=NAME,
        bytes_read=volume,
        alignments=merging.alignments(fresh),
        unnamed=unnamed_classes.merged(fresh.sources, job.merged, total=len(labels)),
        noises=tuple(
            dataclasses.replace(part.noise, label=label)
            for part, label in zip(known, labels, strict=True)
            if part.noise is not None
        ),
    )
    return JoinedMerge(
        result=result,
        index=parts.PartsIndex(
            digests[0], parts.mask_fields(settings), parts.tensor_table(job), known
        ),
        files=tuple(
            dict.fromkeys(part.folder / file.name for part in opened for file in part.known.files)
        ),
        bytes_without=base.nbytes + sum(part.source_bytes for part in known),
    )


def _plan_fresh(
    base: checkpoints.Checkpoint,
    sources: Sequence[checkpoints.Checkpoint | parts.OpenedPart],
    settings: recipe.MergeRecipe,
    labels: Sequence[str],
) -> backends.Job:
    """The merge of those sources alone that have no part yet, each with the weight 1."""
    settings = dataclasses.replace(settings, weights=())
    whole = [
        (source, label)
        for source, label in zip(sources, labels, strict=True)
        if isinstance(source, checkpoints.Checkpoint)
    ]
    if not whole:
        return dataclasses.replace(merging.outline(base, settings), verify=True)
    job = merging.plan(base, [source for source, _ in whole], settings, [name for _, name in whole])
    return dataclasses.replace(job, verify=True)


def _part(
    job: backends.Job, number: int, found: extracting.Extracted, copied: dict[str, str]
) -> parts.SourcePart:
    """What is known of a source that was just read."""
    source = job.sources[number]
    statistics, files, hexdigests = found
    dtypes = {source.info(name).dtype for name in source.names}
    return parts.SourcePart(
        source=source.digest_of(copied | hexdigests),
        dtypes=tuple(
            sorted(checkpoints.DTYPE_NAMES[dtype] for dtype in dtypes if dtype.is_floating_point)
        ),
        source_bytes=source.nbytes,
        statistics=tuple(dataclasses.replace(entry, source=0) for entry in statistics),
        files=files,
    )


def _in_order(
    sources: Sequence[checkpoints.Checkpoint | parts.OpenedPart],
    made: Sequence[parts.SourcePart],
    folder: Path,
    stack: contextlib.ExitStack,
) -> list[parts.OpenedPart]:
    """The parts of all sources: those that were there, and those just made, opened."""
    left, opened = iter(made), []
    for source in sources:
        if isinstance(source, checkpoints.Checkpoint):
            opened.append(parts.OpenedPart(next(left), folder))
            stack.callback(opened[-1].close)
        else:
            opened.append(source)
    return opened


def _noises(
    fresh: backends.Job, made: Sequence[parts.SourcePart], outcome: backends.Outcome
) -> dict[str, rounding.Noise]:
    """What rounding did to the sources that were read, by their digests; without a label."""
    found = rounding.of_sources(
        fresh,
        dict(zip(fresh.merged, outcome.base_energies, strict=True)),
        ((number, entry.energy) for number, part in enumerate(made) for entry in part.statistics),
    )
    by_label = {noise.label: noise for noise in found}
    return {
        part.source: dataclasses.replace(by_label[label], label="")
        for part, label in zip(made, fresh.labels, strict=True)
        if label in by_label
    }


class _Counter:
    """A `progress.Advance` that several threads may call."""

    def __init__(self, advance: progress.Advance) -> None:
        self._advance = advance
        self._lock = threading.Lock()

    def __call__(self, amount: float) -> None:
        with self._lock:
            self._advance(amount)


@dataclasses.dataclass(frozen=True)
class _Joining:
    """The sum of the parts under way.

    The job has the labels and weights of all sources, and none of these opened.
    """

    job: backends.Job
    opened: Sequence[parts.OpenedPart]
    writer: writing.Writer
    advance: progress.Advance

    def outcome(self, threads: int) -> backends.Outcome:
        """Merge every tensor.

        Raises:
            MergeError: that of the first tensor, by name, that can't be merged.
        """
        numbers = {name: number for number, name in enumerate(self.job.merged)}
        by_size = sorted(self.job.merged, key=lambda name: -self.job.base.info(name).numel)
        with (
            symmetric.one_thread(),
            concurrent.futures.ThreadPoolExecutor(
                threads, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool,
            giving_up(pool),
        ):
            futures = {name: pool.submit(self._tensor, numbers[name], name) for name in by_size}
            found = [futures[name].result() for name in self.job.merged]
        self.advance(sum(part.known.nbytes for part in self.opened))
        outcome = backends.Outcome.of([merged for merged, _ in found], [])
        hexdigests = dict(zip(self.job.merged, (content for _, content in found), strict=True))
        return dataclasses.replace(outcome, hexdigests=[hexdigests])

    def _tensor(self, number: int, name: str) -> tuple[backends.MergedTensor, str]:
        """Merge and write one tensor; what is known of it, and the SHA-256 of the base's."""
        job, info = self.job, self.job.base.info(name)
        base = job.base.tensor(name)
        arithmetic.check_finite(base, "the base", name)
        content = checkpoints.tensor_digest(base)
        if job.recipe.decomposes(info.shape):
            touched, squares = self._whole(number, name, base)
        else:
            touched, squares = self._runs(number, name, base)
        job.base.release(name)
        self.advance(info.nbytes)
        statistics = [
            dataclasses.replace(part.known.statistics[number], source=source)
            for source, part in enumerate(self.opened)
        ]
        return (statistics, touched, squares), content

    def _runs(self, number: int, name: str, base: torch.Tensor) -> tuple[list[int], float]:
        """Write a tensor run by run; how many sources changed its elements, and Σ θ²."""
        job, dtype, flat = self.job, self.job.dtypes[name], base.reshape(-1)
        working = arithmetic.working_dtype(base.dtype)
        scale, how = arithmetic.scale(job, name), arithmetic.combining(job, name)
        room = torch.empty((len(self.opened), min(parts.RUN, base.numel())), dtype=working)
        touched, squares = torch.zeros(len(self.opened) + 1, dtype=torch.int64), 0.0
        digest = hashlib.sha256()
        for start in range(0, base.numel(), parts.RUN):
            theta = flat[start : start + parts.RUN].to(working)
            found = list(self._contributions(number, start, room[:, : theta.numel()]))
            if job.recipe.aligns(base.shape):
                found = reference.agreeing(found)
            touched += _count(found)
            total = arithmetic.combine(found, job.weights, how)
            merged = (theta + scale * total).to(dtype)
            index = arithmetic.first_nonfinite(merged)
            if index is not None:
                raise arithmetic.overflow(name, start + index, dtype)
            raw = checkpoints.tensor_bytes(merged)
            self.writer.write_part(name, start * dtype.itemsize, raw)
            digest.update(raw)
            squares += reference.energy(theta)
        self.writer.announce(name, digest.hexdigest())
        return touched.tolist(), squares

    def _contributions(self, number: int, start: int, room: torch.Tensor) -> Iterator[torch.Tensor]:
        """w_t · (masked τ_t) of every source in a run; [sources, elements] of room."""
        for part, weight, own in zip(self.opened, self.job.weights, room, strict=True):
            yield part.run(number, start, own).mul_(arithmetic.float32(weight))

    def _whole(self, number: int, name: str, base: torch.Tensor) -> tuple[list[int], float]:
        """The same for a matrix that is decomposed."""
        job = self.job
        working = base.to(arithmetic.working_dtype(base.dtype))
        changes = torch.zeros(working.shape, dtype=torch.int16)

        def masked() -> Iterator[torch.Tensor]:
            found: Iterator[torch.Tensor] = self._matrices(number, working)
            if job.recipe.consensus == "mass":
                found = iter(reference.agreeing(list(found)))
            for contribution in found:
                changes.add_(contribution != 0)
                yield contribution

        given = matrices.Matrices(len(self.opened), masked, _no_whole)
        total = reference.decompose(job, name, given).to(working.dtype)
        merged = (working + arithmetic.scale(job, name) * total).to(job.dtypes[name])
        arithmetic.check_result(merged, name)
        self.writer.write(name, merged)
        counts = torch.bincount(changes.reshape(-1), minlength=len(self.opened) + 1)
        return counts.tolist(), reference.energy(working)

    def _matrices(self, number: int, base: torch.Tensor) -> Iterator[torch.Tensor]:
        """w_t · (masked τ_t) of every source, one matrix at a time."""
        for part, weight in zip(self.opened, self.job.weights, strict=True):
            flat = torch.empty(base.numel(), dtype=base.dtype)
            for start in range(0, flat.numel(), parts.RUN):
                part.run(number, start, flat[start : start + parts.RUN])
            yield flat.mul_(arithmetic.float32(weight)).reshape(base.shape)


def _count(contributions: Sequence[torch.Tensor]) -> torch.Tensor:
    """[sources + 1] elements that 0, 1, … contributions change."""
    count = torch.zeros(contributions[0].shape, dtype=torch.int64)
    for contribution in contributions:
        count += contribution != 0
    return torch.bincount(count, minlength=len(contributions) + 1)


def _no_whole() -> Iterator[torch.Tensor]:
    raise errors.MergeError("the recipe needs whole task vectors, which parts don't have")
