"""What MLflow and its stores hold about a version, gathered once for those who judge it.

`verify`, `reproduce` and `export` read nothing else. What can't be read is kept as the error that
says why, so that a judgement can tell a version that lost its files from one that never had any.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import mlflow

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.audit import signing
from mlflow_breadcrumbs.engine import adapters, checkpoints
from mlflow_breadcrumbs.flavor import own_heads
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.models import task_heads
from mlflow_breadcrumbs.registry import database, failures, tag_keys, uris, versions
from mlflow_breadcrumbs.support import canonical, progress

GONE = "it was deleted and purged, or never was here"

T = TypeVar("T")

Fault = Callable[[Path], str | None]
"""What is wrong with the signature in a folder, if anything; `signing.verifier` makes one."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the files of a version hold now, recomputed from their bytes."""

    weights_digest: str
    main_digest: str | None
    """Of several checkpoints that of the main one, which earlier releases read alone."""
    is_adapter: bool
    """Whether the files hold a change of another model, and no model."""
    file_digest: str | None
    """SHA-256 of the checkpoint file; computed where there is a `lineage.json` that names one."""
    declared_digest: str | None
    """What the version's MLmodel file says the weights digest is."""
    configuration: str | errors.BreadcrumbsError | None
    """Digest of the model's architecture and preprocessing; `None` for other flavors."""
    heads: Mapping[str, str] | errors.BreadcrumbsError
    """Digest of each task's head: class names, templates and weights; of other flavors, of what
    sources kept for their tasks."""
    signature: str | None
    """What is wrong with the signature, empty if nothing; `None` where there is none, or nobody
    asked."""


@dataclasses.dataclass(frozen=True)
class SourceEvidence:
    """The base or a source of a merge, as it is now."""

    stated: statement.Input
    """What the merged version's lineage says of it."""
    contents: Contents | errors.BreadcrumbsError
    deleted: bool
    """The registry has no such version any more; the contents are its logged model's."""
    model_id: str | None
    """The logged model that the version is now."""
    recorded_digest: str | None
    """The version's tag."""


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """The MLflow run that did a merge."""

    deleted: bool
    """Deleted in MLflow, though not yet purged."""
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    inputs: frozenset[str]
    """Ids of the native model inputs."""
    outputs: frozenset[str]
    """Ids of the native model outputs."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that can be found out about one version."""

    resolved: versions.ResolvedVersion
    contents: Contents | errors.BreadcrumbsError
    lineage: bytes | errors.BreadcrumbsError
    """The bytes of `lineage.json`."""
    stated: statement.Statement | errors.BreadcrumbsError
    """What they say."""
    model_tags: Mapping[str, str] | errors.BreadcrumbsError
    """Tags of the logged model, which registration wrote beside the version's."""
    run: RecordedRun | errors.BreadcrumbsError
    sources: tuple[SourceEvidence, ...]

    @property
    def is_merge(self) -> bool:
        """Whether anything at all says that this version was made by a merge."""
        tags = [self.resolved.tags]
        if not isinstance(self.model_tags, errors.BreadcrumbsError):
            tags.append(self.model_tags)
        if isinstance(self.run, RecordedRun) and self.resolved.model_id in self.run.outputs:
            tags.append(self.run.tags)
        return isinstance(self.lineage, bytes) or any(
            found.get(tag_keys.KIND) == "merge" or tag_keys.LINEAGE_DIGEST in found
            for found in tags
        )


class Collector:
    """Gathers the evidence on versions; bytes that several of them share are read once.

    One version is on this machine's disk at a time: what was downloaded is removed when it is read.
    """

    def __init__(self, folder: Path, show: progress.Progress, fault: Fault | None) -> None:
        self._folder = folder
        self._show = show
        self._fault = fault
        self._contents: dict[str, Contents | errors.BreadcrumbsError] = {}

    def gather(self, resolved: versions.ResolvedVersion) -> Evidence:
        """The evidence on a version.

        Raises:
            UnreachableError: the tracking server does not answer.
        """
        lineage = _kept(lambda: versions.read_file(resolved, statement.FILE))
        stated = _kept(lambda: statement.parse(lineage)) if isinstance(lineage, bytes) else lineage
        known = stated if isinstance(stated, statement.Statement) else None
        return Evidence(
            resolved=resolved,
            contents=self.contents(resolved),
            lineage=lineage,
            stated=stated,
            model_tags=_kept(lambda: _model_tags(resolved)),
            run=_kept(lambda: _run(known.run_id if known else resolved.run_id)),
            sources=tuple(self.source(entry, known.base) for entry in known.inputs)
            if known
            else (),
        )

    def source(self, stated: statement.Input, base: statement.Input) -> SourceEvidence:
        """The base or a source of a merge, by its version, or else by its logged model.

        Args:
            stated: what the lineage says of it.
            base: what it says of the base, of which an adapter is a change.
        """
        resolved, deleted = find(stated)
        if isinstance(resolved, errors.BreadcrumbsError):
            return SourceEvidence(stated, resolved, deleted, None, None)
        return SourceEvidence(
            stated,
            self.contents(resolved, base),
            deleted,
            resolved.model_id,
            resolved.recorded_digest,
        )

    def contents(
        self, resolved: versions.ResolvedVersion, base: statement.Input | None = None
    ) -> Contents | errors.BreadcrumbsError:
        """What a version's files hold now; of an adapter on a base, what it makes of that."""
        for key in (resolved.location, f"{resolved.location} on {base.uri if base else None}"):
            if key in self._contents:
                return self._contents[key]
        with self._show(f"read {resolved.uri}", total=1, unit="version") as advance:
            found = _kept(lambda: _read(resolved, self._fault, base))
            advance(1)
        of_base = isinstance(found, Contents) and found.is_adapter
        self._contents[key if of_base else resolved.location] = found
        return found


@contextlib.contextmanager
def collector(
    show: progress.Progress = progress.silent, fault: Fault | None = None
) -> Iterator[Collector]:
    """A collector, with a temporary folder.

    Args:
        show: is told which versions are read.
        fault: says what is wrong with a signature; without it signatures are not looked at.
    """
    with versions.workspace() as folder:
        yield Collector(folder, show, fault)


def find(
    stated: statement.Input,
) -> tuple[versions.ResolvedVersion | errors.BreadcrumbsError, bool]:
    """The version of a statement's input, and whether only its logged model is left.

    MLflow keeps the logged model, and its bytes, of a version that is deleted.
    """
    version = _kept(lambda: versions.resolve(stated.uri))
    if isinstance(version, versions.ResolvedVersion):
        return version, False
    if stated.model_id is None:
        return version, True
    logged = uris.of_model(stated.model_id)
    model = _kept(lambda: versions.resolve(logged))
    return (model if isinstance(model, versions.ResolvedVersion) else version), True


def every_version() -> list[str]:
    """The URIs of all versions in the registry, sorted by name and number.

    Raises:
        UnreachableError: the tracking server does not answer.
    """
    database.prepare()
    client = mlflow.MlflowClient()
    found, token = [], None
    while True:
        with failures.explained("cannot list the registry's versions", "try again"):
            page = client.search_model_versions(page_token=token)
        found += [(version.name, int(version.version)) for version in page]
        token = page.token
        if not token:
            return [uris.of_version(name, number) for name, number in sorted(found)]


def _read(
    resolved: versions.ResolvedVersion, fault: Fault | None, base: statement.Input | None
) -> Contents:
    with versions.workspace() as folder:
        opened = versions.open_version(resolved, folder, whole=fault is not None)
        ours = opened.flavor == flavor.FLAVOR_NAME
        merged = (opened.folder / statement.FILE).is_file()
        signed = fault is not None and (opened.folder / signing.FILE).is_file()
        return Contents(
            weights_digest=_digest(opened, base, folder),
            main_digest=main_digest(opened),
            is_adapter=opened.is_adapter,
            file_digest=checkpoints.file_digest(opened.path) if merged else None,
            declared_digest=opened.declared.get("weights_digest"),
            configuration=_kept(lambda: _configuration_digest(opened.folder)) if ours else None,
            heads=_kept(lambda: _head_digests(opened.folder, ours=ours)),
            signature=(fault(opened.folder) or "") if fault and signed else None,
        )


def _digest(opened: versions.OpenedVersion, base: statement.Input | None, folder: Path) -> str:
    """The weights digest of a version; of an adapter on a base, that of the model it makes."""
    if not opened.is_adapter or base is None:
        return checkpoints.weights_digest(opened.weights)
    found, _ = find(base)
    if isinstance(found, errors.BreadcrumbsError):
        raise found
    with contextlib.ExitStack() as stack:
        below = versions.open_version(found, folder).weights
        _, made = adapters.open_all(stack, [below, opened.weights])
        return checkpoints.weights_digest(made)


def main_digest(opened: versions.OpenedVersion) -> str | None:
    """The weights digest of the main checkpoint, where there are several."""
    alone = len(opened.checkpoints) == 1
    return None if alone else checkpoints.weights_digest(opened.path)


def _configuration_digest(folder: Path) -> str:
    return canonical.sha256(flavor.load_config(folder).to_json().encode())


def _head_digests(folder: Path, *, ours: bool) -> dict[str, str]:
    if not ours:
        return {task: head.digest for task, head in own_heads.read(folder).items()}
    return {task: _head_digest(head) for task, head in task_heads.read(folder).items()}


def _head_digest(head: task_heads.Head) -> str:
    return canonical.digest(
        {
            "kind": head.kind,
            "classes": list(head.classes),
            "templates": list(head.templates),
            "weight": checkpoints.state_dict_digest({"weight": head.weight}),
        }
    )


def _model_tags(resolved: versions.ResolvedVersion) -> Mapping[str, str]:
    if resolved.model_id is None:
        raise errors.RegistryError(f"{resolved.uri} has no logged model")
    with failures.explained(f"cannot read the logged model {resolved.model_id}", GONE):
        return dict(mlflow.MlflowClient().get_logged_model(resolved.model_id).tags)


def _run(run_id: str | None) -> RecordedRun:
    if not run_id:
        raise errors.RegistryError("the version names no run")
    with failures.explained(f"cannot read the run {run_id}", GONE):
        run = mlflow.MlflowClient().get_run(run_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    return RecordedRun(
        deleted=run.info.lifecycle_stage == "deleted",
        tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
        inputs=frozenset(entry.model_id for entry in run.inputs.model_inputs),
        outputs=frozenset(entry.model_id for entry in outputs),
    )


def _kept(read: Callable[[], T]) -> T | errors.BreadcrumbsError:
    """What a function reads, or the error that says why it can't; not that of a silent server."""
    try:
        return read()
    except errors.UnreachableError:
        raise
    except errors.BreadcrumbsError as error:
        return error
    except OSError as error:
        return errors.IntegrityError(f"the version's small files are damaged: {error}")
