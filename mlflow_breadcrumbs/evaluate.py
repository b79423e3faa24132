"""How good a model is on a task: features once, then the accuracy of one head or several.

```python
seen = features.extract(model, image_set, preprocess, device="cuda")
result = evaluate.score(seen, head, image_set)  # or evaluate.accuracy(…) for both in one call
```

The same model on the same images with the same settings and device gives the same numbers.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mlflow_breadcrumbs import architecture, errors, features, heads, image_sets, progress


class Interval(NamedTuple):
    """What an accuracy may be on images like these, 0…1 each."""

    low: float
    high: float


def wilson(correct: int, total: int, confidence: float = 0.95) -> Interval:
    """The score interval of a fraction (Wilson 1927; Brown, Cai & DasGupta 2001, section 3.1.1).

    Unlike the mean ± 2 standard errors it stays inside 0…1, and has a width where all or none of
    the images are right.

    Args:
        correct: 0 … `total`.
        total: images, at least 1.
        confidence: 0 < confidence < 1.
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread * spread / 4) / (1 + spread)
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return Interval(low, high)


def newcombe(one: tuple[int, int], other: tuple[int, int], confidence: float = 0.95) -> Interval:
    """The interval of the difference of two fractions, `one` − `other`, -1…1.

    Method 10 of Newcombe (1998), "Interval estimation for the difference between independent
    proportions": Wilson's intervals, combined by the squares of their halves. Two models on the
    same images are usually right on the same ones, so that the true interval is narrower.

    Args:
        one: correct and total.
        other: the same of what it is held against.
        confidence: 0 < confidence < 1.
    """
    (one_low, one_high), (other_low, other_high) = (
        wilson(*counts, confidence) for counts in (one, other)
    )
    one_share, other_share = one[0] / one[1], other[0] / other[1]
    difference = one_share - other_share
    return Interval(
        difference - math.hypot(one_share - one_low, other_high - other_share),
        difference + math.hypot(one_high - one_share, other_share - other_low),
    )


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How many images of a task a model with a head got right."""

    task: str
    image_set: str
    """Name of the image set, `TASK/SPLIT`."""
    correct: int
    total: int
    head_kind: str
    dataset_digest: str
    batch_size: int
    seconds: float = dataclasses.field(compare=False)
    classes: tuple[str, ...]
    outcomes: tuple[tuple[int, int, int], ...]
    """(true label, predicted label, images), sorted, where there are any; they sum to `total`."""

    @property
    def value(self) -> float:
        """Fraction of the images, 0…1."""
        return self.correct / self.total

    def interval(self, confidence: float = 0.95) -> Interval:
        """Between which fractions the accuracy on images like these is; see `wilson`."""
        return wilson(self.correct, self.total, confidence)

    def confusion(self) -> npt.NDArray[np.int64]:
        """Count the images by true and predicted class, [classes, classes]."""
        counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
        for label, predicted, images in self.outcomes:
            counts[label, predicted] = images
        return counts

    def per_class(self) -> list[dict[str, Any]]:
        """Give one row per class that has images: accuracy, interval, and what it is taken for."""
        counts, rows = self.confusion(), []
        for label, name in enumerate(self.classes):
            if not (images := int(counts[label].sum())):
                continue
            correct = int(counts[label, label])
            low, high = wilson(correct, images)
            wrong = counts[label].copy()
            wrong[label] = 0
            rows.append(
                {
                    "task": self.task,
                    "class": name,
                    "correct": correct,
                    "total": images,
                    "accuracy": correct / images,
                    "accuracy_low": low,
                    "accuracy_high": high,
                    "most_confused_with": self.classes[int(wrong.argmax())] if wrong.any() else "",
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Give the numbers and the accuracy with its 95% interval, for JSON and tables."""
        fields = dataclasses.asdict(self)
        del fields["classes"], fields["outcomes"]
        low, high = self.interval()
        return {**fields, "accuracy": self.value, "accuracy_low": low, "accuracy_high": high}


def metrics(accuracies: Sequence[Accuracy]) -> dict[str, float]:
    """Name the accuracies of a model's tasks as MLflow's metrics, 0…1.

    `accuracy/<task>` with `accuracy_low/<task>` and `accuracy_high/<task>`, the ends of its 95%
    interval; and `average_accuracy`, in which each task counts alike.
    """
    values: dict[str, float] = {}
    for found in accuracies:
        low, high = found.interval()
        values[f"accuracy/{found.task}"] = found.value
        values[f"accuracy_low/{found.task}"] = low
        values[f"accuracy_high/{found.task}"] = high
    values["average_accuracy"] = sum(found.value for found in accuracies) / len(accuracies)
    return values


def accuracy(
    model: torch.nn.Module,
    head: heads.Head,
    image_set: image_sets.ImageSet,
    preprocess: architecture.Preprocess,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    progress: progress.Progress = progress.silent,
) -> Accuracy:
    """Measure the accuracy of a model with a head on an image set.

    The model is moved to the device and stays there.

    Raises:
        TaskError: The head's classes are not the image set's, in that order.
        DeviceError: Not even one image fits into the device's memory.
    """
    check_classes(head, image_set)
    seen = features.extract(
        model, image_set, preprocess, batch_size=batch_size, device=device, progress=progress
    )
    return score(seen, head, image_set)


def score(seen: features.Features, head: heads.Head, image_set: image_sets.ImageSet) -> Accuracy:
    """Measure the accuracy of a head on features that are there already.

    Raises:
        TaskError: The head's classes are not the image set's, in that order.
    """
    check_classes(head, image_set)
    predicted = (seen.values @ head.weight.T).argmax(dim=1)
    pairs = torch.stack([seen.labels, predicted], dim=1)
    kinds, images = torch.unique(pairs, dim=0, return_counts=True)
    return Accuracy(
        task=head.task,
        image_set=image_set.name,
        correct=int((predicted == seen.labels).sum()),
        total=len(image_set),
        head_kind=head.kind,
        dataset_digest=image_set.digest,
        batch_size=seen.batch_size,
        seconds=seen.seconds,
        classes=image_set.classes,
        outcomes=tuple(
            (label, guess, count)
            for (label, guess), count in zip(kinds.tolist(), images.tolist(), strict=True)
        ),
    )


def check_classes(head: heads.Head, image_set: image_sets.ImageSet) -> None:
    """Make sure that the head's rows mean what the image set's labels mean.

    Raises:
        TaskError: The classes differ, or are in another order.
    """
    if head.classes == image_set.classes:
        return
    ours, theirs = list(head.classes), list(image_set.classes)
    what = "are in another order" if sorted(ours) == sorted(theirs) else "differ"
    raise errors.TaskError(
        f"Task '{head.task}': the classes of the head and of the images {what}. "
        f"Head: {_abridged(ours)}. Images of {image_set.name}: {_abridged(theirs)}. "
        "List 'classes' in the task file as the head has them."
    )


def _abridged(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")
