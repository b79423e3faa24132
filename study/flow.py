"""The study from the registered base to the last measurement; every step can be stopped.

Read `run` from top to bottom. Stages follow each other, since each chooses from what the ones
before it measured; within a stage the seeds follow each other.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.sources import training
from study import choices, descriptions, measuring, plan, zoo

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A base, its tasks, and how it is fine-tuned."""

    name: str
    checkpoint: str
    """Of the base: a file, or a tag of open_clip's weights."""
    architecture: str
    """open_clip's name, or a JSON configuration."""
    head: str
    """`probe` or `zero-shot`."""
    task_file: Path
    heads_file: Path
    """The tasks with the images that heads are fitted on."""
    training: training.TrainingSettings
    misfit_file: Path | None = None
    """The tasks with one more that does not fit them."""
    whole: bool = True
    """Measure everything; else only what compares the methods on all tasks."""


@dataclasses.dataclass
class Chosen:
    """What the validation images chose, by method; empty where measurements are missing."""

    largest: Mapping[str, recipe.MergeRecipe] = dataclasses.field(default_factory=dict)
    """Best on all tasks."""
    smallest: Mapping[str, recipe.MergeRecipe] = dataclasses.field(default_factory=dict)
    """Best on the thirds."""
    defaults: Mapping[str, recipe.MergeRecipe] = dataclasses.field(default_factory=dict)
    """By the rule."""


def run(
    setting: Setting,
    folder: Path,
    results_folder: Path,
    seeds: tuple[int, ...],
    on_time: Callable[[], bool],
    device: str = "auto",
) -> bool:
    """Fine-tune and measure what is missing, while there is time.

    Args:
        setting: See above.
        folder: Of the MLflow store and of half-done trainings.
        results_folder: Of the setting's measurements, known and new.
        seeds: Of fine-tuning; a seed counts when all its sources are there.
        on_time: Says whether to go on.
        device: See `mlflow_breadcrumbs.support.devices`.

    Returns:
        Whether everything is done.
    """
    zoo.use_store(folder / "store")
    heads = tasks.load_tasks(setting.heads_file)
    task_list = tasks.load_tasks(setting.misfit_file or setting.task_file)
    names = _names(setting.task_file)
    descriptions.write_tasks(task_list, names, results_folder)
    results = measuring.Results(results_folder / measuring.FILE)
    base = zoo.base(setting.checkpoint, setting.architecture, heads, setting.head, device)
    missing = zoo.train(
        base, task_list, seeds, setting.training, folder / "states", on_time, device
    )
    if missing:
        _logger.info("%d sources are missing still", missing)
        return False
    for seed in seeds:
        own = _zoo(setting.misfit_file or setting.task_file, seed)
        descriptions.write_geometry(own, seed, results_folder)
    return measure(setting, results, seeds, on_time, device)


def measure(
    setting: Setting,
    results: measuring.Results,
    seeds: tuple[int, ...],
    on_time: Callable[[], bool],
    device: str = "auto",
) -> bool:
    """Measure with the sources of some seeds, which must be there; gives whether all is done."""
    names = _names(setting.task_file)
    evidence, found = choices.Evidence(results, names, seeds), Chosen()
    with _gauges(setting.task_file, seeds, results, device) as gauges:
        stages = _stages(evidence, choices.Candidates(), found, whole=setting.whole)
        done = all(_take(gauges, points, on_time) for points in stages)
    if setting.misfit_file is None or not done:
        return done
    everyone = _names(setting.misfit_file)
    with _gauges(setting.misfit_file, seeds, results, device) as gauges:
        return _take(gauges, plan.final(found.largest, [everyone]), on_time)


@contextlib.contextmanager
def _gauges(
    task_file: Path, seeds: Sequence[int], results: measuring.Results, device: str
) -> Iterator[list[measuring.Gauge]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(measuring.Gauge(_zoo(task_file, seed), seed, results, device))
            for seed in seeds
        ]


def _take(
    gauges: Sequence[measuring.Gauge],
    points: Sequence[measuring.Point],
    on_time: Callable[[], bool],
) -> bool:
    return sum(gauge.take(points, on_time) for gauge in gauges) == 0


def _zoo(task_file: Path, seed: int) -> zoo.Zoo:
    own = zoo.opened(task_file, _names(task_file), seed)
    if own is None:
        raise errors.RegistryError(f"Sources of seed {seed} are missing in the study's store.")
    return own


def _names(task_file: Path) -> tuple[str, ...]:
    return tuple(task.name for task in tasks.load_tasks(task_file))


def chosen(evidence: choices.Evidence) -> tuple[choices.Candidates, Chosen]:
    """What was planned and chosen, as far as the measurements go.

    In the middle of a study `largest` is the best of what is known, if every method has its scales.
    """
    candidates, found = choices.Candidates(), Chosen()
    for points in _stages(evidence, candidates, found):
        if points and points[0].split == "validation" and not _known(evidence, points):
            break
    if not found.largest and _known(evidence, plan.coarse(evidence.names)):
        found.largest = choices.bests(evidence, candidates, [evidence.names])
    return candidates, found


def _known(evidence: choices.Evidence, points: Sequence[measuring.Point]) -> bool:
    return all(
        evidence.results.find(seed, point) is not None
        for seed in evidence.seeds
        for point in points
    )


def _stages(
    evidence: choices.Evidence,
    candidates: choices.Candidates,
    chosen: Chosen,
    *,
    whole: bool = True,
) -> Iterator[Sequence[measuring.Point]]:
    """Give what is to be measured, stage by stage; the next is planned when it is known.

    Args:
        evidence: What the choices are made from.
        candidates: Takes the recipes that are planned.
        chosen: Takes the choices.
        whole: See `Setting`.
    """
    everything, thirds = evidence.names, plan.thirds(evidence.names)
    choices.begin(candidates, len(everything))
    yield plan.coarse(everything)
    best = choices.bests(evidence, candidates, [everything])
    for method in plan.METHODS:
        if method != "weight_average":
            candidates.add(method, plan.refined(best[method]))
    candidates.add("breadcrumbs", plan.fine(best["breadcrumbs"]))
    yield candidates.on(everything)
    best = choices.bests(evidence, candidates, [everything])
    for method, recipes in plan.variants(best["breadcrumbs"]).items():
        candidates.add(method, recipes)
    yield candidates.on(everything)
    chosen.largest = choices.bests(evidence, candidates, [everything])
    yield plan.final(chosen.largest, [everything])
    yield plan.final(plan.untuned(), [everything])
    if not whole:
        return
    for group in thirds:
        yield [*plan.coarse(group), *plan.on(chosen.largest, group)]
    chosen.smallest = choices.bests(evidence, candidates, thirds)
    chosen.defaults = {
        method: evidence.default(method, candidates.of(method), [everything, *thirds])
        for method in plan.METHODS
    }
    yield plan.final(chosen.smallest, thirds)
    yield plan.final(chosen.smallest, [everything])
    for method in plan.OFF:
        others = [settings for _, _, settings in plan.off(chosen.largest[method])]
        yield [plan.validation(settings, everything) for settings in others]
    yield plan.final(chosen.defaults, [everything, *thirds])
    yield plan.final(chosen.smallest, plan.pairs(evidence.names))
