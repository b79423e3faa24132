"""Many merges of the same sources, each measured on the same images: what sweeps are made of.

```python
with workbench.opened(workbench.Materials(base, sources, "tasks.yaml")) as bench:
    bench.prepare(recipes)                      # the masks of all, in one pass over the sources
    cards = [bench.measure(settings) for settings in recipes]
```

A merged model stays in memory, the images stay decoded, and the accuracies of the base and of the
sources are measured once. A measurement gives the numbers that `merge --tasks` gives.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch

from mlflow_breadcrumbs import flavor
from mlflow_breadcrumbs.engine import (
    adapters,
    backends,
    checkpoints,
    deciding,
    drafts,
    merging,
    patterns,
    recipe,
    settling,
    writing,
)
from mlflow_breadcrumbs.engine.backends.cpu import cpu_backend, decomposing, grid
from mlflow_breadcrumbs.engine.backends.cpu.masking import Masks
from mlflow_breadcrumbs.evaluation import bench, evaluator_files, scorecard, scores, scoring
from mlflow_breadcrumbs.models import image_sets, task_heads, tasks
from mlflow_breadcrumbs.pipeline import inputs
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.search import graded
from mlflow_breadcrumbs.support import canonical, defaults, devices, processes, progress

_logger = logging.getLogger(__name__)

KEPT_UPDATES = 1 << 30
"""Bytes of decomposed matrices that are kept, so that another alpha need not decompose again."""


@dataclasses.dataclass(frozen=True)
class Materials:
    """What a study works with."""

    base: str
    """Registry URI of the version that every source was fine-tuned from."""
    sources: tuple[str, ...]
    """Registry URIs, in the order of the sum."""
    tasks: str | None = None
    """A task file, or an artifact URI of one."""
    evaluator: evaluator_files.UserEvaluator | None = None
    """The user's own means of measuring, in place of a task file."""
    device: str = "auto"
    """Where models run: `auto`, `cpu`, `cuda` or `cuda:N`."""
    batch_size: int = defaults.BATCH_SIZE
    """Images at a time."""
    threads: int | None = None
    """Of the merges; all processors when `None`."""
    max_norm_ratio: float | None = defaults.MAX_NORM_RATIO
    """Refuse a source whose task vector is longer than so many times the base."""


@dataclasses.dataclass(frozen=True)
class InMemory:
    """A merge in memory, until the next one."""

    tensors: Mapping[str, torch.Tensor]
    weights_digest: str
    recipe: recipe.MergeRecipe


@contextlib.contextmanager
def opened(materials: Materials, show: progress.Progress = progress.silent) -> Iterator["Study"]:
    """Resolve and open everything; the weights are held against their recorded digests.

    Raises:
        BreadcrumbsError: one of its kinds; nothing was measured.
    """
    merging.check_norm_ratio(materials.max_norm_ratio)
    device = devices.choose_device(materials.device)
    resolved = inputs.resolve(materials.base, materials.sources)
    with versions.workspace() as folder, contextlib.ExitStack() as stack:
        taken = inputs.open_all(resolved, folder)
        for note in taken.notes:
            _logger.warning("%s", note)
        pairs = () if materials.tasks is None else inputs.plan_evaluation(taken, materials.tasks)
        files = adapters.open_all(stack, (version.weights for version in taken.everything))
        found = []
        with show("check digests", total=len(files), unit="versions") as advance:
            for version, file in zip(taken.everything, files, strict=True):
                found.append(checkpoints.weights_digest(file))
                versions.check_digest(version.resolved, found[-1])
                advance(1)
        taken = taken.read(found)
        study = Study(materials, device, taken, pairs, files, show)
        if materials.evaluator is not None:
            study.grades = graded.Grades(materials.evaluator, taken, folder / "graded")
        yield study


class Study:
    """The base and the sources, open; made by `opened`.

    Args:
        materials: what was asked for.
        device: what `devices.choose_device` gave.
        taken: the versions.
        pairs: which task is measured with which source.
        files: the base's checkpoint, then the sources'.
        show: is told about the decoding and the masks.
        known: what another process has found.
    """

    def __init__(
        self,
        materials: Materials,
        device: str,
        taken: inputs.Inputs,
        pairs: Sequence[tuple[int, tasks.Task]],
        files: Sequence[checkpoints.Checkpoint],
        show: progress.Progress,
        known: "Findings | None" = None,
    ) -> None:
        self.taken = taken
        self.pairs = tuple(pairs)
        self.grades: graded.Grades | None = None
        """Who measures in place of images, where the user has an evaluator of their own."""
        self.materials, self.device, self._show = materials, device, show
        self.known = Findings() if known is None else known
        self._base, *self._sources = files
        self._threads = materials.threads or processes.processors()
        self._writers: dict[str, writing.MemoryWriter] = {}
        self._updates: dict[_Decomposed, decomposing.Updates] = {}
        self._apart: dict[tuple[tuple[str, ...], ...], frozenset[str]] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """The sources' pinned URIs."""
        return tuple(source.resolved.uri for source in self.taken.sources)

    @property
    def owned(self) -> dict[str, task_heads.Head]:
        """The head of each task."""
        return {task.name: self.taken.heads[number][task.name] for number, task in self.pairs}

    def owner(self, task: str, split: tasks.Split) -> int:
        """The position of the source that is a task's own.

        Raises:
            TaskError: the evaluator has no such task.
        """
        if self.grades is not None:
            return self.grades.owner(task, split)
        return next(number for number, each in self.pairs if each.name == task)

    def largest(self, split: tasks.Split) -> int:
        """The images of the task that has most; 0 where an evaluator measures on all or none."""
        if self.grades is not None:
            return 0
        return max(len(images) for images in self.images(split).values())

    def first_look(self, images: int | None, total: int | None) -> int | None:
        """On how many images of a task there can be a first look; `None`: on all at once."""
        if images is None or total is None or self.grades is not None:
            return None
        return min(images, total)

    def examine(
        self,
        tensors: Mapping[str, torch.Tensor],
        names: Sequence[str],
        split: tasks.Split,
        limit: int | None = None,
    ) -> Mapping[str, scores.Score]:
        """Measure the tensors of a model on some tasks, on `limit` images of each at most."""
        if self.grades is not None:
            return self.grades.examine(tensors, names, split)
        return self.bench(split).accuracies(tensors, names, limit)

    def images(self, split: tasks.Split) -> dict[str, image_sets.ImageSet]:
        """The images of a split by task, not decoded."""
        if split not in self.known.images:
            self.known.images[split] = {task.name: task.images(split) for _, task in self.pairs}
        return self.known.images[split]

    def digest(self, split: tasks.Split) -> str:
        """What the numbers of this study depend on, besides recipes: weights, heads and images."""
        if self.grades is not None:
            return self.grades.digest(split)
        return canonical.digest(
            {
                "weights": list(self.taken.digests),
                "images": {task: images.digest for task, images in self.images(split).items()},
                "heads": {
                    task: checkpoints.tensor_digest(head.weight)
                    for task, head in self.owned.items()
                },
            }
        )

    def bench(self, split: tasks.Split) -> bench.Bench:
        """The images of a split; decoded at the first call."""
        if split not in self.known.benches:
            self.known.benches[split] = bench.Bench(
                flavor.load_config(self.taken.base.folder),
                self.images(split),
                self.owned,
                device=self.device,
                batch_size=self.materials.batch_size,
                show=self._show,
            )
        return self.known.benches[split]

    def tasks_of(self, members: Sequence[int]) -> tuple[str, ...]:
        """The tasks of some of the sources, by their positions."""
        return tuple(task.name for number, task in self.pairs if number in members)

    def prepare(self, recipes: Sequence[recipe.MergeRecipe]) -> None:
        """Find the masks that the recipes need; one pass serves all densities and gammas.

        Raises:
            RecipeError: a recipe has another number of weights than there are sources.
            MergeError: the sources' tensors are not the base's.
        """
        jobs = {settings: self._plan(settings) for settings in recipes}  # every one is checked
        if any(self._base.info(name).dtype.itemsize == 8 for name in self._base.names):
            return  # float64 has no shared masks; each merge finds its own
        groups: dict[_Units, dict[_Point, recipe.MergeRecipe]] = {}
        for settings in recipes:
            if _mask(settings) not in self.known.masks:
                units, point = _mask(settings)
                groups.setdefault(units, {})[point] = settings
        with self._show("masks", total=len(groups) or 1, unit="passes") as advance:
            for units, points in groups.items():
                job = jobs[next(iter(points.values()))]
                found = grid.thresholds(job, list(points), threads=self._threads)
                for point, masks in zip(points, found, strict=True):
                    self.known.masks[units, point] = masks
                advance(1)

    def merge(self, settings: recipe.MergeRecipe, members: Sequence[int] | None = None) -> InMemory:
        """Merge in memory; the next merge overwrites the tensors.

        Args:
            settings: the recipe; its weights are those of all sources.
            members: positions of the sources to merge, ascending; all when not given.

        Raises:
            MergeError: a value is not finite, or a source is too far from the base.
        """
        chosen = range(len(self._sources)) if members is None else members
        job = self._plan(settings, chosen)
        known = self.known.masks.get(_mask(settings))
        own = known and {
            (name, new): known[name, old] for new, old in enumerate(chosen) for name in job.merged
        }
        if settings.dtype not in self._writers:
            self._writers = {settings.dtype: writing.MemoryWriter(merging.output_infos(job))}
        writer = self._writers[settings.dtype]
        backend = cpu_backend.Cpu(
            self._threads, known=own, updates=self._updates_of(settings, chosen)
        )
        ratio = self.materials.max_norm_ratio
        merging.merge_into(writer, job, backend=backend, max_norm_ratio=ratio)
        return InMemory(writer.tensors, writer.weights_digest, settings)

    def measure(
        self,
        settings: recipe.MergeRecipe,
        members: Sequence[int] | None = None,
        *,
        split: tasks.Split = "validation",
        limit: int | None = None,
    ) -> scorecard.Scorecard:
        """Merge some of the sources and measure the result on their tasks.

        Args:
            settings: the recipe.
            members: see `merge`.
            split: of the images.
            limit: images per task at most, for the merged model; what it is divided by, the
                accuracy of a task's own source, is measured once, on all images.

        Raises:
            MergeError: see `merge`.
            TaskError: images are missing, or a source gets none right on its own task.
        """
        chosen = range(len(self._sources)) if members is None else members
        return self.score(self.merge(settings, members), chosen, split=split, limit=limit)

    def score(
        self,
        merged: InMemory,
        members: Sequence[int],
        *,
        split: tasks.Split = "validation",
        limit: int | None = None,
    ) -> scorecard.Scorecard:
        """Measure a merge on the tasks of some of the sources; see `measure`."""
        if self.grades is not None:
            return self.grades.score(merged.tensors, members, split, merged.recipe)
        names = self.tasks_of(members)
        before = self.before(names, split)
        after = self.bench(split).accuracies(merged.tensors, names, limit)
        return scorecard.Scorecard(
            tuple(
                scorecard.TaskScore(
                    task=name,
                    source=before[name].source,
                    zero_shot=before[name].zero_shot,
                    finetuned=before[name].finetuned,
                    merged=after[name],
                )
                for name in names
            ),
            tuple(self.bench(split).images(name, limit) for name in names),
        )

    def settled(self, draft: drafts.RecipeDraft) -> recipe.MergeRecipe:
        """The recipe that a draft comes to with all sources; see `settling`."""
        choice = settling.settle(
            self._base,
            self._sources,
            draft,
            labels=self.labels,
            backend=cpu_backend.Cpu(self._threads),
        )
        return choice.recipe if choice else draft.recipe

    def base_tensors(self) -> dict[str, torch.Tensor]:
        """The base's tensors by name; they share its file's memory map."""
        return {name: self._base.tensor(name) for name in self._base.names}

    def _plan(
        self, settings: recipe.MergeRecipe, members: Sequence[int] | None = None
    ) -> backends.Job:
        chosen = range(len(self._sources)) if members is None else members
        weights = settings.weight_of(len(self._sources))
        own = tuple(weights[i] for i in chosen) if settings.weights else ()
        chosen_by = (settings.include, settings.exclude, settings.own)
        if chosen_by not in self._apart:  # what any source keeps is merged for none of them
            found = deciding.align(self._base, self._sources, settings, self.labels)
            self._apart[chosen_by] = found[1]
            for note in patterns.notes(self._base, found[0], settings):
                _logger.warning("%s", note)
        return merging.plan(
            self._base,
            [self._sources[i] for i in chosen],
            dataclasses.replace(settings, weights=own),
            [self.labels[i] for i in chosen],
            apart=self._apart[chosen_by],
        )

    def _updates_of(
        self, settings: recipe.MergeRecipe, chosen: Sequence[int]
    ) -> decomposing.Updates | None:
        """Where the decomposed matrices of a recipe are kept, whatever their scale and dtype."""
        if settings.bit_exact:
            return None
        neutral = dataclasses.replace(settings, alpha=1.0, depth=0.0, vectors="", dtype="base")
        key = (neutral, tuple(chosen))
        own = self._updates.pop(key, {})
        while self._updates and sum(map(_nbytes, self._updates.values())) > KEPT_UPDATES:
            self._updates.pop(next(iter(self._updates)))
        self._updates[key] = own  # the last one is used last
        return own

    def before(self, names: Sequence[str], split: tasks.Split) -> dict[str, "Before"]:
        """The base and each task's own source on some tasks; none is measured twice."""
        images = self.bench(split)
        new = [name for name in names if (split, name) not in self.known.before]
        if new:
            zero_shot = images.accuracies(self.taken.base.weights, new)
        for number, source in enumerate(self.taken.candidates):
            own = [name for name in self.tasks_of([number]) if name in new]
            finetuned = self._measure_source(source, own, split) if own else {}
            for name, accuracy in finetuned.items():
                if accuracy.correct == 0:
                    raise scorecard.no_denominator(accuracy)
                found = Before(source.label, zero_shot[name], accuracy)
                self.known.before[split, name] = found
        return {name: self.known.before[split, name] for name in names}

    def _measure_source(
        self, source: scorecard.Candidate, names: Sequence[str], split: tasks.Split
    ) -> dict[str, scoring.Accuracy]:
        """A source on its own tasks; with its own preprocessing, where that is not the base's."""
        images = self.bench(split)
        if source.config is not None:
            images = bench.Bench(
                source.config,
                {name: self.images(split)[name] for name in names},
                {name: self.owned[name] for name in names},
                device=self.device,
                batch_size=self.materials.batch_size,
                show=self._show,
            )
        return images.accuracies(source.weights, names)


@dataclasses.dataclass(frozen=True)
class Before:
    """What a task's merged accuracy is compared with."""

    source: str
    zero_shot: scoring.Accuracy
    finetuned: scoring.Accuracy


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a study has found, and does not find again; it only grows."""

    images: dict[tasks.Split, dict[str, image_sets.ImageSet]] = dataclasses.field(
        default_factory=dict
    )
    benches: dict[tasks.Split, bench.Bench] = dataclasses.field(default_factory=dict)
    masks: "dict[_Mask, Masks]" = dataclasses.field(default_factory=dict)
    before: dict[tuple[tasks.Split, str], Before] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """How much it is: another number after whatever was added."""
        return len(self.benches) + len(self.masks) + len(self.before)


_Units = tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...], bool]
_Point = tuple[float, float]
_Mask = tuple[_Units, _Point]
_Decomposed = tuple[recipe.MergeRecipe, tuple[int, ...]]
"""A recipe but for its alpha and dtype, and the positions of the sources."""


def _nbytes(updates: decomposing.Updates) -> int:
    return sum(update.nbytes for update in updates.values())


def _mask(settings: recipe.MergeRecipe) -> _Mask:
    """What the masks of a recipe depend on."""
    whole = settings.vectors == recipe.WHOLE_MEAN
    units = (settings.unit, settings.include, settings.exclude, settings.own, whole)
    return units, (settings.density, settings.gamma)
