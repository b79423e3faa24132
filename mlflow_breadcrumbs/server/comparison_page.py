"""Two versions side by side, by their records; `diff` compares the weights too."""

import dataclasses
from typing import Any

from mlflow_breadcrumbs.lineage import contents, described, statement
from mlflow_breadcrumbs.registry import run_files, uris, versions
from mlflow_breadcrumbs.server import kept_files, visibility


@dataclasses.dataclass(frozen=True)
class ComparisonPage:
    """What the page says; the rows are those of `described.Described`."""

    one: str | None
    """The URI, pinned; `None` where no two versions are named."""
    other: str | None
    sources: tuple[dict[str, Any], ...]
    recipe: tuple[dict[str, Any], ...]
    metrics: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """The page as JSON."""
        return dataclasses.asdict(self)


def gather(one: str, other: str, sight: visibility.Sight) -> ComparisonPage:
    """Gather the page.

    Args:
        one: A version, `NAME/VERSION` or `NAME@ALIAS`, with or without `models:/`.
        other: Another; where either is empty, the page asks for it.
        sight: Of the one who asks.

    Raises:
        AbsentError: One of them is not there, or may not be seen.
        RegistryError: One of them names no version.
    """
    if not (one and other):
        return ComparisonPage(None, None, (), (), ())
    pair = (_resolve(one, sight), _resolve(other, sight))
    runs = run_files.read_runs(each.run_id for each in pair if each.run_id)
    seen = {key: run for key, run in runs.items() if sight.experiment(run.info.experiment_id)}
    metrics = [seen[run_id].data.metrics if run_id in seen else {} for run_id in _runs(pair)]
    found = described.compare(pair, [_stated(each) for each in pair], metrics)
    sources = tuple({**row, "uri": sight.shown(row["uri"])} for row in found.sources)
    return ComparisonPage(pair[0].uri, pair[1].uri, sources, found.recipe, found.metrics)


def _resolve(given: str, sight: visibility.Sight) -> versions.ResolvedVersion:
    parts = uris.parse(uris.full(given.strip()))
    if parts.name is None or not sight.model(parts.name):
        raise kept_files.absent(given.strip())
    return kept_files.resolve(given.strip())


def _runs(pair: tuple[versions.ResolvedVersion, ...]) -> list[str]:
    return [each.run_id or "" for each in pair]


def _stated(resolved: versions.ResolvedVersion) -> statement.Statement | None:
    found = contents.lineage_of(resolved)
    return found if isinstance(found, statement.Statement) else None
