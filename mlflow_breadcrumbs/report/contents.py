"""All that is known of a merged version, gathered for one page; `page` makes the HTML of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import shortfalls
from mlflow_breadcrumbs.lineage import contents, relatives
from mlflow_breadcrumbs.registry import run_files, tag_keys, versions
from mlflow_breadcrumbs.search import compare, study_records
from mlflow_breadcrumbs.support import progress, scales

STUDIES = ("sweep", "scaling", "blame")
"""Folders of a merge's run whose pictures belong on the page."""
BEFORE = ("sweep", "scaling")
"""Those that may lie in a run of their own, which is found by the base and the sources."""


@dataclasses.dataclass(frozen=True)
class Savings:
    """What one model costs in place of the sources: bytes, and seconds of evaluation."""

    models: int
    stored_before: int
    """Of the sources' checkpoints."""
    stored_after: int
    """Of the merged checkpoint."""
    served_before: int
    """Of the sources' weights in memory, float32, one server each."""
    served_after: int
    evaluated_before: float | None
    """Seconds that the sources took for the images of their own tasks; `None` if not recorded."""
    evaluated_after: float | None
    """Seconds that the merged version took for the images of all of them."""


@dataclasses.dataclass(frozen=True)
class MergedSource:
    """The base or a source, as the lineage has it."""

    role: str
    uri: str
    tasks: tuple[str, ...]
    weight: float | None
    dtypes: tuple[str, ...]
    weights_digest: str


@dataclasses.dataclass(frozen=True)
class StudyPictures:
    """The pictures of one study, and the run that they are from."""

    run_id: str
    pictures: Mapping[str, bytes]
    """PNG by title."""


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What the page says."""

    uri: str
    run_id: str | None
    weights_digest: str | None
    recipe: Mapping[str, Any]
    recipe_digest: str
    inputs: tuple[MergedSource, ...]
    """The base, then the sources."""
    evaluation: tuple[Mapping[str, Any], ...]
    """One row per task, as in `scorecard.Scorecard.rows`; empty if nothing was measured."""
    comparison: Mapping[str, Any] | None
    """As in `compare.Comparison.to_dict`; `None` where the sources can't be read any more."""
    heat_map: bytes | None
    no_comparison: str
    """Why there is no comparison."""
    savings: Savings | None
    studies: Mapping[str, StudyPictures]
    """By study: those of `STUDIES` that the version's run has, or one of its base and sources."""
    tree: relatives.Ancestor
    run: Mapping[str, Any]
    """When, by whom, on what: the statement's `metadata` and `environment`."""

    @property
    def average_accuracy(self) -> float | None:
        """Of the merged version over its tasks; `None` where one has another metric."""
        if any("accuracy" not in row for row in self.evaluation):
            return None
        return _mean(self.evaluation, "accuracy")

    @property
    def table(self) -> tuple[Mapping[str, Any], ...]:
        """The evaluation as it is shown."""
        return tuple(scales.shown(row) for row in self.evaluation)

    @property
    def things(self) -> str:
        """What the models were measured on, in a word."""
        return "data" if any("evaluator" in row for row in self.evaluation) else "images"

    @property
    def average_normalized_accuracy(self) -> float:
        """Of the merged version over its tasks."""
        return _mean(self.evaluation, "normalized_accuracy")

    @property
    def worst(self) -> Mapping[str, Any]:
        """The row of the task that kept the least of its source's accuracy."""
        return min(self.evaluation, key=lambda row: float(row["normalized_accuracy"]))

    @property
    def warnings(self) -> tuple[str, ...]:
        """The tasks that it is of no use for, a sentence each."""
        return tuple(f"{said}." for said in shortfalls.warnings(self.evaluation))


def gather(uri: str, *, log: bool = True, show: progress.Progress = progress.silent) -> MergeReport:
    """Read everything about a merged version from its lineage, its run and the registry.

    The comparison of its sources is taken from the run; if it is not there, it is made.

    Args:
        uri: of the merged version.
        log: leave a comparison that had to be made in the run.
        show: is told the bytes that a comparison reads.

    Raises:
        RegistryError: there is no such version, or it was not merged by this package.
        IntegrityError: its lineage is not what was registered.
    """
    resolved = versions.resolve(uri)
    if resolved.run_id is not None and not run_files.has_run(resolved.run_id):
        resolved = dataclasses.replace(resolved, run_id=None)
    predicate = _predicate(resolved)
    definition = predicate["buildDefinition"]
    settings = definition["internalParameters"]
    sources = tuple(_sources(definition["resolvedDependencies"]))
    comparison, heat_map, why = _comparison(resolved, sources, settings["recipe"], log, show)
    details = predicate["runDetails"]
    environment = {
        entry["name"]: entry["annotations"]
        for entry in details["byproducts"]
        if not entry["name"].startswith("evaluation/")
    }.get("environment", {})
    return MergeReport(
        uri=resolved.uri,
        run_id=resolved.run_id,
        weights_digest=resolved.recorded_digest,
        recipe=settings["recipe"],
        recipe_digest=settings["recipeDigest"],
        inputs=sources,
        evaluation=tuple(
            entry["annotations"]
            for entry in details["byproducts"]
            if entry["name"].startswith("evaluation/")
        ),
        comparison=comparison,
        heat_map=heat_map,
        no_comparison=why,
        savings=_savings(resolved, comparison),
        studies=_studies(resolved, sources),
        tree=relatives.tree(resolved.uri),
        run=details["metadata"] | environment | {"versions": details["builder"]["version"]},
    )


def _predicate(resolved: versions.ResolvedVersion) -> dict[str, Any]:
    if resolved.tags.get(tag_keys.KIND) != "merge":
        raise errors.RegistryError(
            f"{resolved.uri} was not merged by this package, so there is nothing to report on; "
            "`evaluate` measures any version and `lineage` shows where it comes from"
        )
    _, stated = contents.read_statement(resolved)
    return dict(stated.content["predicate"])


def _sources(dependencies: Sequence[Mapping[str, Any]]) -> list[MergedSource]:
    return [
        MergedSource(
            role=entry["annotations"]["role"],
            uri=entry["uri"],
            tasks=tuple(entry["annotations"]["tasks"]),
            weight=entry["annotations"].get("weight"),
            dtypes=tuple(entry["annotations"]["dtypes"]),
            weights_digest=f"sha256:{entry['digest']['weightsSha256']}",
        )
        for entry in dependencies
        if entry["annotations"]["role"] in ("base", "source")
    ]


def _comparison(
    resolved: versions.ResolvedVersion,
    merged: Sequence[MergedSource],
    fields: Mapping[str, Any],
    log: bool,
    show: progress.Progress,
) -> tuple[Mapping[str, Any] | None, bytes | None, str]:
    """The comparison, its heat map, and why there is none."""
    base, *sources = (version.uri for version in merged)
    kept = study_records.read_comparison(resolved.run_id) if resolved.run_id else None
    if kept and [row["source"] for row in kept[0]["sources"]] == sources:
        return kept[0], kept[1], ""
    try:
        found = compare.compare(base, sources, recipe.MergeRecipe.from_dict(fields), show=show)
    except errors.BreadcrumbsError as error:
        return None, None, str(error)
    if log and resolved.run_id:
        study_records.log_comparison(resolved.run_id, found)
    return found.to_dict(), found.picture(), ""


def _savings(
    resolved: versions.ResolvedVersion, comparison: Mapping[str, Any] | None
) -> Savings | None:
    if comparison is None:
        return None
    models, float32 = len(comparison["sources"]), 4
    held = comparison["model_parameters"] * float32
    metrics = run_files.read_metrics(resolved.run_id) if resolved.run_id else {}
    return Savings(
        models=models,
        stored_before=sum(row["bytes"] for row in comparison["sources"]),
        stored_after=versions.stored_bytes(resolved),
        served_before=models * held,
        served_after=held,
        evaluated_before=metrics.get("evaluation_seconds/sources"),
        evaluated_after=metrics.get("evaluation_seconds/merged"),
    )


def _studies(
    resolved: versions.ResolvedVersion, merged: Sequence[MergedSource]
) -> dict[str, StudyPictures]:
    """The studies of this version, or of the very versions that it was merged from."""
    base, *sources = (version.uri for version in merged)
    found = {}
    own = resolved.run_id
    alike = own is not None and study_records.is_over(own, base, sources)
    for study in STUDIES:
        run_id = own if alike or study not in BEFORE else None
        pngs = run_files.read_pictures(run_id, study) if run_id else {}
        if not pngs and study in BEFORE:
            run_id = study_records.find_study(study, base, sources)
            pngs = run_files.read_pictures(run_id, study) if run_id else {}
        if run_id and pngs:
            found[study] = StudyPictures(run_id, pngs)
    return found


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)
