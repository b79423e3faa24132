"""The index of versions and edges: filled from the registry, asked with recursive queries."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sql

from mlflow_breadcrumbs.ledger import alias_history, schema, stores
from mlflow_breadcrumbs.registry import catalog, graph, uris
from mlflow_breadcrumbs.support import progress

OVERLAP = 3_600_000
"""Milliseconds before the newest known update that are read again: servers' clocks differ."""

_VERSIONS, _EDGES = schema.table(schema.VersionRow), schema.table(schema.EdgeRow)


@dataclasses.dataclass(frozen=True)
class Synced:
    """What a sync did to the index."""

    read: int
    """Versions that were read from the registry."""
    added: int
    changed: int
    removed: int
    """Versions that the registry has no more; only a full sync finds them."""
    noticed: tuple[alias_history.Change, ...] = ()
    """What was done to aliases past this package, and aliases that were seen for the first time."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


def sync(
    opened: stores.Store, *, full: bool = False, show: progress.Progress = progress.silent
) -> Synced:
    """Bring the index up to date with the registry.

    Args:
        opened: The ledger.
        full: Read every version. Without it, what MLflow updated since the last sync: it finds new
            versions, but neither deleted ones nor changed tags, which MLflow counts as no update.
        show: Told about each page of versions.

    Raises:
        RegistryError: The registry can't be read.
        LedgerError: The ledger can't be written.
    """
    with opened.reading() as connection:
        known = connection.scalar(sql.select(schema.LedgerRow.synced))
    since = None if full or known is None else known - OVERLAP
    total = Synced(0, 0, 0, 0)
    seen: set[str] = set()
    newest = known or 0
    named: list[catalog.Entry] = []
    with show("sync the ledger", total=None, unit="versions") as advance:
        for page in catalog.pages(since):
            total = _plus(total, write(opened, page))
            seen |= {entry.version.uri for entry in page}
            newest = max(newest, *(entry.version.updated for entry in page))
            named += [entry for entry in page if any(edge.model_id for edge in entry.edges)]
            advance(len(page))
    others = catalog.unregistered(named)
    total = _plus(total, write(opened, others))
    seen |= {entry.version.uri for entry in others}
    with opened.writing() as connection:
        removed = _remove_others(connection, seen) if since is None else 0
        _name_parents(connection)
        connection.execute(sql.update(schema.LedgerRow).values(synced=newest))
    return dataclasses.replace(total, removed=removed)


def write(opened: stores.Store, entries: Sequence[catalog.Entry]) -> Synced:
    """Store versions and their edges where they are new or differ, in one transaction."""
    rows = {entry.version.uri: _row(entry.version) for entry in entries}
    edges = {
        entry.version.uri: [dataclasses.asdict(edge) for edge in entry.edges] for entry in entries
    }
    with opened.writing() as connection:
        stored = _stored(connection, list(rows))
        new = [uri for uri in rows if uri not in stored]
        changed = [uri for uri in stored if stored[uri] != (rows[uri], _as_named(edges[uri]))]
        if changed:
            _delete(connection, changed)
        if written := new + changed:
            connection.execute(sql.insert(_VERSIONS), [rows[uri] for uri in written])
        if lines := [line for uri in written for line in edges[uri]]:
            connection.execute(sql.insert(_EDGES), lines)
    return Synced(len(rows), len(new), len(changed), 0)


def ancestors(connection: sql.Connection, uri: str) -> graph.Graph:
    """A version and everything that it was made from."""
    reached = _reached(uri, start=_EDGES.c.child, end=_EDGES.c.parent)
    return _graph(connection, reached, _EDGES.c.child)


def descendants(connection: sql.Connection, uri: str) -> graph.Graph:
    """A version and everything that was made from it."""
    reached = _reached(uri, start=_EDGES.c.parent, end=_EDGES.c.child)
    return _graph(connection, reached, _EDGES.c.parent)


def count(connection: sql.Connection) -> int:
    """How many versions the index holds."""
    return connection.scalar(sql.select(sql.func.count()).select_from(_VERSIONS)) or 0


def canonical_uri(connection: sql.Connection, uri: str) -> str:
    """The URI that a version goes by: a logged model's is that of its first version."""
    found = connection.scalar(_first_version(uris.short(uri)))
    return uri if found is None else str(found)


def _reached(uri: str, *, start: Any, end: Any) -> sql.CTE:
    """The URIs that edges lead to; UNION drops what was reached before, so that it ends."""
    reached = sql.select(sql.literal(uri, sql.Text).label("uri")).cte("reached", recursive=True)
    return reached.union(sql.select(end).join(reached, start == reached.c.uri))


def _graph(connection: sql.Connection, reached: sql.CTE, along: Any) -> graph.Graph:
    versions = connection.execute(
        sql.select(_VERSIONS).join(reached, _VERSIONS.c.uri == reached.c.uri)
    )
    edges = connection.execute(sql.select(_EDGES).join(reached, along == reached.c.uri))
    return graph.Graph(
        (_version(row) for row in versions), (graph.Edge(**row._mapping) for row in edges)
    )


def _stored(
    connection: sql.Connection, uris: Sequence[str]
) -> dict[str, tuple[dict[str, Any], list[tuple[Any, ...]]]]:
    """What the index has of these versions, with their edges as they were named."""
    if not uris:
        return {}
    found = connection.execute(sql.select(_VERSIONS).where(_VERSIONS.c.uri.in_(uris)))
    rows = {row.uri: dict(row._mapping) for row in found}
    edges: dict[str, list[dict[str, Any]]] = {uri: [] for uri in rows}
    if rows:
        lines = connection.execute(
            sql.select(_EDGES)
            .where(_EDGES.c.child.in_(list(rows)))
            .order_by(_EDGES.c.child, _EDGES.c.position)
        )
        for line in lines:
            edges[line.child].append(dict(line._mapping))
    return {uri: (row, _as_named(edges[uri])) for uri, row in rows.items()}


def _as_named(edges: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Edges to compare: a logged model stands for itself, whatever it goes by in the index."""
    return [
        (edge["role"], uris.of_model(edge["model_id"]) if edge["model_id"] else edge["parent"])
        for edge in edges
    ]


def _delete(connection: sql.Connection, uris: Sequence[str]) -> None:
    connection.execute(sql.delete(_EDGES).where(_EDGES.c.child.in_(uris)))
    connection.execute(sql.delete(_VERSIONS).where(_VERSIONS.c.uri.in_(uris)))


def _remove_others(connection: sql.Connection, seen: set[str]) -> int:
    """Take out what the registry has no more."""
    gone = [uri for uri in connection.scalars(sql.select(_VERSIONS.c.uri)) if uri not in seen]
    for at in range(0, len(gone), catalog.PAGE):
        _delete(connection, gone[at : at + catalog.PAGE])
    return len(gone)


def _name_parents(connection: sql.Connection) -> None:
    """Give each logged model that is a parent the URI it goes by, as `catalog.fetch` does."""
    models = connection.scalars(
        sql.select(_EDGES.c.model_id).where(_EDGES.c.model_id.is_not(None)).distinct()
    ).all()
    for model in models:
        uri = connection.scalar(_first_version(model)) or uris.of_model(model)
        connection.execute(
            sql.update(_EDGES)
            .where(_EDGES.c.model_id == model, _EDGES.c.parent != uri)
            .values(parent=uri)
        )


def _first_version(model_id: str) -> sql.Select[Any]:
    """The version that was registered first from a logged model."""
    return (
        sql.select(_VERSIONS.c.uri)
        .where(_VERSIONS.c.model_id == model_id, _VERSIONS.c.name.is_not(None))
        .order_by(_VERSIONS.c.created, _VERSIONS.c.name, _VERSIONS.c.number)
        .limit(1)
    )


def _row(version: graph.Version) -> dict[str, Any]:
    row = {field.name: getattr(version, field.name) for field in dataclasses.fields(version)}
    return row | {"tasks": json.dumps(version.tasks)}


def _version(row: sql.Row[Any]) -> graph.Version:
    return graph.Version(**dict(row._mapping) | {"tasks": tuple(json.loads(row.tasks))})


def _plus(one: Synced, other: Synced) -> Synced:
    counts = ("read", "added", "changed", "removed")
    return Synced(*(getattr(one, count) + getattr(other, count) for count in counts))
