"""The graph of what a version was made from and what was made from it, with a place for each.

The places are computed here, so that thousands of versions are drawn at once: the version itself is
in column 0, what it was made from left of it, what was made from it right of it. The page has them
once, as a table, which is what the script draws.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlflow_breadcrumbs.registry import catalog, graph, uris
from mlflow_breadcrumbs.server import kept_files, model_page, recalled, visibility

Neighbours = Callable[[str], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Node:
    """A version in the graph."""

    id: str
    """In this answer alone."""
    uri: str
    """Or that it may not be seen; then kind, tasks and aliases are empty."""
    visible: bool
    kind: str
    """`merge`, `finetune`, `import`, `unknown`, or `missing`: the registry has it no more."""
    tasks: tuple[str, ...]
    aliases: tuple[str, ...]
    """That point at it now."""
    column: int
    """Steps from the version asked about, on the longest way: below 0 what it was made from."""
    row: int
    """From 0, in its column."""
    recall: str = ""
    """`recalled`; `suspect`: it descends from one that was; else empty."""


@dataclasses.dataclass(frozen=True)
class Arrow:
    """What was made (`child`) of what (`parent`), by the nodes' ids."""

    child: str
    parent: str
    role: str


@dataclasses.dataclass(frozen=True)
class LineagePage:
    """What the page says."""

    uri: str
    name: str
    number: str
    nodes: tuple[Node, ...]
    """By column, then by row."""
    edges: tuple[Arrow, ...]

    def made_from(self) -> dict[str, str]:
        """What each was made from, by its id, as a row of the table has it: `v0:base v1:source`."""
        found: dict[str, list[str]] = defaultdict(list)
        for edge in self.edges:
            found[edge.child].append(f"{edge.parent}:{edge.role}")
        return {child: " ".join(parents) for child, parents in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """The page as JSON."""
        return dataclasses.asdict(self)


def gather(name: str, number: str, sight: visibility.Sight) -> LineagePage:
    """Gather the graph around a version, with a number of requests that does not grow with it.

    Raises:
        AbsentError: There is no such version, or it may not be seen.
        RegistryError: The registry can't be read.
    """
    model_page.find(name, sight)
    root = uris.of_version(name, int(number))
    known = catalog.everything()
    if root not in known.versions:
        raise kept_files.absent(root)
    above, below = known.ancestors(root), known.descendants(root)
    columns = {uri: -depth for uri, depth in _depths(root, _parents(known)).items()}
    columns |= _depths(root, _children(known))
    edges = dict.fromkeys((*above.edges, *below.edges))
    placed = _placed(columns, edges)
    live = model_page.live()
    ids = {uri: f"v{position}" for position, uri in enumerate(placed)}
    marks = _marks(known)
    nodes = [
        dataclasses.replace(node, recall=marks.get(uri, "") if node.visible else "")
        for uri in placed
        for node in [_node(ids[uri], uri, placed[uri], known, live, sight)]
    ]
    arrows = [Arrow(ids[edge.child], ids[edge.parent], edge.role) for edge in edges]
    return LineagePage(root, name, number, tuple(nodes), tuple(arrows))


def _marks(known: graph.Graph) -> dict[str, str]:
    """What is to be said of a version: that it was recalled, or descends from one that was."""
    said = recalled.standing()
    own = {uri: said.get(version.weights_digest or "") for uri, version in known.versions.items()}
    touched = recalled.touched(known, said) if said else {}
    return {uri: "recalled" if own[uri] else "suspect" for uri in touched}


def _parents(known: graph.Graph) -> Neighbours:
    return lambda uri: dict.fromkeys(edge.parent for edge in known.parents(uri))


def _children(known: graph.Graph) -> Neighbours:
    return lambda uri: dict.fromkeys(edge.child for edge in known.children(uri))


def _depths(root: str, following: Neighbours) -> dict[str, int]:
    """How far each is from the root on the longest way; what is in a cycle, on some way."""
    reached, waiting = {root}, [root]
    before: dict[str, int] = defaultdict(int)
    while waiting:
        for uri in following(waiting.pop()):
            before[uri] += 1
            if uri not in reached:
                reached.add(uri)
                waiting.append(uri)
    depths, ready = {root: 0}, [root]
    while ready:
        at = ready.pop()
        for uri in following(at):
            depths[uri] = max(depths.get(uri, 0), depths[at] + 1) if uri != root else 0
            before[uri] -= 1
            if before[uri] == 0:
                ready.append(uri)
    return {uri: depths.get(uri, 1) for uri in reached}


def _placed(columns: Mapping[str, int], edges: Iterable[graph.Edge]) -> dict[str, tuple[int, int]]:
    """Column and row of each; who is beside whom follows the column nearer to the root."""
    beside: dict[str, list[str]] = defaultdict(list)
    for edge in edges:
        beside[edge.child].append(edge.parent)
        beside[edge.parent].append(edge.child)
    listed: dict[int, list[str]] = defaultdict(list)
    for uri in sorted(columns, key=uris.order):
        listed[columns[uri]].append(uri)
    rows: dict[str, int] = {}
    for column in sorted(listed, key=abs):
        order = sorted(listed[column], key=lambda uri: _mean(rows, beside[uri]))
        rows |= {uri: row for row, uri in enumerate(order)}
    found = {uri: (columns[uri], rows[uri]) for uri in columns}
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def _mean(rows: Mapping[str, int], others: Iterable[str]) -> float:
    known = [rows[uri] for uri in others if uri in rows]
    return sum(known) / len(known) if known else 0.0


def _node(
    identifier: str,
    uri: str,
    place: tuple[int, int],
    known: graph.Graph,
    live: Mapping[str, tuple[str, ...]],
    sight: visibility.Sight,
) -> Node:
    version = known.versions.get(uri)
    if not sight.version(uri):
        return Node(identifier, visibility.HIDDEN, False, "", (), (), *place)
    return Node(
        id=identifier,
        uri=uri,
        visible=True,
        kind="missing" if version is None else version.kind,
        tasks=() if version is None else version.tasks,
        aliases=live.get(uri, ()),
        column=place[0],
        row=place[1],
    )
