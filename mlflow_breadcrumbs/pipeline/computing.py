"""The engine's part of a merge: opened versions in, one file out, from whole sources or from parts.

Every byte that is read is held against its recorded digest, or gives the one that there was not.
"""

import contextlib
import dataclasses
import functools
from pathlib import Path

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import (
    adapters,
    backends,
    checkpoints,
    drafts,
    joining,
    merging,
    parts,
    recipe,
    settling,
)
from mlflow_breadcrumbs.engine.remote import stores
from mlflow_breadcrumbs.engine.shards import budgets, local, plans
from mlflow_breadcrumbs.flavor import foreign
from mlflow_breadcrumbs.pipeline import inputs, keeping, merge_request
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import executors, processes, progress

PLAN = "plan.json"
"""In the folder of a merge that workers do."""
ENDED_BY = "merge"
"""The command that ends such a merge; it registers what came out."""


@dataclasses.dataclass(frozen=True)
class Computed:
    """Merged weights, by either way."""

    result: merging.MergeResult
    joined: joining.JoinedMerge | None = None
    """Where they were merged from parts."""
    notes: tuple[str, ...] = ()
    """What was read and what is kept, as sentences without their full stop."""

    @property
    def digests(self) -> tuple[str, ...]:
        """The weights digests of the base and of each source, from the bytes that were merged."""
        assert self.result.base_digest is not None
        return (self.result.base_digest, *(self.result.source_digests or ()))

    def dtypes(self, digest: str) -> tuple[str, ...]:
        """The floating-point dtypes of a source that may not have been read; `()` if not known."""
        known = self.joined.index.parts if self.joined else ()
        return next((part.dtypes for part in known if part.source == digest), ())


def merge(
    taken: inputs.Inputs,
    held: keeping.HeldParts,
    settings: recipe.MergeRecipe,
    output: Path,
    *,
    backend: backends.Backend,
    keep: bool,
    threads: int | None,
    max_norm_ratio: float | None,
    max_shard_size: int | None = None,
    resumable: bool = False,
    executor: executors.Executor = executors.LOCAL,
    show: progress.Progress,
) -> Computed:
    """Merge, each source from its part where it has one.

    Args:
        taken: the base and the sources.
        held: the parts that there are.
        settings: the recipe.
        output: the merged checkpoint.
        backend: computes a merge without parts; one from parts is the processors' work.
        keep: parts are to be made, so they must be smaller than the sources.
        threads: of a merge from parts; all processors when `None`.
        max_norm_ratio: as for `merging.merge`.
        max_shard_size: bytes of tensors per file; `None` writes one file.
        resumable: what a call before this one did in the output's folder is taken up; who calls
            removes the folder.
        executor: does the shards.
        show: is told the bytes read.

    Raises:
        MergeError: see `merging.merge` and `joining.merge`.
        IntegrityError: a part is not the one that was written, or an input is not.
    """
    held = _parts_of(taken, held, keep=keep)
    with contextlib.ExitStack() as stack:

        def opened(version: versions.OpenedVersion) -> checkpoints.Checkpoint:
            # What goes on after a stop must read what the call before it read.
            place = version.lasting if resumable else version.stored
            if version is taken.base:
                return stack.enter_context(checkpoints.Checkpoint.open(place))
            return stack.enter_context(adapters.open_source(base, place))

        base = opened(taken.base)
        sources: list[checkpoints.Checkpoint | parts.OpenedPart] = []
        for version, digest in zip(taken.sources, taken.known[1:], strict=True):
            if digest is not None and digest in held.known:
                part = parts.OpenedPart(held.known[digest], held.folder)
                stack.callback(part.close)
                sources.append(part)
            else:
                sources.append(opened(version))
        labels = [source.resolved.uri for source in taken.sources]
        if not keep and not held.known:
            sharded = resumable or max_shard_size is not None
            by_shards = sharded and plans.divisible(base, settings, backend)
            if executor is not executors.LOCAL:
                check_reachable(taken)
                if not by_shards:
                    raise errors.MergeError(
                        "the unit 'model' of a float64 base, or of the backend "
                        f"{backend.name!r}, is merged in one go, not by several workers; leave "
                        "--executor out, or use the unit tensor"
                    )
            merge_all = merging.merge
            if by_shards:
                merge_all = functools.partial(
                    local.merge, executor=executor, keep=True, ended_by=ENDED_BY, threads=threads
                )
            result = merge_all(
                base,
                [source for source in sources if isinstance(source, checkpoints.Checkpoint)],
                settings,
                output,
                labels=labels,
                backend=backend,
                expected=taken.known,
                max_norm_ratio=max_norm_ratio,
                max_shard_size=max_shard_size,
                overwrite=resumable and not by_shards,
                show=show,
            )
            return Computed(_told(taken, result), notes=held.notes)
        folder = output.parent / parts.FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        joined = joining.merge(
            base,
            sources,
            settings,
            output,
            folder,
            labels=labels,
            expected=taken.known,
            threads=threads or processes.processors(),
            worthwhile=keep,
            max_norm_ratio=max_norm_ratio,
            show=show,
        )
    kept = (_keeping_note(joined),) if keep else ()
    return Computed(
        _told(taken, joined.result), joined, (*held.notes, _reading_note(joined, held), *kept)
    )


def _told(taken: inputs.Inputs, result: merging.MergeResult) -> merging.MergeResult:
    """A result without doubts about classes where all sources are for one task."""
    return dataclasses.replace(result, unnamed=()) if taken.is_for_one_task else result


def _parts_of(taken: inputs.Inputs, held: keeping.HeldParts, *, keep: bool) -> keeping.HeldParts:
    """The parts that can be of use: what is merged hangs on all sources where some have heads."""
    if not taken.alignments:
        return held
    listed = ", ".join(taken.alignments)
    if keep:
        raise errors.MergeError(
            f"--keep-parts is of no use here: the tensors of {listed} are not quite the base's. "
            f"{parts.REMEDY}"
        )
    if not held.known:
        return held
    return keeping.nothing(
        held.folder, f"the tensors of {listed} are not quite the base's, so every source is read"
    )


def plan(
    taken: inputs.Inputs, request: merge_request.MergeRequest, work: Path
) -> tuple[Path, plans.ShardPlan]:
    """Plan what `merge` does by shards, for workers who know no MLflow; the plan and its file.

    Args:
        taken: the base and the sources.
        request: with nothing left open.
        work: the folder of the merge.

    Raises:
        MergeError: workers could not read an input, or the merge can't be done by shards.
        CheckpointError: the plan can't be written.
    """
    check_reachable(taken)
    with contextlib.ExitStack() as stack:
        base, *sources = adapters.open_all(stack, (version.lasting for version in taken.everything))
        made = plans.make(
            base,
            sources,
            request.recipe,
            work / weights_name(taken),
            labels=[source.resolved.uri for source in taken.sources],
            expected=taken.known,
            max_norm_ratio=request.max_norm_ratio,
            max_shard_size=shard_size(taken, request.max_shard_size),
            threads=request.threads,
            ended_by=ENDED_BY,
        )
    file = work / PLAN
    made.save(file)
    return file, made


def check_executor(executor: executors.Executor, held: keeping.HeldParts, *, keep: bool) -> None:
    """Raise `MergeError` for a merge with parts that workers are to do."""
    if executor is not executors.LOCAL and (keep or held.known):
        raise errors.MergeError(
            "a merge that keeps parts, or is made from some, is done in one process; leave "
            "--executor out, or --keep-parts"
        )


def check_reachable(taken: inputs.Inputs) -> None:
    """Raise `MergeError` for an input that workers who know no MLflow can't read."""
    for version in taken.everything:
        if version.elsewhere is not None and not version.elsewhere.folder.ranged:
            raise errors.MergeError(
                f"the weights of {version.resolved.uri} come through the tracking server, and "
                "workers read a disk or an object store; merge in one process, or have the "
                "server name the store itself (--no-serve-artifacts)"
            )


def budget(
    taken: inputs.Inputs, request: merge_request.MergeRequest, backend: backends.Backend
) -> budgets.Budget:
    """What the merge of a request will take; see `budgets`."""
    with contextlib.ExitStack() as stack:
        base, *sources = adapters.open_all(stack, (version.stored for version in taken.everything))
        labels = [source.resolved.uri for source in taken.sources]
        job = merging.plan(base, sources, request.recipe, labels)
        size = shard_size(taken, request.max_shard_size)
        found = budgets.of(job, backend, max_shard_size=size, threads=request.threads)
        return dataclasses.replace(found, unnamed=()) if taken.is_for_one_task else found


def weights_name(taken: inputs.Inputs) -> str:
    """What the merged checkpoint is called: as the base's, so that its library finds it."""
    return flavor.WEIGHTS_FILE if taken.is_ours else Path(foreign.weights_file(taken.base)).name


def shard_size(taken: inputs.Inputs, given: int | None) -> int | None:
    """Bytes of tensors in each file of the merged version: as asked for, or else as the base's.

    Raises:
        MergeError: several files are asked for, and the version's library reads one.
    """
    if given is not None and taken.is_ours:
        raise errors.MergeError(
            f"--max-shard-size is of no use here: {taken.base.resolved.uri} is an open_clip model, "
            "whose library reads one file; leave it out"
        )
    return given if given is not None or taken.is_ours else foreign.shard_size(taken.base)


def check_work_folder(given: str | None) -> None:
    """Raise `OutputError` for a work folder that is not on a disk."""
    if stores.is_address(given):
        raise errors.OutputError(
            f"the work folder {given} is an address, and shards are kept on a disk until they are "
            "registered; name a folder that all workers mount (--work-folder)"
        )


def work_folder(given: str | None, asked: str, *, otherwise: Path) -> Path:
    """Where a merge is written before it is registered.

    Args:
        given: a folder that stays when the process is killed.
        asked: the request's digest: what another call must have in common to go on there.
        otherwise: a folder that does not.

    Raises:
        OutputError: the folder can't be made.
    """
    folder = (
        otherwise / "merged"
        if given is None
        else Path(given).absolute() / f"merge-{asked.removeprefix('sha256:')[:16]}"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.OutputError(
            f"cannot make the folder {folder}: {error.strerror}; name another (--work-folder)"
        ) from error
    return folder


def settle(
    taken: inputs.Inputs,
    draft: drafts.RecipeDraft,
    backend: backends.Backend,
    show: progress.Progress,
) -> drafts.Choice | None:
    """What a draft leaves open, found from the weights; see `settling.settle`."""
    if not draft.open and not draft.patterns:
        return None
    with contextlib.ExitStack() as stack:
        base, *sources = adapters.open_all(stack, (version.stored for version in taken.everything))
        labels = [source.resolved.uri for source in taken.sources]
        return settling.settle(base, sources, draft, labels=labels, backend=backend, show=show)


def _reading_note(joined: joining.JoinedMerge, held: keeping.HeldParts) -> str:
    """What was read."""
    number = len(joined.index.parts)
    from_parts = sum(part.source in held.known for part in joined.index.parts)
    whole = number - from_parts
    said = ["the base"]
    if whole:
        said.append(f"{whole} source{'s' * (whole != 1)} whole")
    if from_parts:
        said.append(f"{from_parts} from {'its part' if from_parts == 1 else 'their parts'}")
    listed = " and ".join([", ".join(said[:-1]), said[-1]])
    return (
        f"{joined.result.bytes_read / 1e6:.1f} MB were read: {listed}; whole, the base and all "
        f"sources have {joined.bytes_without / 1e6:.1f} MB"
    )


def _keeping_note(joined: joining.JoinedMerge) -> str:
    """What was kept."""
    number = len(joined.index.parts)
    return (
        f"the run keeps what {'each of ' if number > 1 else ''}{number} source{'s' * (number > 1)} "
        f"contributes, {joined.index.nbytes / 1e6:.1f} MB, for `merge --from`"
    )
