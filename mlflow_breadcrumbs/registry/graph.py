"""Versions and what they were made from, as a graph; where it was read does not matter."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

BASE, SOURCE, COPY = "base", "source", "copy"
"""What a parent is to its child; a copy has the parent's own weights."""


@dataclasses.dataclass(frozen=True)
class Version:
    """A registered version, or a logged model that was merged without being registered."""

    uri: str
    """`models:/NAME/VERSION` or `models:/m-…`."""
    name: str | None
    number: int | None
    kind: str
    """`merge`, `finetune`, `import`, or `unknown`: not made by this package."""
    tasks: tuple[str, ...]
    weights_digest: str | None
    recipe_digest: str | None
    model_id: str | None
    run_id: str | None
    created: int
    """Milliseconds since 1970, as MLflow has it."""
    updated: int


@dataclasses.dataclass(frozen=True)
class Edge:
    """`child` was made from `parent`."""

    child: str
    parent: str
    role: str
    position: int
    """Among the parents of the child, from 0."""
    model_id: str | None = None
    """The logged model, where the child names one instead of a registered version."""


class Graph:
    """Versions by URI, and the edges between them.

    A parent that no version stands for was deleted from the registry.
    """

    def __init__(self, versions: Iterable[Version], edges: Iterable[Edge]) -> None:
        self.versions: Mapping[str, Version] = {version.uri: version for version in versions}
        self.edges = tuple(sorted(edges, key=lambda edge: (edge.child, edge.position)))
        self._parents: dict[str, list[Edge]] = defaultdict(list)
        self._children: dict[str, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            self._parents[edge.child].append(edge)
            self._children[edge.parent].append(edge)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Graph)
            and self.versions == other.versions
            and self.edges == other.edges
        )

    __hash__ = None  # type: ignore[assignment]  # compared by content, which is not frozen

    def parents(self, uri: str) -> tuple[Edge, ...]:
        """The edges to what a version was made from, in order."""
        return tuple(self._parents.get(uri, ()))

    def children(self, uri: str) -> tuple[Edge, ...]:
        """The edges to what was made from a version."""
        return tuple(self._children.get(uri, ()))

    def ancestors(self, uri: str) -> "Graph":
        """A version and everything that it was made from."""
        found = _reach(uri, lambda at: (edge.parent for edge in self.parents(at)))
        return self._part(found, {edge for at in found for edge in self.parents(at)})

    def descendants(self, uri: str) -> "Graph":
        """A version and everything that was made from it, and the edges between these."""
        found = _reach(uri, lambda at: (edge.child for edge in self.children(at)))
        return self._part(found, {edge for at in found for edge in self.children(at)})

    def _part(self, uris: set[str], edges: Iterable[Edge]) -> "Graph":
        return Graph((self.versions[uri] for uri in uris if uri in self.versions), edges)


def _reach(start: str, following: Callable[[str], Iterable[str]]) -> set[str]:
    """Everything that `following` leads to; each is asked once, so that a cycle ends."""
    found, waiting = {start}, [start]
    while waiting:
        for uri in following(waiting.pop()):
            if uri not in found:
                found.add(uri)
                waiting.append(uri)
    return found
