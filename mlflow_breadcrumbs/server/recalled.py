"""Which versions were recalled, and which descend from one that was."""

from collections.abc import Iterator, Mapping

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import reading
from mlflow_breadcrumbs.promotion import facts, recalls
from mlflow_breadcrumbs.registry import catalog, graph, tag_keys
from mlflow_breadcrumbs.server import visibility


def standing() -> Mapping[str, facts.Recall]:
    """Every recall that stands, by the digest of the weights; none where the history has a fault.

    The faults of the history are shown by the pages that read more of it.

    Raises:
        RegistryError: The registry can't be read.
    """
    try:
        return _standing()
    except errors.LedgerError:
        return {}


def listed(sight: visibility.Sight) -> list[dict[str, str]]:
    """Every recall that stands, for clients to hold weights against, without what may not be seen.

    Raises:
        RegistryError: The registry can't be read.
        LedgerError: The history can't be read.
    """
    return [
        {
            "uri": sight.shown(entry.uri),
            "weights_digest": entry.weights_digest,
            "reason": entry.reason if sight.version(entry.uri) else visibility.HIDDEN,
            "actor": entry.actor,
            "time": entry.time,
        }
        for entry in _standing().values()
    ]


def _standing() -> Mapping[str, facts.Recall]:
    kinds = (recalls.RECALLED, recalls.WITHDRAWN)
    return recalls.standing(reading.of_kinds(kinds, catalog.tagged(tag_keys.RECALLED)))


def touched(known: graph.Graph, said: Mapping[str, facts.Recall]) -> dict[str, list[facts.Recall]]:
    """The recalled versions and all that descend from them: which recalls touch each.

    Args:
        known: Versions and what they were made from.
        said: What `standing` gave.
    """
    found: dict[str, list[facts.Recall]] = {}
    for version in known.versions.values():
        entry = said.get(version.weights_digest or "")
        if entry is not None:
            for uri in known.descendants(version.uri).versions:
                if entry not in found.setdefault(uri, []):
                    found[uri].append(entry)
    return found


def told(entry: facts.Recall, weights_digest: str | None, sight: visibility.Sight) -> str:
    """A recall in a sentence about a version with these weights, without what may not be seen."""
    if not sight.version(entry.uri):
        return "It was made from a version that was recalled, and is not visible to you."
    if entry.weights_digest == weights_digest:
        return f"Its weights were recalled by {entry.actor}: {entry.reason}"
    return f"It was made from {entry.uri}, which was recalled by {entry.actor}: {entry.reason}"


def of_version(uri: str, sight: visibility.Sight) -> Iterator[tuple[facts.Recall, str]]:
    """The recalls that touch one version, each with its sentence.

    Raises:
        RegistryError: The registry can't be read.
    """
    said = standing()
    if not said:
        return
    known = catalog.ancestry(uri)
    own = known.versions[uri].weights_digest if uri in known.versions else None
    for version in known.versions.values():
        entry = said.get(version.weights_digest or "")
        if entry is not None:
            yield entry, told(entry, own, sight)
