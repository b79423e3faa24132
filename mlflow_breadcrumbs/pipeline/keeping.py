"""Parts of merges in the registry: found for a change, and kept for the next one."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import mlflow

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import joining, parts
from mlflow_breadcrumbs.lineage import contents, kept_parts, statement
from mlflow_breadcrumbs.pipeline import changing
from mlflow_breadcrumbs.registry import run_files, versions
from mlflow_breadcrumbs.support import canonical, intake, json_documents


@dataclasses.dataclass(frozen=True)
class HeldParts:
    """The parts of the sources that stay, where they are on this machine."""

    known: Mapping[str, parts.SourcePart]
    """By the source's weights digest."""
    folder: Path
    notes: tuple[str, ...] = ()
    """Why some or all of them are not there."""


def nothing(folder: Path, *notes: str) -> HeldParts:
    """No parts, and why."""
    return HeldParts({}, folder, notes)


def find(change: changing.MergeChange | None, folder: Path) -> HeldParts:
    """The parts that the version which is changed has, of the sources that stay.

    Args:
        change: the change; without one there are none.
        folder: downloads go there.

    Raises:
        IntegrityError: the index is not the one that was written.
        RegistryError: the store does not answer.
    """
    if change is None:
        return nothing(folder)
    every = "every source is read"
    if change.parts_digest is None:
        return nothing(folder, f"{change.uri} was merged without --keep-parts, so {every}")
    if not run_files.has_run(change.run_id):
        return nothing(folder, f"the run of {change.uri}, which had the parts, is gone, so {every}")
    kept = run_files.files_of(change.run_id, folder / "kept")
    there = {f"{parts.FOLDER}/{Path(path).name}" for path in kept.sizes(parts.FOLDER)}
    index_path = f"{parts.FOLDER}/{parts.INDEX}"
    if index_path not in there:
        return nothing(folder, f"the parts of {change.uri} are gone, so {every}")
    origin = f"{index_path} of the run of {change.uri}"
    file = kept.file(index_path)
    content = intake.content(file, origin, errors.IntegrityError, json_documents.BYTES)
    found = canonical.sha256(content)
    if found != change.parts_digest:
        raise errors.IntegrityError(
            f"the {origin} was changed after it was written: recorded {change.parts_digest}, found "
            f"{found}. Nothing was merged; restore it, or delete the folder {parts.FOLDER} of the "
            "run, and every source is read instead"
        )
    index = parts.read_index(content, origin)
    if index is None:
        return nothing(folder, f"the parts of {change.uri} are of a later release, so {every}")
    _check(change, index, origin)
    return _held(change, index, there, kept.file)


def _check(change: changing.MergeChange, index: parts.PartsIndex, origin: str) -> None:
    """Hold an index against the lineage that names it."""
    if index.base != change.digests[change.base] or index.masks != parts.mask_fields(change.recipe):
        raise errors.IntegrityError(
            f"the {origin} is of another merge: its base or its masks are not those of the "
            "lineage. Nothing was merged; restore it, or delete it, and every source is read"
        )


def _held(
    change: changing.MergeChange,
    index: parts.PartsIndex,
    there: set[str],
    fetch: Callable[[str], Path],
) -> HeldParts:
    """Bring the files of those parts here that are needed and whole."""
    by_source = {part.source: part for part in index.parts}
    known, notes = {}, []
    folder = fetch(f"{parts.FOLDER}/{parts.INDEX}").parent
    for uri, digest in change.digests.items():
        if uri == change.base:
            continue
        part = by_source.get(digest)
        paths = [f"{parts.FOLDER}/{file.name}" for file in part.files] if part else []
        if part is None or not there.issuperset(paths):
            notes.append(f"the part of {uri} is gone, so that source is read")
            continue
        for path in paths:
            fetch(path)
        known[digest] = part
    return HeldParts(known, folder, tuple(notes))


def has_parts(uri: str) -> bool:
    """Whether the parts of a merged version were kept, by what its lineage says."""
    stated = contents.lineage_of(versions.resolve(uri))
    return isinstance(stated, statement.Statement) and stated.parts_digest is not None


def log(run_id: str, joined: joining.JoinedMerge) -> kept_parts.KeptParts:
    """Keep the parts of a merge in its run, before there is a version.

    Raises:
        MlflowException, OSError: the store refuses them, or its disk is full.
    """
    content = joined.index.to_json()
    client = mlflow.MlflowClient()
    for file in joined.files:
        client.log_artifact(run_id, str(file), parts.FOLDER)
    run_files.log_bytes(run_id, content, f"{parts.FOLDER}/{parts.INDEX}")
    return kept_parts.KeptParts(
        digest=canonical.sha256(content), nbytes=joined.index.nbytes, format=parts.FORMAT
    )
