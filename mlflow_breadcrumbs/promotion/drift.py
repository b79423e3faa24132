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
        """Of the accuracy since then, -1…1."""
        return self.now.accuracy - self.before.accuracy

    def interval(self) -> intervals.Interval:
        """Between which changes the true one is, 95%; the images are independent samples."""
        return intervals.newcombe(
            (self.now.correct, self.now.total), (self.before.correct, self.before.total)
        )

    def to_dict(self) -> dict[str, Any]:
        """One row of a table."""
        low, high = self.interval()
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
            (entry for entry in measurements if entry.task == now.task and entry not in fresh),
            key=lambda entry: entry.measured,
        )
        old = [entry for entry in earlier if promoted and entry.measured <= promoted]
        if earlier:
            yield Drift((old or earlier[:1])[-1], now)


def points(measurements: Sequence[facts.Measurement]) -> list[dict[str, Any]]:
    """Every measurement as a row for the picture, the oldest first."""
    rows = []
    for entry in sorted(measurements, key=lambda entry: entry.measured):
        low, high = intervals.wilson(entry.correct, entry.total)
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
