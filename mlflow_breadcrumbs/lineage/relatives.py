"""What a version was made from, and what was made from it: from MLflow alone, or from the ledger.

Both ways read the same graph, so they give the same answers once the ledger is synced.
"""

import dataclasses
from typing import Any, Literal

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.registry import catalog, graph, uris, versions

Where = Literal["mlflow", "ledger"]


@dataclasses.dataclass(frozen=True)
class Ancestor:
    """A version in the tree, with the versions that it was made from."""

    uri: str
    role: str
    """What it is to its child: `base`, `source`, `copy`, or `` at the root."""
    kind: str
    """`merge`, `finetune`, `import` or `unknown`; `missing` when the registry lost it."""
    tasks: tuple[str, ...]
    weights_digest: str | None
    parents: tuple["Ancestor", ...]
    shown_above: bool = False
    """The version's own parents are drawn at an earlier place in the tree."""

    def to_dict(self) -> dict[str, Any]:
        """The tree for `--json`."""
        return {
            "uri": self.uri,
            "role": self.role,
            "kind": self.kind,
            "tasks": list(self.tasks),
            "weights_digest": self.weights_digest,
            "shown_above": self.shown_above,
            "parents": [parent.to_dict() for parent in self.parents],
        }


@dataclasses.dataclass(frozen=True)
class Affected:
    """A version that descends from the one that was asked about."""

    uri: str
    kind: str
    direct: bool
    """It was made from that very version, not only through others."""
    roles: tuple[str, ...]
    """What its affected parents are to it."""
    via: tuple[str, ...]
    """Its parents that are that version, or affected themselves."""
    aliases: tuple[str, ...]
    """That point at it now."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


def tree(uri: str, where: Where = "mlflow") -> Ancestor:
    """The version behind a URI and everything that it was made from.

    A version that is reached twice is expanded once. A version that is gone stays in the tree as
    `missing`, since its descendants' tags still name it.

    Raises:
        RegistryError: The URI can't be resolved, or the registry can't be read.
        LedgerError: The ledger can't be used, or doesn't know the version.
    """
    known, pinned = ancestry(uri, where)
    return _ancestor(known, pinned, "", set())


def ancestry(uri: str, where: Where = "mlflow") -> tuple[graph.Graph, str]:
    """The same as a graph, and the pinned URI in it."""
    pinned = _pinned(uri)
    if where == "mlflow":
        return catalog.ancestry(pinned), pinned
    return _known(ledger.ancestry(pinned), pinned), pinned


def impact(uri: str, where: Where = "mlflow") -> tuple[Affected, ...]:
    """Everything that descends from a version, directly or through others, nearest first.

    A version that was deleted meanwhile takes its edges with it: what was made from it is found
    only where it names an ancestor itself. A version that is gone may be asked about.

    Raises:
        RegistryError: The URI can't be resolved, or the registry can't be read.
        LedgerError: The ledger can't be used.
    """
    pinned = _pinned(uri, gone=True)
    if where == "mlflow":
        known = catalog.everything().descendants(pinned)
    else:
        known = ledger.descendants(pinned)
    if pinned not in known.versions and not known.edges:
        raise errors.RegistryError(
            f"{pinned} is neither in the registry nor named by any version in it. Check the URI, "
            "or run `mlflow-breadcrumbs ledger sync` if you ask the ledger"
        )
    order = _nearest_first(known, pinned)
    live = catalog.live_aliases(
        name for at in order if (name := known.versions[at].name) is not None
    )
    return tuple(
        Affected(
            uri=at,
            kind=known.versions[at].kind,
            direct=any(edge.parent == pinned for edge in known.parents(at)),
            roles=tuple(dict.fromkeys(edge.role for edge in known.parents(at))),
            via=tuple(dict.fromkeys(edge.parent for edge in known.parents(at))),
            aliases=live.get(at, ()),
        )
        for at in order
    )


def _pinned(uri: str, gone: bool = False) -> str:
    """The one URI that a version goes by; that of a deleted one may be allowed too."""
    uri = uris.full(uri)
    try:
        found = versions.resolve(uri)
    except errors.RegistryError:
        if gone and uris.registered(uri) and catalog.fetch(uri) is None:
            return uri
        raise
    if found.name is not None:
        return found.uri
    entry = catalog.fetch(found.uri)
    return found.uri if entry is None else entry.version.uri


def _known(found: graph.Graph, uri: str) -> graph.Graph:
    if uri not in found.versions:
        raise errors.LedgerError(
            f"the ledger does not know {uri}; run `mlflow-breadcrumbs ledger sync`"
        )
    return found


def _nearest_first(known: graph.Graph, start: str) -> list[str]:
    """The descendants by the number of steps, then by URI."""
    found, layer = {start}, [start]
    order: list[str] = []
    while layer:
        following = {edge.child for at in layer for edge in known.children(at)} - found
        layer = sorted(following)
        found |= following
        order += layer
    return order


def _ancestor(known: graph.Graph, uri: str, role: str, seen: set[str]) -> Ancestor:
    version = known.versions.get(uri)
    if version is None:
        return Ancestor(uri, role, "missing", (), None, ())
    edges = known.parents(uri)
    repeated = uri in seen and bool(edges)
    seen.add(uri)
    return Ancestor(
        uri=uri,
        role=role,
        kind=version.kind,
        tasks=version.tasks,
        weights_digest=version.weights_digest,
        parents=()
        if repeated
        else tuple(_ancestor(known, edge.parent, edge.role, seen) for edge in edges),
        shown_above=repeated,
    )
