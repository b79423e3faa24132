"""Accuracies of merges: each measured once, a JSON line each, which a later call finds again.

The forward passes run in bfloat16 where the processor knows it (autocast), for base, sources and
merges alike; that halves the time and changes an accuracy by about one image in a thousand.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import scorecard
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.search import workbench
from mlflow_breadcrumbs.support import devices
from study import zoo as zoos

FILE = "measurements.jsonl"

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Point:
    """What is measured: a recipe over some tasks' sources, on some images."""

    recipe: recipe.MergeRecipe
    members: tuple[str, ...]
    """The tasks whose sources are merged and measured."""
    split: tasks.Split
    images: int | None
    """Per task at most; all when `None`."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Images that were right, by task; the denominators are measured on all images of the split."""

    correct: Mapping[str, int]
    total: Mapping[str, int]
    base: Mapping[str, tuple[int, int]]
    """Right and all images, of the base with the task's head."""
    source: Mapping[str, tuple[int, int]]
    """Right and all images, of the task's own source."""

    def normalized(self, task: str) -> float:
        """Accuracy on a task as a fraction of its own source's."""
        right, images = self.source[task]
        return self.correct[task] / self.total[task] / (right / images)

    def without(self, task: str) -> "Measured":
        """The same, but for one task."""
        return Measured(
            {name: right for name, right in self.correct.items() if name != task},
            self.total,
            self.base,
            self.source,
        )

    @property
    def average(self) -> float:
        """The mean of the normalized accuracies of the tasks."""
        return sum(map(self.normalized, self.correct)) / len(self.correct)


class Results:
    """The measurements of a setting, one JSON line each.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._merges: dict[str, dict[str, list[int]]] = {}
        self._singles: dict[tuple[int, str, str], dict[str, list[int]]] = {}
        if path.exists():
            whole, _, cut = path.read_text(encoding="utf-8").rpartition("\n")
            if cut:  # by a process that was killed while it wrote
                path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
            for line in whole.splitlines():
                self._take(json.loads(line))

    def _take(self, row: Mapping[str, Any]) -> None:
        if row["kind"] == "merge":
            self._merges[_key(row)] = row["right"]
        else:
            key = (row["seed"], row["split"], row["kind"])
            self._singles.setdefault(key, {}).update(row["right"])

    def find(self, seed: int, point: Point) -> Measured | None:
        """What is known of a point with the sources of a seed."""
        right = self._merges.get(_key(_row(seed, point)))
        if right is None:
            return None
        singles = {
            kind: {
                task: (own[0], own[1])
                for task, own in self._singles[seed, point.split, kind].items()
                if task in point.members
            }
            for kind in ("base", "source")
        }
        return Measured(
            {task: numbers[0] for task, numbers in right.items()},
            {task: numbers[1] for task, numbers in right.items()},
            singles["base"],
            singles["source"],
        )

    def __len__(self) -> int:
        """How many merges were measured."""
        return len(self._merges)

    def single(self, seed: int, split: str, kind: str) -> Mapping[str, Sequence[int]]:
        """Right and all images by task, of the base (`base`) or each task's own source."""
        return self._singles.get((seed, split, kind), {})

    def add(self, seed: int, point: Point, card: scorecard.Scorecard) -> None:
        """Write a measurement down at once."""
        rows = []
        for kind in ("base", "source"):
            known = self._singles.get((seed, point.split, kind), {})
            new = {
                score.task: [accuracy.correct, accuracy.total]
                for score in card.scores
                if score.task not in known
                for accuracy in [score.zero_shot if kind == "base" else score.finetuned]
            }
            if new:
                rows.append({"kind": kind, "seed": seed, "split": point.split, "right": new})
        right = {score.task: [score.merged.correct, score.merged.total] for score in card.scores}
        rows.append({**_row(seed, point), "right": right})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{json.dumps(row)}\n" for row in rows))
        for row in rows:
            self._take(row)


class Gauge:
    """Measures with the sources of one seed; opened when it is needed, and once.

    Args:
        zoo: The seed's.
        seed: Of the fine-tuning.
        results: Known and new measurements.
        device: See `mlflow_breadcrumbs.support.devices`.
    """

    def __init__(self, zoo: zoos.Zoo, seed: int, results: Results, device: str = "auto") -> None:
        self._zoo, self._seed, self._results, self._device = zoo, seed, results, device
        self._stack = contextlib.ExitStack()
        self._bench: workbench.Study | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, points: Sequence[Point], on_time: Callable[[], bool]) -> int:
        """Measure what is not known yet, in the order given, while there is time.

        Args:
            points: See `plan`.
            on_time: Says whether to go on.

        Returns:
            How many are missing still.
        """
        different = dict.fromkeys(points)  # two methods may come to the same recipe
        missing = [p for p in different if self._results.find(self._seed, p) is None]
        if not missing or not on_time():
            return len(missing)
        bench, names = self._opened(), list(self._zoo.sources)
        bench.prepare([point.recipe for point in missing])
        for done, point in enumerate(missing):
            if not on_time():
                return len(missing) - done
            members = sorted(names.index(task) for task in point.members)
            with fast(devices.choose_device(self._device)):
                card = bench.measure(point.recipe, members, split=point.split, limit=point.images)
            self._results.add(self._seed, point, card)
            _logger.info(
                "seed %d, %d of %d: %.4f",
                *(self._seed, done + 1, len(missing), card.average_normalized_accuracy),
            )
        return 0

    def _opened(self) -> workbench.Study:
        if self._bench is None:
            materials = workbench.Materials(
                base=self._zoo.base,
                sources=tuple(self._zoo.sources.values()),
                tasks=self._zoo.task_file,
                device=self._device,
                batch_size=128,
            )
            self._bench = self._stack.enter_context(workbench.opened(materials))
        return self._bench


@contextlib.contextmanager
def fast(device: str) -> Iterator[None]:
    """Let the forward passes run in bfloat16."""
    with torch.autocast(device.partition(":")[0], torch.bfloat16):
        yield


def _row(seed: int, point: Point) -> dict[str, Any]:
    return {
        "kind": "merge",
        "seed": seed,
        "recipe": fields(point.recipe),
        "members": sorted(point.members),
        "split": point.split,
        "images": point.images,
    }


def fields(settings: recipe.MergeRecipe) -> dict[str, Any]:
    """The fields of a recipe that differ from the bare defaults, for short lines."""
    bare = recipe.MergeRecipe(density=1.0).to_dict()
    given = settings.to_dict()
    return {
        name: given[name] for name in given if name == "density" or given[name] != bare.get(name)
    }


def _key(row: Mapping[str, Any]) -> str:
    kept = {name: row[name] for name in ("seed", "recipe", "members", "split", "images")}
    return json.dumps(kept, sort_keys=True)
