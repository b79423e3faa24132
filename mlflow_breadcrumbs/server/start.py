"""The first page: the newest merged versions, and the registered models."""

import dataclasses
import itertools
from typing import Any

from mlflow_breadcrumbs.audit import inventory
from mlflow_breadcrumbs.registry import catalog, graph, run_files, uris
from mlflow_breadcrumbs.server import past, visibility
from mlflow_breadcrumbs.support import wording


@dataclasses.dataclass(frozen=True)
class ListedModel:
    """A registered model, as a line."""

    name: str
    description: str
    aliases: dict[str, str]
    """The version's number by alias."""
    updated: str
    """UTC."""


@dataclasses.dataclass(frozen=True)
class Overview:
    """What the first page says."""

    versions: tuple[inventory.ListedVersion, ...]
    """The newest merged ones; `signed` is what the history says."""
    more: bool
    """Whether there are older ones."""
    models: tuple[ListedModel, ...]
    more_models: bool

    def to_dict(self) -> dict[str, Any]:
        """The page as JSON."""
        return dataclasses.asdict(self)


def overview(sight: visibility.Sight, *, most: int) -> Overview:
    """Gather the first page, with a number of requests that does not grow with the registry.

    Args:
        sight: Of the one who asks.
        most: Versions, and models, that are listed.

    Raises:
        RegistryError: The registry can't be read.
    """
    seen = [model for model in catalog.models() if sight.model(model.name)]
    aliases = {model.name: model.aliases for model in seen}
    merges = (
        entry
        for entry in catalog.merges(page=most + 1)
        if entry.version.name is not None and sight.model(entry.version.name)
    )
    entries = list(itertools.islice(merges, most + 1))
    return Overview(
        versions=_listed(entries[:most], aliases, sight),
        more=len(entries) > most,
        models=tuple(_model(model) for model in seen[:most]),
        more_models=len(seen) > most,
    )


def _listed(
    entries: list[catalog.Entry], aliases: dict[str, Any], sight: visibility.Sight
) -> tuple[inventory.ListedVersion, ...]:
    runs = run_files.read_runs(entry.version.run_id for entry in entries if entry.version.run_id)
    found = {
        run_id: run.data.metrics
        for run_id, run in runs.items()
        if sight.experiment(run.info.experiment_id)
    }
    signings = past.of_versions([entry.version.uri for entry in entries], ("sign",))
    signed = None if signings is None else {event.subject for event in signings}
    return tuple(
        inventory.ListedVersion(
            uri=version.uri,
            sources=tuple(sight.shown(edge.parent) for edge in edges if edge.role == graph.SOURCE),
            average_normalized_accuracy=found.get(version.run_id or "", {}).get(inventory.METRIC),
            aliases=tuple(
                alias
                for alias, number in aliases.get(str(version.name), {}).items()
                if uris.of_version(str(version.name), number) == version.uri
            ),
            signed=None if signed is None else version.uri in signed,
            created=wording.moment_of(version.created),
        )
        for version, edges in entries
    )


def _model(model: catalog.RegisteredModel) -> ListedModel:
    updated = wording.moment_of(model.updated)
    return ListedModel(model.name, model.description, dict(model.aliases), updated)
