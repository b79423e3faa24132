"""The model registry: resolve a URI once, open a version's weights, check names, set aliases.

What is resolved stays pinned: an alias that moves later, or a version that is deleted, changes
nothing in a job that has started with it.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import requests
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import bundles, headers
from mlflow_breadcrumbs.engine.remote import stores
from mlflow_breadcrumbs.registry import (
    artifacts,
    database,
    failures,
    hub_weights,
    layouts,
    records,
    remote_weights,
    tag_keys,
    uris,
)
from mlflow_breadcrumbs.support import documents, escaping, intake, json_documents, scratch


@dataclasses.dataclass(frozen=True)
class ResolvedVersion:
    """A version as it was when its URI was resolved."""

    given: str
    """The URI that the user gave, with `models:/`."""
    uri: str
    """The URI pinned to the version, `models:/NAME/VERSION` or `models:/m-…`."""
    name: str | None
    version: str | None
    model_id: str | None
    """The logged model, `m-…`; `None` for versions that were registered from elsewhere."""
    run_id: str | None
    location: str
    """Where the artifacts are stored."""
    tags: Mapping[str, str]

    @property
    def recorded_digest(self) -> str | None:
        """The weights digest that was recorded when the version was registered."""
        return self.tags.get(tag_keys.WEIGHTS_DIGEST)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the version was fine-tuned for."""
        return tuple(task for task in self.tags.get(tag_keys.TASK, "").split(",") if task)

    @property
    def registered(self) -> records.RegisteredVersion:
        """The same as a job's result; only of a version with a name."""
        if self.name is None or self.version is None:
            raise ValueError(f"{self.uri} is not a registered version")
        return records.RegisteredVersion(
            name=self.name,
            version=self.version,
            uri=self.uri,
            run_id=self.run_id or "",
            model_id=self.model_id or "",
            weights_digest=self.recorded_digest or "",
        )


def _nothing() -> None:
    """The checkpoint is here."""


@dataclasses.dataclass(frozen=True)
class OpenedVersion:
    """A resolved version whose files can be read on this machine."""

    resolved: ResolvedVersion
    checkpoints: tuple[str, ...]
    """Its checkpoints, each a file or the index of shards, as paths in the folder; the main one
    first."""
    flavor: str
    """`breadcrumbs`, the MLflow flavor whose safetensors these are, or `safetensors` of a folder
    without MLmodel."""
    folder: Path
    """Holds the version's small files (configuration, heads, MLmodel)."""
    declared: Mapping[str, Any]
    """What MLmodel says under the flavor's name."""
    elsewhere: stores.Target | None = None
    """Where the checkpoint is read if it is not on this machine."""
    bring: Callable[[], None] = _nothing
    """Downloads the checkpoint, if that has not been done."""
    original: Path | None = None
    """Where the checkpoint is for good, where its path is only a link that will be gone."""

    @property
    def path(self) -> Path:
        """Where the main checkpoint is on this machine, or would be."""
        return self.folder / self.checkpoints[0]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders whose files its library wants in one, that of the weights first."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        paths = [path.relative_to(self.folder).as_posix() for path in files]
        found = layouts.of(self.flavor, paths).folders(paths, self.checkpoints)
        return tuple(self.folder / path for path in found)

    @property
    def is_adapter(self) -> bool:
        """Whether the checkpoint is a LoRA adapter, which is only a change of another model."""
        config = self.path.with_name(headers.ADAPTER_CONFIG)
        return self.path.name == headers.ADAPTER_WEIGHTS and config.is_file()

    @property
    def weights(self) -> Path:
        """The checkpoint on this machine; it is downloaded when this is first asked for.

        Of several it is the location that has them read as one, see `bundles`.
        """
        if self.original is not None:
            return self.original
        self.bring()
        return self.folder / _joined(self.checkpoints)

    @property
    def stored(self) -> Path | stores.Target:
        """The checkpoint where it is, to be read from there."""
        brought = any(self.path.parent.glob("*.safetensors"))
        if self.elsewhere is None or brought or self.is_adapter:
            return self.weights
        return self.elsewhere

    @property
    def lasting(self) -> Path | stores.Target:
        """Where the checkpoint is even after what was downloaded is gone."""
        if self.elsewhere is None or (self.is_adapter and not self.elsewhere.folder.ranged):
            return self.weights
        return self.elsewhere


def resolve(uri: str) -> ResolvedVersion:
    """The version behind a URI, pinned; `uris.full` says what may be left out of it.

    Raises:
        RegistryError: the URI is malformed, or names an unknown name, version, alias or model, or
            a version that is not ready or whose model was deleted.
    """
    database.prepare()
    client = mlflow.MlflowClient()
    uri = uris.full(uri)
    parts = uris.parse(uri)
    if parts.model_id is not None:
        return _resolve_logged_model(client, uri, parts.model_id)
    try:
        if parts.version is not None:
            found = client.get_model_version(parts.name, parts.version)
        elif parts.alias is not None:
            found = client.get_model_version_by_alias(parts.name, parts.alias)
        else:
            found = _latest(client, str(parts.name), str(parts.stage))
        if found.status != "READY":
            raise errors.RegistryError(
                f"{uri} is version {found.version} of {found.name!r}, whose status is "
                f"{found.status}; wait until it is READY, or register it again"
            )
        location = client.get_model_version_download_uri(found.name, found.version)
        model_id = _model_id(client, found.source)
    except (MlflowException, requests.RequestException) as error:
        known = "" if failures.is_servers(error) else _known(client, uri)
        raise failures.explain(error, f"cannot resolve {uri}", known) from error
    return ResolvedVersion(
        given=uri,
        uri=uris.of_version(found.name, found.version),
        name=found.name,
        version=str(found.version),
        model_id=model_id,
        run_id=found.run_id or None,
        location=location,
        tags=dict(found.tags),
    )


def _resolve_logged_model(client: Any, uri: str, model_id: str) -> ResolvedVersion:
    try:
        model = client.get_logged_model(model_id)
    except (MlflowException, requests.RequestException) as error:
        raise failures.explain(error, f"cannot resolve {uri}", "check the model id") from error
    if model.status != LoggedModelStatus.READY:
        raise errors.RegistryError(
            f"{uri} has the status {model.status}; a job was stopped while it was logged. "
            "Log it again"
        )
    return ResolvedVersion(
        given=uri,
        uri=uri,
        name=None,
        version=None,
        model_id=model_id,
        run_id=model.source_run_id,
        location=model.artifact_location,
        tags=dict(model.tags),
    )


def _latest(client: Any, name: str, suffix: str) -> Any:
    """The newest version of a name, or of a name in a stage."""
    versions = [
        version
        for version in client.search_model_versions(f"name = {quoted(name)}")
        if suffix == "latest" or version.current_stage.lower() == suffix.lower()
    ]
    if not versions:
        raise errors.RegistryError(
            f"{name!r} has no version at {suffix!r}; write {uris.FORMS}. {_known(client, name)}"
        )
    return max(versions, key=lambda version: int(version.version))


def _model_id(client: Any, source: str | None) -> str | None:
    """The logged model behind a version's source, through `models:/name/version` chains."""
    for _ in range(100):
        if (model_id := uris.logged_model(source)) is not None:
            return model_id
        if (version := uris.registered(source)) is None:
            return None
        source = client.get_model_version(*version).source
    return None


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder for downloads and for the merged weights; removed at the end.

    Raises:
        RegistryError: none can be made.
    """
    with contextlib.ExitStack() as stack:
        with failures.explained(
            "cannot make a temporary folder", "set TMPDIR to one that can be written"
        ):
            folder = stack.enter_context(scratch.folder())
        yield folder


def open_version(
    resolved: ResolvedVersion, folder: Path, *, whole: bool = False, lazily: bool = False
) -> OpenedVersion:
    """Make a version's weights and small files readable here.

    On a store that this machine mounts nothing is copied; otherwise the files are downloaded into
    `folder`. No pickle is read: a version that only has one is refused. What its layout calls an
    extra is only downloaded if `whole`. The checkpoint itself is downloaded only once it is asked
    for if `lazily`, and may be read where it is instead.

    Raises:
        RegistryError: the files are gone, or the flavor keeps no safetensors.
        IntegrityError: the MLmodel file is damaged.
    """
    fetch = _artifacts(resolved, folder)
    sizes = fetch.sizes()
    paths = sorted(sizes)
    flavors = _read_flavors(resolved, fetch, paths)
    flavor = next((name for name in flavors if name != "python_function"), "python_function")
    declared = flavors.get(flavor, {})
    if not layouts.candidates(paths) and (refers := hub_weights.reference(declared, resolved.uri)):
        return _open_on_hub(resolved, refers, fetch, declared, folder)
    layout = layouts.of(flavor, paths)
    chosen = layout.checkpoints(paths, fetch.file)
    layouts.check(resolved.uri, flavor, paths, chosen)
    weights = [path for path in layouts.candidates(paths) if path.endswith(".safetensors")]
    unread = set(weights) if lazily else set()
    if not whole:
        unread |= {path for path in paths if layout.is_extra(path)}
    fetch.fetch(path for path in paths if path not in unread)
    place = _joined(chosen)
    return OpenedVersion(
        resolved,
        checkpoints=chosen,
        flavor=flavor,
        folder=fetch.root(),
        declared=declared,
        elsewhere=remote_weights.place(resolved.location, place, sizes) if lazily else None,
        bring=functools.partial(fetch.fetch, weights) if lazily else _nothing,
    )


def _joined(checkpoints: tuple[str, ...]) -> str:
    """A checkpoint's path, or the location that has several read as one."""
    return checkpoints[0] if len(checkpoints) == 1 else bundles.of(checkpoints).location


def _read_flavors(
    resolved: ResolvedVersion, fetch: artifacts.Artifacts, paths: list[str]
) -> dict[str, dict[str, Any]]:
    """The flavors that MLmodel names; a folder that was registered as it is needs none."""
    if "MLmodel" in paths:
        return _flavors(resolved, fetch.file("MLmodel"))
    if resolved.model_id is None and layouts.candidates(paths):
        return {layouts.PLAIN: {}}
    raise errors.RegistryError(
        f"{resolved.uri} has no MLmodel file at {resolved.location}: its artifacts were "
        "deleted or moved. Restore them or register the model again"
    )


def _open_on_hub(
    resolved: ResolvedVersion,
    refers: hub_weights.HubReference,
    fetch: artifacts.Artifacts,
    declared: Mapping[str, Any],
    folder: Path,
) -> OpenedVersion:
    """Open a version that names a repository in place of weights, as if it had them."""
    fetch.fetch(fetch.list())
    whole = folder / f"{resolved.model_id or f'{resolved.name}-{resolved.version}'}-whole"
    found = hub_weights.lay_out(refers, declared, fetch.root(), whole, resolved.uri)
    return OpenedVersion(
        resolved,
        checkpoints=(found.path.relative_to(found.folder).as_posix(),),
        flavor=layouts.TRANSFORMERS,
        folder=found.folder,
        declared=declared,
        original=found.original,
    )


def _flavors(resolved: ResolvedVersion, file: Path) -> dict[str, dict[str, Any]]:
    """The flavors of an MLmodel file, by name."""
    origin = f"the MLmodel file of {resolved.uri} at {resolved.location}"
    remedy = "Restore it, or register the model again"
    try:
        content = documents.read(file, origin, errors.IntegrityError).content
    except errors.IntegrityError as error:
        raise errors.IntegrityError(f"{error}: the version is damaged. {remedy}") from error
    flavors = content.get("flavors") if isinstance(content, dict) else None
    if not isinstance(flavors, dict) or not all(
        isinstance(name, str) and isinstance(said, dict | None) for name, said in flavors.items()
    ):
        raise errors.IntegrityError(
            f"{origin} is damaged: it does not say which flavors the version has. {remedy}"
        )
    return {name: said or {} for name, said in flavors.items()}


def read_file(resolved: ResolvedVersion, path: str) -> bytes:
    """One small file of a version.

    Raises:
        RegistryError: it is not there.
    """
    with workspace() as folder:
        fetch = _artifacts(resolved, folder)
        if path not in fetch.list():
            raise errors.RegistryError(f"{resolved.uri} has no {path} at {resolved.location}")
        origin = f"{path} of {resolved.uri}"
        return intake.content(fetch.file(path), origin, errors.RegistryError, json_documents.BYTES)


def has_file(resolved: ResolvedVersion, name: str) -> bool:
    """Whether a version has a file of that name beside MLmodel, without downloading any.

    Raises:
        RegistryError: its files can't be listed.
    """
    with workspace() as folder:
        return _artifacts(resolved, folder).has(name)


def add_file(resolved: ResolvedVersion, file: Path) -> None:
    """Put a file into a version's artifacts, beside MLmodel, in place of one of that name."""
    what = f"cannot add {file.name} to {resolved.uri}"
    with failures.explained(what, "check that it can be written to"):
        get_artifact_repository(resolved.location).log_artifact(str(file))


def stored_bytes(resolved: ResolvedVersion) -> int:
    """The size of a version's checkpoint, all shards together, without downloading it.

    Raises:
        RegistryError: its files are gone.
    """
    with workspace() as folder:
        sizes = _artifacts(resolved, folder).sizes()
    return sum(
        size
        for path, size in sizes.items()
        if path.endswith(".safetensors") and not path.startswith("tasks/")
    )


def _artifacts(resolved: ResolvedVersion, folder: Path) -> artifacts.Artifacts:
    return artifacts.Artifacts(
        resolved.uri,
        resolved.location,
        folder / (resolved.model_id or f"{resolved.name}-{resolved.version}"),
    )


def check_digest(resolved: ResolvedVersion, found: str) -> None:
    """Raise `IntegrityError` unless a version's bytes are those that were registered."""
    if resolved.recorded_digest not in (None, found):
        raise errors.IntegrityError(
            f"the weights of {resolved.uri} were changed after they were registered: recorded "
            f"{resolved.recorded_digest}, found {found}. Register the new weights as a version of "
            "their own, or restore the old ones"
        )


def check_name(name: str) -> None:
    """Raise `RegistryError` for a registered model's name that MLflow would not take."""
    if not name.strip() or len(name) > 256 or re.search(r"[/:]", name):
        raise errors.RegistryError(
            f"{name!r} can't name a registered model: 1 to 256 characters, without '/' and ':'"
        )
    if escaping.line(name) != name:
        raise errors.RegistryError(
            f"{name!r} can't name a registered model: it has a control character; leave it out"
        )
    quoted(name)


def metrics_of(run_id: str | None) -> dict[str, float]:
    """The metrics of a run; empty when the run is gone."""
    try:
        return dict(mlflow.MlflowClient().get_run(run_id).data.metrics) if run_id else {}
    except MlflowException:
        return {}


def description_of(resolved: ResolvedVersion) -> str:
    """What people wrote about a registered version; empty where nobody did."""
    if resolved.name is None:
        return ""
    with failures.explained(f"cannot read the description of {resolved.uri}", "try again"):
        found = mlflow.MlflowClient().get_model_version(resolved.name, resolved.version)
    return found.description or ""


def licence_of(resolved: ResolvedVersion) -> str | None:
    """What a version's tag `license` or `licence` says, or else its registered model's."""
    found = [resolved.tags]
    if resolved.name is not None:
        with failures.explained(f"cannot read the tags of {resolved.name!r}", "try again"):
            found.append(mlflow.MlflowClient().get_registered_model(resolved.name).tags)
    return next((tags[key] for tags in found for key in tag_keys.LICENCES if tags.get(key)), None)


def quoted(name: str) -> str:
    """A name in a filter string, which has two kinds of quotes and no escapes.

    Raises:
        RegistryError: The name has both.
    """
    if "'" in name and '"' in name:
        raise errors.RegistryError(
            f"{name!r} has both kinds of quotes, and MLflow finds no versions by such a name; "
            "choose another, or rename the registered model"
        )
    return f'"{name}"' if "'" in name else f"'{name}'"


def _known(client: Any, uri: str) -> str:
    """What exists near a URI that was not found, as the remedy of a message."""
    name = re.sub(r"[/@][^/@]*$", "", uris.short(uri))
    try:
        versions = client.search_model_versions(f"name = {quoted(name)}")
        if versions:
            numbers = sorted({int(version.version) for version in versions})
            aliases = sorted(client.get_registered_model(name).aliases)
            listed = f"; its aliases are {', '.join(aliases)}" if aliases else ""
            return f"{name!r} has the versions {', '.join(map(str, numbers))}{listed}"
        names = [model.name for model in client.search_registered_models(max_results=20)]
    except (MlflowException, requests.RequestException):
        return "check the tracking server"
    return f"the registry has {', '.join(map(repr, names)) or 'no registered models'}"
