"""How a merged model compares, task by task, with its base and with its fine-tuned sources.

Every accuracy is measured here, on the same images with the same settings; the denominator of a
normalized accuracy too.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.evaluation import caches, examiners, meters, scores, scoring
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
    zero_shot: scores.Score
    finetuned: scores.Score
    merged: scores.Score

    @property
    def normalized(self) -> float:
        """What the merged model keeps of the source's value, see `Scale.kept`; may exceed 1.

        Raises:
            TaskError: no fraction of the source's value can be told.
        """
        kept = self.merged.scale.kept(self.merged.value, self.finetuned.value)
        if kept is None:
            raise no_denominator(self.finetuned, self.merged)
        return kept

    def to_dict(self) -> dict[str, Any]:
        """One row of a table; the keys of a metric other than the accuracy are `scales.VALUES`."""
        merged = self.merged
        row: dict[str, Any] = {"task": self.task, "source": self.source}
        if merged.scale.is_accuracy:
            row |= {} if merged.total is None else {"images": merged.total}
        else:
            row |= merged.scale.to_dict()
            row |= {} if merged.total is None else {"examples": merged.total}
        chance = {} if merged.chance is None else {"chance_accuracy": merged.chance}
        return {
            **row,
            **scores.value_with_interval("zero_shot_accuracy", self.zero_shot),
            **scores.value_with_interval("finetuned_accuracy", self.finetuned),
            **scores.value_with_interval("accuracy", merged),
            **chance,
            "normalized_accuracy": self.normalized,
            "dataset": merged.image_set,
            "dataset_digest": merged.dataset_digest,
            **merged.origin(),
        }


@dataclasses.dataclass(frozen=True)
class Scorecard:
    """A merged model on all of its tasks."""

    scores: tuple[TaskScore, ...]
    images: tuple[image_sets.ImageSet, ...]
    """What was looked at, one image set per task."""

    @property
    def average_accuracy(self) -> float:
        """The mean of the merged model's values, each task counting alike."""
        return sum(score.merged.value for score in self.scores) / len(self.scores)

    @property
    def average_normalized_accuracy(self) -> float:
        """The mean of the normalized accuracies (Davari & Belilovsky 2024, section 4)."""
        return sum(score.normalized for score in self.scores) / len(self.scores)

    def metrics(self) -> dict[str, float]:
        """The metrics of the contract, by name, and the 95% interval of each accuracy.

        A task of another metric has that one's name in place of `accuracy`; what is kept of the
        sources is `normalized_accuracy` for all. MLflow's page of a run shows metrics in the order
        in which they were logged, so those that matter come first.
        """
        values = {"average_normalized_accuracy": self.average_normalized_accuracy}
        values |= scores.averages("average_{}", [score.merged for score in self.scores])
        values |= {f"normalized_accuracy/{score.task}": score.normalized for score in self.scores}
        values |= {f"{_metric(score)}/{score.task}": score.merged.value for score in self.scores}
        for score in self.scores:
            name, task = _metric(score), score.task
            values |= scores.interval_metrics(score.merged)
            values[f"finetuned_{name}/{task}"] = score.finetuned.value
            values[f"zero_shot_{name}/{task}"] = score.zero_shot.value
            if score.merged.chance is not None:
                values[f"chance_{name}/{task}"] = score.merged.chance
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


def _metric(score: TaskScore) -> str:
    return score.merged.scale.metric


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
    examiner = examiners.ImageExaminer(
        meters.Meter(config, device, batch_size, cache, show), owned, sets
    )
    found = compare(
        examiner,
        examiners.Examined("the base", base, base_digest),
        [
            examiners.Examined(each.label, each.weights, each.weights_digest, each.config)
            for each in candidates
        ],
        examiners.Examined("the merged model", merged, merged_digest),
        [(number, task.name) for number, task in pairs],
    )
    return Scorecard(found, tuple(sets.values()))


def compare(
    examiner: examiners.Examiner,
    base: examiners.Examined,
    sources: Sequence[examiners.Examined],
    merged: examiners.Examined,
    pairs: Sequence[tuple[int, str]],
) -> tuple[TaskScore, ...]:
    """Examine the base and the merged model on all tasks, each source on its own.

    Args:
        examiner: who measures.
        base: the model that the sources were fine-tuned from.
        sources: in the order that `pairs` counts by.
        merged: the model that is judged.
        pairs: the source, by its position, and the name of each task.

    Raises:
        TaskError: no fraction of a source's value can be told.
        BreadcrumbsError: what the examiner raises.
    """
    names = [name for _, name in pairs]
    zero_shot = examiner.examine(base, names)
    finetuned: dict[str, scores.Score] = {}
    for number, source in enumerate(sources):
        own = [name for owner, name in pairs if owner == number]
        if own:
            finetuned |= examiner.examine(source, own)
    after = examiner.examine(merged, names)
    for score in finetuned.values():
        check_denominator(score)
    return tuple(
        TaskScore(
            task=name,
            source=sources[number].label,
            zero_shot=zero_shot[name],
            finetuned=finetuned[name],
            merged=after[name],
        )
        for number, name in pairs
    )


def check_denominator(score: scores.Score) -> None:
    """Raise `TaskError` for a source's score that nothing can be divided by."""
    if score.scale.kept(score.value, score.value) is None:
        raise no_denominator(score)


def no_denominator(source: scores.Score, merged: scores.Score | None = None) -> errors.TaskError:
    """The error where no fraction of a source's score can be told."""
    if source.scale.is_accuracy:
        counted = f"of {source.total} images " if source.total is not None else ""
        return errors.TaskError(
            f"the source of the task {source.task!r} gets none {counted}right, so "
            "normalized accuracy has no denominator; check the class names and the images"
        )
    name = source.scale.metric
    against = f" and the merged model {merged.value:g}" if merged else ""
    return errors.TaskError(
        f"the source of the task {source.task!r} has {name} {source.value:g}{against}, of which no "
        f"fraction can be told; check the data, or give {name} a range with another end"
    )
