"""Many recipes over the same sources: each is merged and measured, the best one is chosen.

Read `sweep` from top to bottom. It chooses by the average normalized accuracy on the validation
images, and looks at the test images once, for the recipe that was chosen.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.figures import studies
from mlflow_breadcrumbs.figures.studies import METRIC
from mlflow_breadcrumbs.pipeline import flow, merge_request, outcomes, planning
from mlflow_breadcrumbs.registry import permissions, records
from mlflow_breadcrumbs.search import grids, pieces, study_records, sweep_runs, workbench
from mlflow_breadcrumbs.support import canonical, executors, progress, tables, wording

RECIPE_FILE = "best_recipe.yaml"
FACTORS = (0.5, 1.5)
"""How far the robustness goes to either side of each hyperparameter of the chosen recipe."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SweepRequest:
    """What a user asks for."""

    materials: workbench.Materials
    recipes: tuple[recipe.MergeRecipe, ...]
    """What is tried, see `grids`; of equally good ones the first is chosen."""
    halving: int | None = None
    """Images per task of the first round; each round keeps the better half and doubles the images.
    `None` measures every recipe on all validation images."""
    robustness: bool = True
    """Measure the chosen recipe with each hyperparameter at half and at one and a half."""
    test: bool = True
    """Look at the test images for the chosen recipe."""
    registered_model: str | None = None
    """Register the merge by the chosen recipe under this name."""
    alias: str | None = None
    force_alias: bool = False
    """Point the alias at a merge that exists already, even if it goes back by that."""


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    run_id: str
    """The parent run."""
    sweep_digest: str
    recipe: recipe.MergeRecipe
    """The chosen one."""
    trials: tuple[Mapping[str, Any], ...]
    """One row per recipe, in the order of the grid; `images` per task, `None` for all."""
    validation: Mapping[str, float]
    """The chosen recipe's metrics on the validation images."""
    test: Mapping[str, float]
    """And on the test images; empty where they were not looked at."""
    robustness: tuple[Mapping[str, Any], ...]
    """One row per hyperparameter and factor: the metric, and how far it is below the chosen."""
    measured_now: int = 0
    """Recipes that were measured now; the others had been before."""
    version: records.RegisteredVersion | None = None
    alias: str | None = None
    """That points at the version now, of the one that was asked for."""
    notes: tuple[str, ...] = ()
    """What became of the alias, where the version existed already."""

    def best(self, count: int) -> list[Mapping[str, Any]]:
        """The rows of the best recipes, the best one first."""
        return sorted(self.trials, key=_rank, reverse=True)[:count]

    def recipe_file(self) -> str:
        """The chosen recipe as YAML that `merge --recipe` takes."""
        test = f", {self.test[METRIC]:.4f} in the test" if self.test else ""
        return (
            f"# Chosen by a sweep of {wording.counted(len(self.trials), 'recipes')}, "
            f"run {self.run_id}:\n"
            f"# average normalized accuracy {self.validation[METRIC]:.4f} in validation{test}.\n"
        ) + yaml.safe_dump(self.recipe.to_dict(), sort_keys=False)

    def to_dict(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {
            "run_id": self.run_id,
            "sweep_digest": self.sweep_digest,
            "recipe_digest": self.recipe.digest,
            "recipe": self.recipe.to_dict(),
            "validation": dict(self.validation),
            "test": dict(self.test),
            "robustness": [dict(row) for row in self.robustness],
            "trials": [dict(row) for row in self.trials],
            "measured_now": self.measured_now,
            "version": self.version.to_dict() if self.version else None,
            **({"notes": list(self.notes)} if self.notes else {}),
        }


def sweep(
    request: SweepRequest,
    show: progress.Progress = progress.silent,
    executor: executors.Executor = executors.LOCAL,
) -> SweepResult:
    """Try every recipe, choose the best, and report it; goes on where an earlier call stopped.

    Args:
        request: what is asked for.
        show: is told about rounds and recipes.
        executor: merges and measures, see `pieces`; MLflow is spoken to by this process alone.

    Raises:
        BreadcrumbsError: one of its kinds. What was measured by then is kept, and the same call
            goes on from there.
    """
    if not request.recipes:
        raise errors.RecipeError("there are no recipes to try; give values for some fields")
    if request.registered_model is not None:
        planning.check_target(request.registered_model, request.alias)
    permissions.check(request.registered_model)
    if request.materials.evaluator is not None and request.halving is not None:
        raise errors.EvaluatorError(
            "halving begins with a few images, and an evaluator measures on all of its data; leave "
            "it out"
        )
    with workbench.opened(request.materials, show) as bench:
        if bench.grades is not None:
            bench.grades.check_splits()
        digest = _digest(bench, request)
        with sweep_runs.parent(
            f"sweep of {wording.counted(len(request.recipes), 'recipes')}", digest
        ) as parent:
            if parent.finished:
                _logger.info("run %s is this sweep already", parent.run_id)
                result = _read(sweep_runs.load_result(parent))
            else:
                result = _run(bench, request, parent, digest, show, executor)
            if request.registered_model is None:
                return result
            made = _register(request, result.recipe, show)
            return dataclasses.replace(
                result, version=made.version, alias=made.alias, notes=made.notes
            )


def _digest(bench: workbench.Study, request: SweepRequest) -> str:
    """What makes two sweeps the same."""
    return canonical.digest(
        {
            "study": bench.digest("validation"),
            "recipes": [settings.digest for settings in request.recipes],
            "halving": request.halving,
            "robustness": request.robustness,
            **({} if request.test else {"test": False}),
        }
    )


def _run(
    bench: workbench.Study,
    request: SweepRequest,
    parent: sweep_runs.Parent,
    digest: str,
    show: progress.Progress,
    executor: executors.Executor,
) -> SweepResult:
    """The sweep inside its run."""
    study_records.log_materials(
        parent.run_id,
        bench.taken,
        {"sweep.recipes": len(request.recipes), "sweep.halving": request.halving},
    )
    found = sweep_runs.trials(parent)
    before = {key for key, trial in found.items() if trial.finished}
    hands = pieces.Hands(bench, executor)
    _try_all(bench, hands, request, parent, found, show)
    rows = tuple(_row(settings, found[settings.digest]) for settings in request.recipes)
    whole = [settings for settings in request.recipes if METRIC in found[settings.digest].metrics]
    chosen = max(whole, key=lambda settings: found[settings.digest].metrics[METRIC])
    validation = found[chosen.digest].metrics
    best = validation[METRIC]
    robust = _robustness(bench, hands, chosen, rows, best, show) if request.robustness else ()
    test = bench.measure(chosen, split="test").metrics() if request.test else {}
    result = SweepResult(
        run_id=parent.run_id,
        sweep_digest=digest,
        recipe=chosen,
        trials=rows,
        validation=validation,
        test=test,
        robustness=robust,
        measured_now=len(request.recipes) - len(before),
    )
    sweep_runs.log_outcome(parent, chosen, validation, test)
    sweep_runs.save_result(parent, result.to_dict(), _files(result))
    _tell(result, bench)
    return result


def _tell(result: SweepResult, bench: workbench.Study) -> None:
    """Let MLflow's page of the run say what came out."""
    best = ", ".join(f"{field} {getattr(result.recipe, field):g}" for field in grids.NUMBERS)
    kept = "" if METRIC not in result.test else f" {result.test[METRIC]:.3f} on the test images."
    said = (
        f"{wording.counted(len(result.trials), 'recipes')} on validation images. The best: {best}; "
        f"one model keeps {result.validation[METRIC]:.3f} of its sources' accuracy there.{kept} "
        f"`{sweep_runs.FOLDER}/{RECIPE_FILE}` has it, for `merge --recipe`."
    )
    fields = (*grids.NUMBERS, METRIC)
    study_records.tell_of_study(
        result.run_id,
        said,
        bench.taken,
        titles=(*grids.NUMBERS, "kept"),
        rows=[
            [f"{row[field]:.4g}" for field in fields]
            for row in sorted(result.trials, key=_rank, reverse=True)
        ],
    )


def _try_all(
    bench: workbench.Study,
    hands: pieces.Hands,
    request: SweepRequest,
    parent: sweep_runs.Parent,
    found: dict[str, sweep_runs.Trial],
    show: progress.Progress,
) -> None:
    """Measure every recipe, round by round; `found` has what is known and takes what is new."""
    largest = bench.largest("validation")
    survivors = list(request.recipes)
    for limit in rounds(request.halving, len(survivors), largest):
        key = METRIC if limit is None else f"halving/{limit}"
        missing = [
            settings
            for settings in survivors
            if key not in found.get(settings.digest, sweep_runs.NOTHING).metrics
        ]
        bench.prepare(missing)
        where = "all images" if limit is None else f"{limit} images per task"
        with show(f"recipes on {where}", total=len(missing), unit="recipes") as advance:
            questions = [pieces.Question(settings, limit=limit) for settings in missing]
            for number, answer in hands.answers(questions, advance):
                settings = missing[number]
                found[settings.digest] = sweep_runs.save(
                    parent,
                    settings,
                    found.get(settings.digest),
                    answer.metrics if limit is None else {key: answer.metrics[METRIC]},
                    weights_digest=answer.weights_digest,
                    finished=limit is None,
                )
        better = survivors if limit is None else _better_half(survivors, found, key)
        for settings in survivors if limit is None else set(survivors) - set(better):
            if not found[settings.digest].finished:  # out of the sweep, or left by one killed here
                found[settings.digest] = sweep_runs.save(
                    parent, settings, found[settings.digest], {}, finished=True
                )
        survivors = better


def rounds(halving: int | None, recipes: int, images: int) -> list[int | None]:
    """The images per task of each round; `None`, all of them, comes last.

    Successive halving (Jamieson & Talwalkar 2016) with a factor of two: every round costs what the
    first one does. It ends early when one recipe is left.

    Args:
        halving: images per task of the first round; `None` makes the only round the last.
        recipes: how many there are.
        images: of the task that has most.
    """
    limits: list[int | None] = []
    while halving is not None and halving < images and recipes > 1:
        limits.append(halving)
        halving, recipes = 2 * halving, math.ceil(recipes / 2)
    return [*limits, None]


def _better_half(
    survivors: Sequence[recipe.MergeRecipe], found: Mapping[str, sweep_runs.Trial], key: str
) -> list[recipe.MergeRecipe]:
    """In the order of the grid, as before; of equally good recipes the first are kept."""
    order = sorted(survivors, key=lambda settings: -found[settings.digest].metrics[key])
    kept = {settings.digest for settings in order[: math.ceil(len(order) / 2)]}
    return [settings for settings in survivors if settings.digest in kept]


def _row(settings: recipe.MergeRecipe, trial: sweep_runs.Trial) -> dict[str, Any]:
    """A recipe with what was measured of it, on as many images as it came to."""
    limits = [int(name.split("/")[1]) for name in trial.metrics if name.startswith("halving/")]
    limit = None if METRIC in trial.metrics else max(limits)
    fields = {name: value for name, value in settings.every_field().items() if name != "weights"}
    return {
        **fields,
        "recipe_digest": settings.digest,
        "images": limit,
        METRIC: trial.metrics[METRIC if limit is None else f"halving/{limit}"],
        "average_accuracy": trial.metrics.get("average_accuracy"),
        "run_id": trial.run_id,
    }


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    """Those that were measured on more images are before the others."""
    return (math.inf if row["images"] is None else row["images"], row[METRIC])


def _robustness(
    bench: workbench.Study,
    hands: pieces.Hands,
    chosen: recipe.MergeRecipe,
    rows: Sequence[Mapping[str, Any]],
    best: float,
    show: progress.Progress,
) -> tuple[Mapping[str, Any], ...]:
    """The metric where one hyperparameter is up to 50 % off: measured, and what the grid has."""
    known = {row["recipe_digest"]: row[METRIC] for row in rows if row["images"] is None}
    points: dict[tuple[str, float], recipe.MergeRecipe] = {}
    for field in grids.NUMBERS:
        value = getattr(chosen, field)
        others = {row[field] for row in rows if value and 0.5 <= row[field] / value <= 1.5}
        others.discard(value)
        edges = {float(f"{value * factor:.6g}") for factor in FACTORS}
        for other in sorted(others | edges):
            try:
                settings = recipe.MergeRecipe.from_dict(chosen.to_dict() | {field: other})
            except errors.RecipeError:  # a density of 1 has no 1.5
                continue
            if value and (other in edges or settings.digest in known):
                points[field, other] = settings
    missing = list({s.digest: s for s in points.values() if s.digest not in known}.values())
    bench.prepare(missing)
    with show("robustness", total=len(missing), unit="recipes") as advance:
        for number, answer in hands.answers(list(map(pieces.Question, missing)), advance):
            known[missing[number].digest] = answer.metrics[METRIC]
    return tuple(
        {
            "field": field,
            "value": value,
            "factor": round(value / getattr(chosen, field), 6),
            METRIC: known[settings.digest],
            "fall": best - known[settings.digest],
        }
        for (field, value), settings in points.items()
    )


def _files(result: SweepResult) -> dict[str, bytes]:
    """The artifacts of a sweep, by file name."""
    best = result.recipe.every_field()
    pictures = {
        "heat_map.png": studies.heat_map(result.trials, best),
        "lines.png": studies.lines(result.trials, best),
        "robustness.png": studies.robustness(result.robustness, result.validation[METRIC]),
    }
    texts = {
        RECIPE_FILE: result.recipe_file(),
        "trials.csv": tables.to_csv(result.trials),
        "robustness.csv": tables.to_csv(result.robustness),
    }
    return {name: content for name, content in pictures.items() if content is not None} | {
        name: content.encode() for name, content in texts.items() if content
    }


def _register(
    request: SweepRequest, chosen: recipe.MergeRecipe, show: progress.Progress
) -> outcomes.MergedVersion:
    """The merge by the chosen recipe, through the main flow."""
    materials = request.materials
    return flow.merge(
        merge_request.MergeRequest(
            base=materials.base,
            sources=materials.sources,
            registered_model=str(request.registered_model),
            recipe=chosen,
            tasks=materials.tasks,
            evaluator=materials.evaluator,
            device=materials.device,
            batch_size=materials.batch_size,
            threads=materials.threads,
            max_norm_ratio=materials.max_norm_ratio,
            alias=request.alias,
            force_alias=request.force_alias,
        ),
        show,
    )


def _read(stored: Mapping[str, Any]) -> SweepResult:
    """The result of a sweep that was done before."""
    return SweepResult(
        run_id=stored["run_id"],
        sweep_digest=stored["sweep_digest"],
        recipe=recipe.MergeRecipe.from_dict(stored["recipe"]),
        trials=tuple(stored["trials"]),
        validation=stored["validation"],
        test=stored["test"],
        robustness=tuple(stored["robustness"]),
    )
