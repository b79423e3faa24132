"""What goes into a merge: the base and the sources, resolved once, opened, and checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import alignment
from mlflow_breadcrumbs.evaluation import scorecard
from mlflow_breadcrumbs.flavor import own_heads
from mlflow_breadcrumbs.lineage import ancestry_tags
from mlflow_breadcrumbs.models import task_heads, tasks
from mlflow_breadcrumbs.pipeline import configurations
from mlflow_breadcrumbs.registry import notices, tag_keys, task_files, versions


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The base and the sources, opened, with the digests that their bytes must have."""

    base: versions.OpenedVersion
    sources: tuple[versions.OpenedVersion, ...]
    known: tuple[str | None, ...]
    """Weights digests, of the base, then of each source: as recorded, else as found; `None` where
    nothing is recorded and the bytes have not been read yet."""
    heads: tuple[dict[str, task_heads.Head], ...]
    """Per source, the heads of its tasks."""
    fits: tuple[configurations.Fit, ...]
    """Per source, how its configuration compares with the base's."""
    alignments: Mapping[str, alignment.Alignment] = dataclasses.field(default_factory=dict)
    """By URI, what was decided of the tensors of sources that are not quite as the base."""
    own: Mapping[str, own_heads.OwnHead] = dataclasses.field(default_factory=dict)
    """By task, the heads that sources of other flavors keep; see `heading`."""
    given_up: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """By URI, the tasks whose heads base or sources carry and the merged version does not."""
    remarks: tuple[str, ...] = ()
    """What a user should know of heads, sentences without their full stop."""
    tensors: int = 0
    """Of the base, where heads were looked for."""

    @property
    def everything(self) -> tuple[versions.OpenedVersion, ...]:
        """The base, then the sources."""
        return (self.base, *self.sources)

    @property
    def resolved(self) -> tuple[versions.ResolvedVersion, ...]:
        """The same, as the registry knows them."""
        return tuple(version.resolved for version in self.everything)

    @property
    def digests(self) -> tuple[str, ...]:
        """All weights digests, once every one is known; `read` says those that were found."""
        found = tuple(digest for digest in self.known if digest is not None)
        if len(found) < len(self.known):
            raise ValueError("a digest is asked for before the bytes were read")
        return found

    @property
    def identities(self) -> tuple[str, ...]:
        """What tells each input from others before its bytes are read.

        The weights digest where it is known; else the pinned URI with the logged model, or with the
        place of the files where there is none.
        """
        return tuple(
            digest or f"{entry.uri} {entry.model_id or entry.location}"
            for digest, entry in zip(self.known, self.resolved, strict=True)
        )

    def read(self, digests: Sequence[str]) -> "Inputs":
        """The same, once their bytes were read and have these weights digests.

        Raises:
            MergeError: two inputs have the same weights.
        """
        _check_apart(self.everything, digests)
        return dataclasses.replace(self, known=tuple(digests))

    @property
    def is_ours(self) -> bool:
        """Whether the base is an open_clip model of our flavor; others keep their own artifact."""
        return self.base.flavor == flavor.FLAVOR_NAME

    @property
    def candidates(self) -> tuple[scorecard.Candidate, ...]:
        """The sources as they are measured."""
        return tuple(
            scorecard.Candidate(source.resolved.uri, source.weights, own, digest, fit.own)
            for source, own, digest, fit in zip(
                self.sources, self.heads, self.known[1:], self.fits, strict=True
            )
        )

    @property
    def is_for_one_task(self) -> bool:
        """Whether all sources are for the same tasks, by their tags or else their names."""
        resolved = (source.resolved for source in self.sources)
        return len({entry.tasks or (entry.name or entry.uri,) for entry in resolved}) == 1

    @property
    def purposes(self) -> ancestry_tags.Purposes | None:
        """What the sources are for, where heads are kept by that; else `None`."""
        return purposes(self.resolved) if self.own else None

    def bring(self) -> None:
        """Have all weights on this machine."""
        for version in self.everything:
            version.bring()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the sources' configurations and heads."""
        return (*(fit.note for fit in self.fits if fit.note), *self.remarks)

    @property
    def all_heads(self) -> dict[str, task_heads.Head]:
        """The heads of all sources by task; the merged version carries them."""
        return {task: head for own in self.heads for task, head in own.items()}


def purposes(resolved: Sequence[versions.ResolvedVersion]) -> ancestry_tags.Purposes:
    """What the sources are for; the base comes first and is left out."""
    return [ancestry_tags.purpose(entry.tasks, entry.uri) for entry in resolved[1:]]


def resolve(base: str, sources: Sequence[str]) -> tuple[versions.ResolvedVersion, ...]:
    """The base, then the sources, pinned; the one place where a merge looks URIs up.

    Raises:
        RegistryError: a URI can't be resolved.
        MergeError: no sources, a source twice, or the base among the sources.
    """
    if not sources:
        raise errors.MergeError("there are no sources; a merge needs at least one (--source)")
    resolved = tuple(versions.resolve(uri) for uri in (base, *sources))
    seen: dict[str, str] = {}
    told = notices.standing()
    for source in resolved[1:]:
        if reason := source.tags.get(tag_keys.RECALLED):
            raise errors.MergeError(
                f"the source {source.given} was recalled: {reason}. Leave it out, or withdraw the "
                "recall (`mlflow-breadcrumbs recall --withdraw`)"
            )
        for notice in notices.touching(source.uri, told):
            raise errors.MergeError(
                f"the source {source.given} is, or was made from, {notice.uri}, whose weights "
                f"{notice.actor} recalled: {notice.reason}. Leave it out, or withdraw the recall "
                "(`mlflow-breadcrumbs recall --withdraw`)"
            )
        if source.uri == resolved[0].uri:
            raise errors.MergeError(
                f"the source {source.given} is the base itself, which adds nothing; leave it out"
            )
        if source.uri in seen:
            raise errors.MergeError(
                f"the sources {seen[source.uri]} and {source.given} are the same version "
                f"{source.uri}; name it once, with a weight: {source.given}=2"
            )
        seen[source.uri] = source.given
    return resolved


def open_all(
    resolved: Sequence[versions.ResolvedVersion],
    folder: Path,
    *,
    known: Mapping[str, str] | None = None,
    lazily: bool = False,
) -> Inputs:
    """Make every input readable here.

    The recorded digests are taken at their word: the merge holds the bytes against them while it
    reads them, and finds those of versions that have none on record from the same bytes.

    Args:
        resolved: what `resolve` gave.
        folder: downloads go there.
        known: weights digests by pinned URI, of versions for which the registry may have none.
        lazily: weights are downloaded only once they are asked for, and may be read where they are.

    Raises:
        RegistryError: files are gone or are no safetensors.
        MergeError: two inputs are recorded with the same weights, two sources have different heads
            for one task, or a source computes otherwise than the base.
        ArchitectureError: a configuration is damaged.
    """
    opened, digests = open_versions(resolved, folder, known=known, lazily=lazily)
    _check_apart(opened, digests)
    fits = configurations.check(opened)
    return Inputs(opened[0], opened[1:], digests, collect_heads(opened[1:]), fits)


def open_versions(
    resolved: Sequence[versions.ResolvedVersion],
    folder: Path,
    *,
    known: Mapping[str, str] | None = None,
    lazily: bool = False,
) -> tuple[tuple[versions.OpenedVersion, ...], tuple[str | None, ...]]:
    """Make versions readable here, whatever they hold; with the weights digests on record.

    `known` and `lazily` are as for `open_all`.

    Raises:
        RegistryError: files are gone or are no safetensors.
        ArchitectureError: a version of our flavor has a configuration that is refused.
    """
    opened = tuple(versions.open_version(entry, folder, lazily=lazily) for entry in resolved)
    if opened[0].is_adapter:
        raise errors.MergeError(
            f"the base {resolved[0].uri} is a LoRA adapter, which is only a change of another "
            "model; name the model that it was trained on, whole, and the adapter as a source"
        )
    for version in opened:
        if version.flavor == flavor.FLAVOR_NAME:
            flavor.load_config(version.folder)  # refused before work is done
    digests = tuple(
        version.resolved.recorded_digest or (known or {}).get(version.resolved.uri)
        for version in opened
    )
    return opened, digests


def plan_evaluation(taken: Inputs, task_file: str) -> tuple[tuple[int, tasks.Task], ...]:
    """Which tasks are measured with which source; found out before anything is computed.

    Raises:
        TaskError: the base can't be evaluated, or a source has no task of the file.
    """
    if not taken.is_ours:
        raise errors.TaskError(
            f"the base {taken.base.resolved.uri} was logged by the flavor "
            f"{taken.base.flavor!r}; --tasks measures open_clip models alone. Measure it by means "
            "of your own (--evaluator), or merge without --tasks"
        )
    return scorecard.plan(taken.candidates, task_files.load(task_file))


def _check_apart(opened: Sequence[versions.OpenedVersion], digests: Sequence[str | None]) -> None:
    """Raise `MergeError` for two inputs with the same weights, as far as they are known."""
    for number, digest in enumerate(digests):
        first = digests.index(digest)
        if digest is None or first == number:
            continue
        twin, entry = opened[first].resolved, opened[number].resolved
        if first == 0:
            raise errors.MergeError(
                f"the source {entry.uri} has exactly the weights of the base {twin.uri}, so it "
                "adds nothing; leave it out, or register what was fine-tuned"
            )
        raise errors.MergeError(
            f"the sources {twin.uri} and {entry.uri} have the same weights ({digest}); name one of "
            f"them, with a weight: {twin.uri}=2"
        )


def collect_heads(
    sources: Sequence[versions.OpenedVersion],
) -> tuple[dict[str, task_heads.Head], ...]:
    """Per source the heads of its tasks; one task must mean one head in the merged version.

    Raises:
        MergeError: two sources have different heads for one task.
    """
    found: list[dict[str, task_heads.Head]] = []
    owners: dict[str, tuple[str, task_heads.Head]] = {}
    for source in sources:
        own = task_heads.read(source.folder) if source.flavor == flavor.FLAVOR_NAME else {}
        for task, head in own.items():
            owner, first = owners.setdefault(task, (source.resolved.uri, head))
            if not _same(first, head):
                raise errors.MergeError(
                    f"the sources {owner} and {source.resolved.uri} both carry the task {task!r}, "
                    "with different heads; a merged version can answer for one of them. Name the "
                    "tasks differently (import --task), or fine-tune both from the base's head"
                )
        found.append(own)
    return tuple(found)


def _same(one: task_heads.Head, other: task_heads.Head) -> bool:
    return one.classes == other.classes and bool((one.weight == other.weight).all())
