"""How a merged model compares, task by task, with its base and with its fine-tuned sources.

Every accuracy is measured here, on the same images with the same settings; the denominator of a
normalized accuracy too.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.evaluation import caches, meters, scoring
from mlflow_breadcrumbs.models import architecture, image_sets, task_heads, tasks
from mlflow_breadcrumbs.support import defaults, progress


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A source with the heads of its tasks."""

    label: str
    weights: Path
    heads: Mapping[str, task_heads.Head]
    weights_digest: str | None = None
    """Of the weights, where their bytes were held against it."""
    config: architecture.ModelConfig | None = None
    """Its own, where it preprocesses images otherwise than the base."""


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """One task: the base, the source that was fine-tuned for it, and the merged model."""

    task: str
    source: str
    """How the source is called."""
    zero_shot: scoring.Accuracy
    finetuned: scoring.Accuracy
    merged: scoring.Accuracy

    @property
    def normalized(self) -> float:
        """The merged model's accuracy as a fraction of the source's; may exceed 1."""
        return self.merged.value / self.finetuned.value

    def to_dict(self) -> dict[str, Any]:
        """One row of a table."""
        return {
            "task": self.task,
            "source": self.source,
            "images": self.merged.total,
            **_with_interval("zero_shot_accuracy", self.zero_shot),
            **_with_interval("finetuned_accuracy", self.finetuned),
            **_with_interval("accuracy", self.merged),
            "chance_accuracy": self.merged.chance,
            "normalized_accuracy": self.normalized,
            "dataset": self.merged.image_set,
            "dataset_digest": self.merged.dataset_digest,
        }


@dataclasses.dataclass(frozen=True)
class Scorecard:
    """A merged model on all of its tasks."""

    scores: tuple[TaskScore, ...]
    images: tuple[image_sets.ImageSet, ...]
    """What was looked at, one image set per task."""

    @property
    def average_accuracy(self) -> float:
        """The mean of the merged model's accuracies, each task counting alike."""
        return sum(score.merged.value for score in self.scores) / len(self.scores)

    @property
    def average_normalized_accuracy(self) -> float:
        """The mean of the normalized accuracies (Davari & Belilovsky 2024, section 4)."""
        return sum(score.normalized for score in self.scores) / len(self.scores)

    def metrics(self) -> dict[str, float]:
        """The metrics of the contract, by name, and the 95% interval of each accuracy.

        MLflow's page of a run shows metrics in the order in which they were logged, so those that
        matter come first.
        """
        values = {
            "average_normalized_accuracy": self.average_normalized_accuracy,
            "average_accuracy": self.average_accuracy,
        }
        values |= {f"normalized_accuracy/{score.task}": score.normalized for score in self.scores}
        values |= {f"accuracy/{score.task}": score.merged.value for score in self.scores}
        for score in self.scores:
            low, high = score.merged.interval()
            values[f"accuracy_low/{score.task}"] = low
            values[f"accuracy_high/{score.task}"] = high
            values[f"finetuned_accuracy/{score.task}"] = score.finetuned.value
            values[f"zero_shot_accuracy/{score.task}"] = score.zero_shot.value
            values[f"chance_accuracy/{score.task}"] = score.merged.chance
        return values

    def seconds(self) -> dict[str, float]:
        """How long the images took: the sources, each on its own task, and the merged model."""
        return {
            "evaluation_seconds/sources": sum(score.finetuned.seconds for score in self.scores),
            "evaluation_seconds/merged": sum(score.merged.seconds for score in self.scores),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The table, one row per task."""
        return [score.to_dict() for score in self.scores]


def _with_interval(key: str, accuracy: scoring.Accuracy) -> dict[str, float]:
    low, high = accuracy.interval()
    return {key: accuracy.value, f"{key}_low": low, f"{key}_high": high}


def plan(
    candidates: Sequence[Candidate], file: Sequence[tasks.Task]
) -> tuple[tuple[int, tasks.Task], ...]:
    """Which task of a task file is measured with which source; tasks of no source are left out.

    Raises:
        TaskError: a source has no task, or one that the file does not have.
    """
    by_name = {task.name: task for task in file}
    pairs = []
    for number, candidate in enumerate(candidates):
        if not candidate.heads:
            raise errors.TaskError(
                f"{candidate.label} carries no task head, so it can't be evaluated; import it "
                "with --task and --tasks, or merge without --tasks"
            )
        for name in candidate.heads:
            if name not in by_name:
                raise errors.TaskError(
                    f"{candidate.label} is fine-tuned for the task {name!r}, which the task file "
                    f"does not have; it has {', '.join(by_name)}. Add the task to the file"
                )
            pairs.append((number, by_name[name]))
    return tuple(pairs)


def measure(
    config: architecture.ModelConfig,
    base: Path,
    candidates: Sequence[Candidate],
    merged: Path,
    pairs: Sequence[tuple[int, tasks.Task]],
    *,
    base_digest: str | None = None,
    merged_digest: str | None = None,
    split: tasks.Split = "test",
    device: str = "cpu",
    batch_size: int = defaults.BATCH_SIZE,
    cache: caches.Cache | None = None,
    show: progress.Progress = progress.silent,
) -> Scorecard:
    """Evaluate the base, each source on its own tasks, and the merged model on all tasks.

    Args:
        config: the base's; a candidate that has its own is measured with that.
        base: the base's checkpoint file.
        candidates: the sources.
        merged: the merged checkpoint file.
        pairs: what `plan` gave.
        base_digest: weights digest of the base, if it was checked; without it, or without that of
            a candidate, its accuracies are measured though they may be in the cache.
        merged_digest: the same of the merged model.
        split: of the images.
        device: what `devices.choose_device` gave.
        batch_size: images at a time.
        cache: of accuracies; `None` measures each.
        show: is told about the images.

    Raises:
        TaskError: images are missing or unreadable, or a source gets none right on its own task.
        DeviceError: not even one image fits into the device's memory.
    """
    sets = {task.name: task.images(split) for _, task in pairs}
    owned = {task.name: candidates[number].heads[task.name] for number, task in pairs}
    for name, head in owned.items():
        scoring.check_classes(head, sets[name])
    meter = meters.Meter(config, device, batch_size, cache, show)
    build = functools.cache(lambda: architecture.build(config))  # one model takes all weights

    def accuracies(
        weights: Path,
        digest: str | None,
        names: Sequence[str],
        own: architecture.ModelConfig | None = None,
    ) -> dict[str, scoring.Accuracy]:
        def load() -> torch.nn.Module:
            flavor.load_weights(build(), weights)
            return build()

        pairs = [(owned[name], sets[name]) for name in names]
        with_own = meter if own is None else dataclasses.replace(meter, config=own)
        found = with_own.accuracies(load, pairs, weights_digest=digest)
        return dict(zip(names, found, strict=True))

    zero_shot = accuracies(base, base_digest, list(sets))
    finetuned: dict[str, scoring.Accuracy] = {}
    for number, candidate in enumerate(candidates):
        own = [task.name for owner, task in pairs if owner == number]
        finetuned |= accuracies(candidate.weights, candidate.weights_digest, own, candidate.config)
    after = accuracies(merged, merged_digest, list(sets))
    for accuracy in finetuned.values():
        if accuracy.correct == 0:
            raise no_denominator(accuracy)
    return Scorecard(
        tuple(
            TaskScore(
                task=task.name,
                source=candidates[number].label,
                zero_shot=zero_shot[task.name],
                finetuned=finetuned[task.name],
                merged=after[task.name],
            )
            for number, task in pairs
        ),
        tuple(sets.values()),
    )


def no_denominator(accuracy: scoring.Accuracy) -> errors.TaskError:
    """The error for a source that gets nothing right on its own task."""
    return errors.TaskError(
        f"the source of the task {accuracy.task!r} gets none of {accuracy.total} images right, so "
        "normalized accuracy has no denominator; check the class names and the images"
    )
