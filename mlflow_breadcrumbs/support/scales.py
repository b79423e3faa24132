"""What a metric's numbers mean: its name, which direction is better, and between which numbers.

```python
perplexity = scales.Scale("perplexity", greater_is_better=False, low=1.0, high=math.inf)
perplexity.normalized(22.0, 20.0)  # 0.909…: what is kept of the source's
```
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
"""Of a metric or a task that an evaluator names: it is part of the names of MLflow's metrics."""

PREFIXES = ("average_", "chance_", "finetuned_", "normalized_", "zero_shot_")
SUFFIXES = ("_low", "_high")
"""What the names of a scorecard's metrics are made with, so that no metric is called so."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """A metric with its direction and its range."""

    metric: str = "accuracy"
    greater_is_better: bool = True
    low: float = 0.0
    """The smallest number that it can be; may be -inf."""
    high: float = 1.0
    """The largest; may be inf."""

    def __post_init__(self) -> None:
        """Refuse what no fraction of a source's value can be told of; `ValueError`."""
        if not NAME.fullmatch(self.metric):
            raise ValueError(f"the metric {self.metric!r} is not of the form {NAME.pattern}")
        means = (self.greater_is_better, self.low, self.high)
        if self.metric == "accuracy" and means != (True, 0.0, 1.0):
            raise ValueError("accuracy is a fraction, 0 to 1; give what is none another name")
        if self.metric.startswith(PREFIXES) or self.metric.endswith(SUFFIXES):
            taken = ", ".join((*PREFIXES, *SUFFIXES))
            raise ValueError(f"the metric {self.metric!r} has a part that is taken ({taken})")
        if not self.low < self.high:
            raise ValueError(f"the range {self.low:g} to {self.high:g} of {self.metric} is empty")
        if math.isinf(self.worst) and (self.greater_is_better or self.low < 0):
            ends = "a finite lower end" if self.greater_is_better else "a lower end of at least 0"
            raise ValueError(
                f"the range {self.low:g} to {self.high:g} of {self.metric} has no worst end, so "
                f"that nothing can be told as a fraction of a source's value; give {ends}"
            )

    @property
    def is_accuracy(self) -> bool:
        """Whether it is what `accuracy` means everywhere else: right answers among all."""
        return self == ACCURACY

    @property
    def worst(self) -> float:
        """The end of the range that is worst; may be infinite where less is better."""
        return self.low if self.greater_is_better else self.high

    def fault(self, value: float) -> str | None:
        """Why a number is none of this metric, as the end of a sentence; `None` if it is one."""
        if not math.isfinite(value):
            return f"{value}, which is no finite number"
        if not self.low <= value <= self.high:
            return f"{value:g}, outside its range {self.low:g} to {self.high:g}"
        return None

    def kept(self, value: float, source: float) -> float | None:
        """A value as a fraction of the source's, 1 where it is as good; `None` without such.

        How far the value is from the worst end of the range, divided by how far the source's is.
        So an error rate, 0…1, counts as the accuracy that it leaves. Where less is better without
        an upper end, as of a loss or a perplexity: the source's value divided by the value.
        """
        if math.isinf(self.worst):
            return source / value if value > 0 else None
        distance = abs(source - self.worst)
        return abs(value - self.worst) / distance if distance > 0 else None

    def gain(self, value: float, other: float) -> float:
        """By how much a value is better than another, in the metric's own unit."""
        return value - other if self.greater_is_better else other - value

    def to_dict(self) -> dict[str, Any]:
        """For JSON: an end that is infinite is null."""
        ends = [end if math.isfinite(end) else None for end in (self.low, self.high)]
        return {"metric": self.metric, "greater_is_better": self.greater_is_better, "range": ends}


ACCURACY = Scale()
"""The fraction of answers that are right."""


def of_row(row: Mapping[str, Any]) -> Scale:
    """The scale of a row of a table of values: that of accuracies, where it names none.

    Raises:
        ValueError: it is not one.
        LookupError: something of it is missing.
    """
    if "metric" not in row:
        return ACCURACY
    low, high = row["range"]
    return Scale(
        str(row["metric"]),
        bool(row["greater_is_better"]),
        -math.inf if low is None else float(low),
        math.inf if high is None else float(high),
    )


VALUES = {
    "zero_shot_accuracy": "zero_shot_value",
    "finetuned_accuracy": "finetuned_value",
    "accuracy": "value",
}
"""The keys of a row's values where they are accuracies, and where they are of another metric."""


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a table or a picture whose columns are named for accuracies, whatever its metric.

    Its task then has the name of the metric behind it, and `images` is what it was measured on.
    """
    found = dict(row)
    if "value" in row:
        found["task"] = f"{row['task']} ({row['metric']})"
        for key, other in VALUES.items():
            for end in ("", "_low", "_high"):
                if other + end in row:
                    found[key + end] = row[other + end]
    if "examples" in row:
        found.setdefault("images", row["examples"])
    return found
