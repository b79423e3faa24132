"""The second study: every preset as it is, for two to nine tasks, and the weights of other sources.

Nothing is tuned here. Its rule, written before a test image was looked at: a preset is measured
with the recipe that a user gets who names it and nothing else, on the test images, for every number
of tasks T from 2 on, with groups of tasks that turn from seed to seed, so that no task is always in
or out. What a preset's own values are was decided before, on validation images of all tasks. The
automatic method's choice is read off `settling`; its regret at a T is how far the preset that it
names is below the best one there.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlflow_breadcrumbs.engine import checkpoints, drafts, recipe, settling
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.pipeline import inputs
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.sources import training
from study import descriptions, flow, measuring, plan, predicting, zoo

IMAGES = 250
"""Per task, where all tasks are merged."""
FEWER_IMAGES = 100
"""Per task, where fewer are."""
SIZES = (9, 3, 6, 2, 4, 5, 7, 8)
"""Numbers of tasks, in the order in which they are measured."""
ROTATION = 3
"""By how many tasks the groups of one seed are ahead of those of the seed before."""
OFF = (0.5, 1.5)
"""Factors on alpha and depth for the robustness."""
LONGER = 10
"""Times as many steps that one source of the variant `uneven` gets."""
LOW_RANK_RATE = 1e-3
"""Learning rate of changes of low rank."""

CHOICES = "choices.json"

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Variant:
    """Sources of the same tasks that were made otherwise."""

    rank: int = 0
    """Of what was learned; 0 is all weights."""
    long: int = 0
    """How many of the tasks, from the first, were trained `LONGER` times as long."""
    seeds: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = SIZES
    """The numbers of tasks that are merged."""

    def settings(self, usual: training.TrainingSettings, number: int) -> training.TrainingSettings:
        """How the source of a task is trained, by the task's number."""
        if self.rank:
            return dataclasses.replace(usual, rank=self.rank, learning_rate=LOW_RANK_RATE)
        if number < self.long and usual.steps is not None:
            return dataclasses.replace(usual, steps=LONGER * usual.steps)
        return usual

    def name(self, number: int) -> str:
        """What the registered models of a task's sources are named with."""
        if self.rank:
            return f"rank{self.rank}-"
        return "long-" if number < self.long else ""


VARIANTS: Mapping[str, Variant] = {
    "full": Variant(seeds=(0, 1, 2)),
    "rank8": Variant(rank=8, sizes=(3, 6, 9)),
    "uneven": Variant(long=1, sizes=(3, 6, 9)),
    "rank32": Variant(rank=32, sizes=(9,)),
}
"""In the order in which they are measured."""


def group(names: Sequence[str], size: int, seed: int) -> plan.Group:
    """The tasks that are merged at a T, in the order of all."""
    start = ROTATION * seed
    chosen = {names[(start + step) % len(names)] for step in range(size)}
    return tuple(name for name in names if name in chosen)


def key(size: int, seed: int) -> str:
    """What a choice of the automatic method is kept under."""
    return f"T {size}, seed {seed}"


def point(
    names: Sequence[str], size: int, seed: int, settings: recipe.MergeRecipe
) -> measuring.Point:
    """A recipe on the test images of the group of a T and a seed."""
    own = group(names, size, seed)
    images = IMAGES if size == len(names) else FEWER_IMAGES
    return measuring.Point(settings, own, "test", images)


def points(
    names: Sequence[str], size: int, seed: int, chosen: recipe.MergeRecipe
) -> list[measuring.Point]:
    """What is measured with a seed at a T: every preset, and what the automatic method came to."""
    presets = [recipe.MergeRecipe.from_method(name, sources=size) for name in recipe.PRESETS]
    return [point(names, size, seed, settings) for settings in (*presets, chosen)]


def off(names: Sequence[str]) -> list[tuple[str, float, measuring.Point]]:
    """Every preset with half and one and a half of its scale, on validation images of all tasks."""
    found = []
    for method in recipe.PRESETS:
        settings = recipe.MergeRecipe.from_method(method, sources=len(names))
        for factor in (1.0, *OFF):
            scaled = dataclasses.replace(
                settings, alpha=factor * settings.alpha, depth=factor * settings.depth
            )
            found.append((method, factor, plan.validation(scaled, tuple(names))))
    return found


def run(
    setting: flow.Setting,
    folder: Path,
    results_folder: Path,
    on_time: Callable[[], bool],
    device: str = "auto",
    variants: Sequence[str] = (),
) -> bool:
    """Fine-tune and measure what is missing, variant by variant, while there is time.

    Args:
        setting: See `flow.Setting`.
        folder: Of the MLflow store and of half-done trainings.
        results_folder: Gets a file of measurements per variant.
        on_time: Says whether to go on.
        device: See `mlflow_breadcrumbs.support.devices`.
        variants: Names of `VARIANTS`; all when empty.

    Returns:
        Whether everything is done.
    """
    zoo.use_store(folder / "store")
    task_list = tasks.load_tasks(setting.task_file)
    heads = tasks.load_tasks(setting.heads_file)
    base = zoo.base(setting.checkpoint, setting.architecture, heads, setting.head, device)
    names = tuple(task.name for task in task_list)
    descriptions.write_tasks(task_list, names, results_folder)
    missing = 0
    for name in variants or VARIANTS:
        variant = VARIANTS[name]
        results = measuring.Results(results_folder / f"{name}.jsonl")
        with contextlib.ExitStack() as stack:
            gauges, zoos = {}, {}
            for seed in variant.seeds:
                own = _zoo(setting, variant, seed, base, task_list, folder, on_time, device)
                if own is None:
                    return False
                gauge = measuring.Gauge(own, seed, results, device)
                gauges[seed], zoos[seed] = stack.enter_context(gauge), own
            for size in variant.sizes:
                for seed, gauge in gauges.items():
                    chosen = _chosen(results_folder, name, zoos[seed], names, size, seed)
                    missing += gauge.take(points(names, size, seed, chosen), on_time)
            if name == "full":
                scaled = [point for _, _, point in off(names)]
                missing += gauges[variant.seeds[0]].take(scaled, on_time)
                for seed, own in zoos.items():
                    missing += not predicting.write(own, seed, results_folder, on_time)
        _logger.info("%s: %d measurements are missing", name, missing)
    return missing == 0


def _zoo(
    setting: flow.Setting,
    variant: Variant,
    seed: int,
    base: str,
    task_list: Sequence[tasks.Task],
    folder: Path,
    on_time: Callable[[], bool],
    device: str,
) -> zoo.Zoo | None:
    """The sources of a variant and a seed, made where they are missing; none when time is up."""
    sources = {}
    for number, task in enumerate(task_list):
        label = variant.name(number)
        if zoo.find(task.name, seed, label) is None and not on_time():
            return None
        how = variant.settings(setting.training, number)
        states = folder / "states"
        sources[task.name] = zoo.source(base, task, seed, how, states, device, label)
    return zoo.Zoo(base, sources, str(setting.task_file))


def _chosen(
    folder: Path, variant: str, own: zoo.Zoo, names: Sequence[str], size: int, seed: int
) -> recipe.MergeRecipe:
    """What the automatic method comes to for a group; looked at once, and written down."""
    known = descriptions.read(folder / CHOICES)
    found = known.get(variant, {}).get(key(size, seed))
    if found is None:
        labels = group(names, size, seed)
        members = [own.sources[name] for name in labels]
        with versions.workspace() as space, contextlib.ExitStack() as stack:
            opened, _ = inputs.open_versions(inputs.resolve(own.base, members), space)
            base, *sources = (
                stack.enter_context(checkpoints.Checkpoint.open(each.weights)) for each in opened
            )
            draft = drafts.draft(sources=size, method=drafts.AUTO)
            backend = choosing.choose("cpu")
            choice = settling.settle(base, sources, draft, labels=labels, backend=backend)
        assert choice is not None  # the method is open
        found = choice.to_dict() | {"recipe": choice.recipe.to_dict()}
        known.setdefault(variant, {})[key(size, seed)] = found
        descriptions.write(folder / CHOICES, known)
    return recipe.MergeRecipe.from_dict(found["recipe"])
