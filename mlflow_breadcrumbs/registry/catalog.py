"""The registry read as a graph: what each version says, in its tags, that it was made from."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import database, failures, graph, tag_keys, uris, versions
from mlflow_breadcrumbs.support import json_documents

PAGE = 1000
"""Versions per request."""

_logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A version and the edges to its parents."""

    version: graph.Version
    edges: tuple[graph.Edge, ...]


class RegisteredModel(NamedTuple):
    """A registered model, as its own page in MLflow has it."""

    name: str
    description: str
    aliases: Mapping[str, str]
    """The version's number by alias."""
    updated: int
    """Milliseconds since 1970."""


def pages(since: int | None = None) -> Iterator[list[Entry]]:
    """Every version of the registry that is ready, the last updated ones first.

    Args:
        since: Leave out what was not updated since then (milliseconds). MLflow doesn't count a
            changed tag as an update.

    Raises:
        RegistryError: The registry can't be reached.
    """
    for found in _search():
        entries = [_registered(version) for version in found if version.status == "READY"]
        fresh = [entry for entry in entries if since is None or entry.version.updated >= since]
        if fresh:
            yield fresh
        if len(fresh) < len(entries):
            return


def merges(name: str | None = None, *, page: int | None = None) -> Iterator[Entry]:
    """The merged versions that are ready, the newest first, a page at a time as they are asked for.

    Args:
        name: Only those of this registered model.
        page: Versions per request; `PAGE` when left out.

    Raises:
        RegistryError: The registry can't be reached.
    """
    asked = [f"tags.`{tag_keys.KIND}` = 'merge'"]
    asked += [] if name is None else [f"name = {versions.quoted(name)}"]
    for found in _search(" and ".join(asked), "creation_timestamp DESC", page):
        yield from (_registered(version) for version in found if version.status == "READY")


def of_model(name: str) -> Iterator[tuple[Entry, Mapping[str, str]]]:
    """The versions of a registered model that are ready, the newest first, each with its tags.

    Raises:
        RegistryError: The registry can't be reached.
    """
    both = "'" in name and '"' in name  # then MLflow finds nothing by the name
    where = None if both else f"name = {versions.quoted(name)}"
    for found in _search(where, "version_number DESC"):
        for version in found:
            if version.status == "READY" and version.name == name:
                yield _registered(version), version.tags


def models() -> Iterator[RegisteredModel]:
    """Every registered model, the last updated ones first, a page at a time.

    Raises:
        RegistryError: The registry can't be reached.
    """
    token = None
    while True:
        found = _ask(
            _client().search_registered_models,
            max_results=PAGE,
            order_by=["last_updated_timestamp DESC"],
            page_token=token,
        )
        yield from map(_model, found)
        token = found.token
        if not token:
            return


def model(name: str) -> RegisteredModel | None:
    """One registered model; `None` where there is none, or it is a prompt."""
    found = _ask(_client().get_registered_model, name)
    return None if found is None or found._is_prompt() else _model(found)


def tags(
    name: str | None = None, *, weights_digest: str | None = None
) -> Iterator[list[tuple[str, Mapping[str, str]]]]:
    """Every version's URI and tags, a page at a time.

    Args:
        name: Only the versions of this registered model.
        weights_digest: Only the versions that are tagged with these weights.

    Raises:
        RegistryError: The registry can't be reached.
    """
    asked = [] if name is None else [f"name = {versions.quoted(name)}"]
    if weights_digest is not None:
        asked.append(f"tags.`{tag_keys.WEIGHTS_DIGEST}` = {versions.quoted(weights_digest)}")
    for found in _search(" and ".join(asked) or None):
        yield [(uris.of_version(version.name, version.version), version.tags) for version in found]


def tagged(key: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The versions that have a tag, whatever it says: URI and tags of each.

    Raises:
        RegistryError: The registry can't be reached.
    """
    for found in _search(f"tags.`{key}` LIKE '%'"):
        for version in found:
            yield uris.of_version(version.name, version.version), version.tags


def fetch(uri: str) -> Entry | None:
    """The version behind a pinned URI; `None` when the registry has it no more.

    A logged model counts as the first version that was registered from it, if there is one.
    """
    client = _client()
    if (model_id := uris.logged_model(uri)) is not None:
        registered = _ask(client.search_model_versions, f"source_path = '{uri}'")
        if registered:
            return min((_registered(version) for version in registered), key=_age)
        model = _ask(client.get_logged_model, model_id)
        return None if model is None else _logged(model)
    named = uris.registered(uri)
    version = _ask(client.get_model_version, *named) if named else None
    return None if version is None else _registered(version)


def ancestry(uri: str) -> graph.Graph:
    """A pinned version and everything that it was made from, asked version by version."""
    versions: dict[str, graph.Version] = {}
    edges: list[graph.Edge] = []
    names: dict[str, str] = {}
    waiting = [uri]
    while waiting:
        named = waiting.pop()
        entry = fetch(named)
        names[named] = named if entry is None else entry.version.uri
        if entry is None or entry.version.uri in versions:
            continue
        versions[entry.version.uri] = entry.version
        edges += entry.edges
        waiting += [edge.parent for edge in entry.edges if edge.parent not in names]
    return graph.Graph(versions.values(), canonical_edges(edges, names))


def everything() -> graph.Graph:
    """The whole registry."""
    entries = {entry.version.uri: entry for page in pages() for entry in page}
    entries |= {entry.version.uri: entry for entry in unregistered(entries.values())}
    first: dict[str, str] = {}
    for entry in sorted(entries.values(), key=_age):
        if entry.version.model_id is not None and not _is_copy(entry):
            first.setdefault(uris.of_model(entry.version.model_id), entry.version.uri)
    edges = [edge for entry in entries.values() for edge in entry.edges]
    return graph.Graph((entry.version for entry in entries.values()), canonical_edges(edges, first))


def unregistered(entries: Iterable[Entry]) -> list[Entry]:
    """The logged models that versions name as parents and that were never registered.

    A logged model that one of these versions was registered from is not asked about.
    """
    entries = list(entries)
    found: dict[str, Entry | None] = {
        uris.of_model(entry.version.model_id): None for entry in entries if entry.version.model_id
    }
    waiting = [edge.parent for entry in entries for edge in entry.edges if edge.model_id]
    while waiting:
        uri = waiting.pop()
        if uri not in found:
            found[uri] = entry = fetch(uri)
            waiting += [edge.parent for edge in (entry.edges if entry else ()) if edge.model_id]
    return [entry for entry in found.values() if entry and entry.version.name is None]


def canonical_edges(edges: Iterable[graph.Edge], names: Mapping[str, str]) -> Iterator[graph.Edge]:
    """The edges, with the one URI that each parent goes by."""
    for edge in edges:
        yield dataclasses.replace(edge, parent=names.get(edge.parent, edge.parent))


def live_aliases(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The aliases that point now at versions of registered models, by the version's URI."""
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        model = _ask(_client().get_registered_model, name)
        for alias, number in sorted((model.aliases if model else {}).items()):
            found.setdefault(uris.of_version(name, number), []).append(alias)
    return {uri: tuple(aliases) for uri, aliases in found.items()}


def _search(
    where: str | None = None, order: str = "last_updated_timestamp DESC", page: int | None = None
) -> Iterator[Sequence[Any]]:
    """Pages of model versions, the last updated ones first; all, or those of a condition."""
    token = None
    while True:
        found = _ask(
            _client().search_model_versions,
            where,
            max_results=PAGE if page is None else page,
            order_by=[order],
            page_token=token,
        )
        yield found
        token = found.token
        if not token:
            return


def _model(found: Any) -> RegisteredModel:
    aliases = {alias: str(number) for alias, number in sorted(found.aliases.items())}
    updated = int(found.last_updated_timestamp or found.creation_timestamp or 0)
    return RegisteredModel(found.name, found.description or "", aliases, updated)


def _registered(found: Any) -> Entry:
    uri = uris.of_version(found.name, found.version)
    source = found.source or ""
    return Entry(
        _version(
            uri,
            found.tags,
            name=found.name,
            number=int(found.version),
            model_id=uris.logged_model(source),
            run_id=found.run_id or None,
            created=int(found.creation_timestamp or 0),
            updated=int(found.last_updated_timestamp or found.creation_timestamp or 0),
        ),
        _edges(uri, found.tags, copy_of=source if uris.registered(source) else None),
    )


def _logged(model: Any) -> Entry:
    uri = uris.of_model(model.model_id)
    return Entry(
        _version(
            uri,
            model.tags,
            name=None,
            number=None,
            model_id=model.model_id,
            run_id=model.source_run_id or None,
            created=int(model.creation_timestamp),
            updated=int(model.last_updated_timestamp),
        ),
        _edges(uri, model.tags, copy_of=None),
    )


def _version(uri: str, tags: Mapping[str, str], **fields: Any) -> graph.Version:
    return graph.Version(
        uri=uri,
        kind=tags.get(tag_keys.KIND, "unknown"),
        tasks=tuple(task for task in tags.get(tag_keys.TASK, "").split(",") if task),
        weights_digest=tags.get(tag_keys.WEIGHTS_DIGEST),
        recipe_digest=tags.get(tag_keys.RECIPE_DIGEST),
        **fields,
    )


def _edges(uri: str, tags: Mapping[str, str], copy_of: str | None) -> tuple[graph.Edge, ...]:
    """The original of a copy, the base, the sources: a copy carries its original's tags."""
    named = [(graph.COPY, copy_of)] if copy_of else []
    if base := tags.get(tag_keys.BASE):
        if _is_plain(base):
            named.append((graph.BASE, base))
        else:
            _logger.warning("%s: the tag %s is damaged", uri, tag_keys.BASE)
    named += [(graph.SOURCE, source) for source in _sources(uri, tags)]
    return tuple(
        graph.Edge(uri, parent, role, position, uris.logged_model(parent))
        for position, (role, parent) in enumerate(named)
    )


def _sources(uri: str, tags: Mapping[str, str]) -> Sequence[str]:
    with contextlib.suppress(errors.RegistryError):
        listed = json_documents.parse(
            tags.get(tag_keys.SOURCES, "[]"), tag_keys.SOURCES, errors.RegistryError
        )
        if isinstance(listed, list) and all(map(_is_plain, listed)):
            return listed
    # One damaged tag must not hide a whole registry; the same sources have a tag each.
    _logger.warning("%s: the tag %s is damaged", uri, tag_keys.SOURCES)
    prefix = tag_keys.of_source("")
    return sorted(
        value for key, value in tags.items() if key.startswith(prefix) and _is_plain(value)
    )


def _is_plain(text: object) -> bool:
    """Whether it is text without control characters: no URI has them, nor do all databases."""
    return isinstance(text, str) and text.isprintable()


def _is_copy(entry: Entry) -> bool:
    return any(edge.role == graph.COPY for edge in entry.edges)


def _age(entry: Entry) -> tuple[int, str, int]:
    """The order in which versions were registered, the same on every way that they are read."""
    version = entry.version
    return version.created, version.name or "", version.number or 0


def _client() -> Any:
    """A client of stores that are ready: making one opens the database."""
    database.prepare()
    return mlflow.MlflowClient()


def _ask(call: Any, *arguments: Any, **named: Any) -> Any:
    """What MLflow answers; `None` where it says that there is no such thing."""
    try:
        return call(*arguments, **named)
    except (MlflowException, requests.RequestException) as error:
        # A name that no model can have is in a damaged tag; there is no such model.
        none = {ErrorCode.Name(code) for code in (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)}
        if getattr(error, "error_code", None) in none:
            return None
        what = f"cannot read the registry {mlflow.get_registry_uri()}"
        raise failures.explain(error, what) from error
