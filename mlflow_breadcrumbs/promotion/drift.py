"""How the accuracy of the same weights changes from one set of images to the next, task by task."""

import dataclasses
import datetime
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from mlflow_breadcrumbs.promotion import facts
from mlflow_breadcrumbs.support import intervals


@dataclasses.dataclass(frozen=True)
class Drift:
    """One task: what was known when the version was promoted, and what was measured now."""

    before: facts.Measurement
    now: facts.Measurement

    @property
    def task(self) -> str:
        """Its name."""
        return self.now.task

    @property
    def change(self) -> float:
        """Of the accuracy since then, -1…1; of another metric, by how much it is better."""
        return self.now.scale.gain(self.now.accuracy, self.before.accuracy)

    def interval(self) -> intervals.Interval | None:
        """Between which changes the true one is, 95%; the images are independent samples.

        `None` for a metric that is no fraction of counted examples.
        """
        if self.now.counts is None or self.before.counts is None:
            return None
        return intervals.newcombe(self.now.counts, self.before.counts)

    def to_dict(self) -> dict[str, Any]:
        """One row of a table."""
        low, high = self.interval() or (None, None)
        return {
            "task": self.task,
            "images": self.now.total,
            "before": self.before.accuracy,
            "accuracy": self.now.accuracy,
            "drift": self.change,
            "drift_low": low,
            "drift_high": high,
            "measured_before": self.before.measured.isoformat(timespec="seconds"),
            "dataset_digest": self.now.dataset_digest,
        }


def drifts(
    measurements: Sequence[facts.Measurement],
    fresh: Collection[facts.Measurement],
    promoted: datetime.datetime | None,
) -> Iterator[Drift]:
    """The drift of each task that was measured now and before.

    It is held against the newest measurement from before the promotion; against the oldest there
    is, where nothing is that old.

    Args:
        measurements: of the weights, on the split of the fresh ones, in any order.
        fresh: those of now, one per task.
        promoted: when the version was promoted, if that is known.
    """
    for now in fresh:
        earlier = sorted(
            (
                entry
                for entry in measurements
                if (entry.task, entry.scale) == (now.task, now.scale) and entry not in fresh
            ),
            key=lambda entry: entry.measured,
        )
        old = [entry for entry in earlier if promoted and entry.measured <= promoted]
        if earlier:
            yield Drift((old or earlier[:1])[-1], now)


def points(measurements: Sequence[facts.Measurement]) -> list[dict[str, Any]]:
    """Every measured fraction as a row for the picture, the oldest first."""
    rows = []
    for entry in sorted(measurements, key=lambda entry: entry.measured):
        if not is_drawn(entry):
            continue
        known = intervals.wilson(*entry.counts) if entry.counts else None
        low, high = known or (entry.accuracy, entry.accuracy)
        rows.append(
            {
                "task": entry.task,
                "time": entry.measured,
                "images": entry.total,
                "accuracy": entry.accuracy,
                "accuracy_low": low,
                "accuracy_high": high,
            }
        )
    return rows


def is_drawn(entry: facts.Measurement) -> bool:
    """Whether a measurement has room in a picture of fractions, 0…1, where more is better."""
    scale = entry.scale
    return (scale.greater_is_better, scale.low, scale.high) == (True, 0.0, 1.0)
