"""The ancestry as text for other programs to draw: Mermaid and Graphviz's DOT.

Children stand above what they were made from. An edge's label says the role; a version that is gone
has a dashed border, so that the picture reads without colour.
"""

from mlflow_breadcrumbs.registry import graph
from mlflow_breadcrumbs.support import escaping


def mermaid(known: graph.Graph) -> str:
    """A Mermaid flowchart."""
    ids = _ids(known)
    lines = ["flowchart TD"]
    for uri, name in ids.items():
        label = "<br>".join(_escaped(line) for line in _label(known, uri))
        lines.append(f'    {name}["{label}"]')
        if uri not in known.versions:
            lines.append(f"    style {name} stroke-dasharray: 5 5")
    for edge in known.edges:
        lines.append(f"    {ids[edge.child]} -- {edge.role} --> {ids[edge.parent]}")
    return "\n".join(lines) + "\n"


def dot(known: graph.Graph) -> str:
    """A directed graph in DOT."""
    ids = _ids(known)
    lines = ["digraph lineage {", "    node [shape=box];"]
    for uri, name in ids.items():
        label = "\\n".join(
            line.replace("\\", "\\\\").replace('"', '\\"') for line in _label(known, uri)
        )
        style = "" if uri in known.versions else ", style=dashed"
        lines.append(f'    {name} [label="{label}"{style}];')
    for edge in known.edges:
        lines.append(f'    {ids[edge.child]} -> {ids[edge.parent]} [label="{edge.role}"];')
    return "\n".join([*lines, "}"]) + "\n"


def _ids(known: graph.Graph) -> dict[str, str]:
    """A short name for each version, the missing ones too."""
    uris = set(known.versions) | {edge.parent for edge in known.edges}
    return {uri: f"v{number}" for number, uri in enumerate(sorted(uris))}


def _label(known: graph.Graph, uri: str) -> list[str]:
    version = known.versions.get(uri)
    if version is None:
        return [escaping.line(uri), "missing"]
    said = [uri, version.kind, *([", ".join(version.tasks)] if version.tasks else [])]
    return [escaping.line(text) for text in said]


def _escaped(text: str) -> str:
    """Mermaid's entities: `#` begins one, and quotes and angle brackets end a label."""
    return "".join(f"#{ord(sign)};" if sign in '#"<>' else sign for sign in text)
