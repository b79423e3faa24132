"""Which merged versions there are: of what, how good, under which aliases, signed or not, when."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.audit import signing
from mlflow_breadcrumbs.registry import catalog, graph, run_files, versions
from mlflow_breadcrumbs.support import progress, wording

METRIC = "average_normalized_accuracy"


@dataclasses.dataclass(frozen=True)
class ListedVersion:
    """A merged version, as a line of the list."""

    uri: str
    sources: tuple[str, ...]
    """URIs, in their order."""
    average_normalized_accuracy: float | None
    """Of the run that merged it; `None` where it was not measured, or the run is gone."""
    aliases: tuple[str, ...]
    signed: bool | None
    """Whether it carries a signature, of whatever key; `None` where its files can't be listed."""
    created: str
    """When it was registered, UTC."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Inventory:
    """The newest merged versions."""

    versions: tuple[ListedVersion, ...]
    more: bool
    """Whether there are older ones."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"versions": [each.to_dict() for each in self.versions], "more": self.more}


def merged(
    name: str | None = None, *, most: int = 50, show: progress.Progress = progress.silent
) -> Inventory:
    """The newest merged versions, of one registered model or of all.

    The registry is searched by tag, a page at a time, and no farther than asked; each version that
    is listed costs a few requests, for its signature.

    Args:
        name: of the registered model; `None`: of all.
        most: how many versions.
        show: is told about each version.

    Raises:
        RegistryError: the registry can't be reached, or the name can't be one.
    """
    if name is not None:
        versions.check_name(name)
    entries = list(itertools.islice(catalog.merges(name), most + 1))
    more, entries = len(entries) > most, entries[:most]
    aliases = catalog.live_aliases(entry.version.name for entry in entries if entry.version.name)
    runs = [entry.version.run_id for entry in entries if entry.version.run_id]
    metrics = run_files.read_metric(runs, METRIC)
    with show("look at the versions", total=len(entries), unit="versions") as advance:
        found: list[ListedVersion] = []
        for entry in entries:
            found.append(_listed(entry, aliases.get(entry.version.uri, ()), metrics))
            advance(1)
    return Inventory(tuple(found), more)


def _listed(
    entry: catalog.Entry, aliases: Sequence[str], metrics: dict[str, float]
) -> ListedVersion:
    version = entry.version
    return ListedVersion(
        uri=version.uri,
        sources=tuple(edge.parent for edge in entry.edges if edge.role == graph.SOURCE),
        average_normalized_accuracy=metrics.get(version.run_id or ""),
        aliases=tuple(aliases),
        signed=_is_signed(version.uri),
        created=wording.moment_of(version.created),
    )


def _is_signed(uri: str) -> bool | None:
    try:
        return versions.has_file(versions.resolve(uri), signing.FILE)
    except errors.UnreachableError:
        raise
    except errors.RegistryError:
        return None
