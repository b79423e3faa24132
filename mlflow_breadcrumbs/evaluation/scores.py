"""What a measurement gives, whoever made it, and the grades that a user's own evaluator gives."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from mlflow_breadcrumbs.support import intervals, scales


class Score(Protocol):
    """How good one set of weights is on one task."""

    @property
    def task(self) -> str:
        """Its name."""

    @property
    def value(self) -> float:
        """In the unit of its scale."""

    @property
    def scale(self) -> scales.Scale:
        """What the value means."""

    @property
    def total(self) -> int | None:
        """On how many examples it was measured; `None` where nobody says."""

    @property
    def correct(self) -> int | None:
        """How many of them are right; `None` where the value is no fraction of them."""

    @property
    def chance(self) -> float | None:
        """What guessing gives; `None` where nobody can say."""

    @property
    def image_set(self) -> str:
        """What the data are called."""

    @property
    def dataset_digest(self) -> str:
        """Of the data, `sha256:…`."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    def interval(self, confidence: float = 0.95) -> intervals.Interval | None:
        """Between which values the true one is; `None` where it is no counted fraction."""

    def origin(self) -> dict[str, Any]:
        """Who measured it, for a row of a table; nothing for images."""

    def to_dict(self) -> dict[str, Any]:
        """One row of a table."""


@dataclasses.dataclass(frozen=True)
class Grade:
    """What a user's evaluator says of one set of weights on one task."""

    task: str
    scale: scales.Scale
    value: float
    """Within the scale's range."""
    total: int | None
    """Examples, at least 1; `None` where the evaluator does not say."""
    correct: int | None
    """Of these, where the value is the fraction of examples that are right."""
    image_set: str
    """What the data are called: their file, or the evaluator that has them itself."""
    dataset_digest: str
    """Of the file of the data; of the evaluator, where the data are its own."""
    evaluator: str
    """In words, as `scores:f1`."""
    evaluator_digest: str
    """Of these words and of the files that they name, `sha256:…`."""
    seconds: float = dataclasses.field(compare=False)

    @property
    def chance(self) -> None:
        """Nobody knows what guessing gives."""
        return

    def interval(self, confidence: float = 0.95) -> intervals.Interval | None:
        """Wilson's interval of a fraction of counted examples; nothing for other metrics."""
        if self.correct is None or self.total is None:
            return None
        return intervals.wilson(self.correct, self.total, confidence)

    def origin(self) -> dict[str, Any]:
        """The evaluator."""
        return {"evaluator": self.evaluator, "evaluator_digest": self.evaluator_digest}

    def to_dict(self) -> dict[str, Any]:
        """The number with what it means and with who says so, for JSON and tables."""
        counts = {"correct": self.correct, "total": self.total}
        return {
            "task": self.task,
            **({} if self.scale.is_accuracy else self.scale.to_dict()),
            **value_with_interval("accuracy", self),
            **{key: count for key, count in counts.items() if count is not None},
            "image_set": self.image_set,
            "dataset_digest": self.dataset_digest,
            **self.origin(),
            "seconds": self.seconds,
        }


def value_with_interval(key: str, score: Score) -> dict[str, float]:
    """A score's value under a key of `scales.VALUES`, with its interval where it has one.

    A metric other than the accuracy has the other key of the two.
    """
    key = key if score.scale.is_accuracy else scales.VALUES[key]
    found = score.interval()
    if found is None:
        return {key: score.value}
    return {key: score.value, f"{key}_low": found.low, f"{key}_high": found.high}


def metrics(measured: Sequence[Score]) -> dict[str, float]:
    """Name the scores of a model's tasks as MLflow's metrics.

    `accuracy/<task>`, or the name of the metric in place of `accuracy`, with
    `accuracy_low/<task>` and `accuracy_high/<task>`, the ends of the 95% interval, where there is
    one; and `average_accuracy`, in which each task counts alike, where all have the same metric.
    """
    values = averages("average_{}", measured)  # MLflow shows metrics in the order of their logging
    values |= {f"{found.scale.metric}/{found.task}": found.value for found in measured}
    for found in measured:
        values |= interval_metrics(found)
    return values


def averages(form: str, measured: Sequence[Score]) -> dict[str, float]:
    """The mean under a name with the metric in it; nothing where the metrics differ."""
    if len({found.scale for found in measured}) != 1:
        return {}
    name = form.format(measured[0].scale.metric)
    return {name: sum(found.value for found in measured) / len(measured)}


def interval_metrics(found: Score) -> dict[str, float]:
    """The ends of a score's interval as MLflow's metrics, where it has one."""
    ends = found.interval()
    if ends is None:
        return {}
    name = found.scale.metric
    return {f"{name}_low/{found.task}": ends.low, f"{name}_high/{found.task}": ends.high}
