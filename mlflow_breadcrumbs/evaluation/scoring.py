"""How good a model is on a task: features once, then the accuracy of one head or several.

```python
seen = features.extract(model, image_set, preprocess, device="cuda")
result = scoring.score(seen, head, image_set)  # or scoring.accuracy(…) for both in one call
```

The same model on the same images with the same settings and device gives the same numbers.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.figures import results
from mlflow_breadcrumbs.models import architecture, features, image_sets, task_heads
from mlflow_breadcrumbs.support import defaults, intervals, progress, scales


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

    @property
    def scale(self) -> scales.Scale:
        """The fraction of answers that are right."""
        return scales.ACCURACY

    @property
    def chance(self) -> float:
        """What guessing gives, each class as often as any other, 0…1."""
        return 1 / len(self.classes)

    def interval(self, confidence: float = 0.95) -> intervals.Interval:
        """Between which fractions the accuracy on images like these is; see `wilson`."""
        return intervals.wilson(self.correct, self.total, confidence)

    def origin(self) -> dict[str, Any]:
        """Nothing: images are counted by this package."""
        return {}

    def confusion(self) -> npt.NDArray[np.int64]:
        """Count the images by true and predicted class, [classes, classes]."""
        counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
        for label, predicted, images in self.outcomes:
            counts[label, predicted] = images
        return counts

    def picture(self) -> bytes:
        """The confusion matrix as PNG."""
        low, high = self.interval()
        title = f"{self.image_set}: {self.value:.3f} ({low:.3f} to {high:.3f})"
        return results.confusion(self.classes, self.confusion(), title)

    def per_class(self) -> list[dict[str, Any]]:
        """Give one row per class that has images: accuracy, interval, and what it is taken for."""
        counts, rows = self.confusion(), []
        for label, name in enumerate(self.classes):
            if not (images := int(counts[label].sum())):
                continue
            correct = int(counts[label, label])
            low, high = intervals.wilson(correct, images)
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


def accuracy(
    model: torch.nn.Module,
    head: task_heads.Head,
    image_set: image_sets.ImageSet,
    preprocess: architecture.Preprocess,
    *,
    batch_size: int = defaults.BATCH_SIZE,
    device: str = "cpu",
    show: progress.Progress = progress.silent,
) -> Accuracy:
    """Measure the accuracy of a model with a head on an image set.

    The model is moved to the device and stays there.

    Raises:
        TaskError: The head's classes are not the image set's, in that order.
        DeviceError: Not even one image fits into the device's memory.
    """
    check_classes(head, image_set)
    seen = features.extract(
        model, image_set, preprocess, batch_size=batch_size, device=device, show=show
    )
    return score(seen, head, image_set)


def score(
    seen: features.Features, head: task_heads.Head, image_set: image_sets.ImageSet
) -> Accuracy:
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


def check_classes(head: task_heads.Head, image_set: image_sets.ImageSet) -> None:
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
