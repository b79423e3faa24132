"""What a merged model's accuracies say, in sentences: the tasks that it is of no use for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs.support import scales

ENOUGH = 0.5
"""Normalized accuracy below which a task has a sentence, whatever the base has."""


def warnings(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """One sentence, without its full stop, per task that does not go well; worst first.

    A task goes badly where the merged model does no better than guessing, is below the base, or
    keeps less than `ENOUGH` of its source's accuracy.

    Args:
        rows: one per task, see `scorecard.Scorecard.rows`; what is missing in rows of an earlier
            release is not judged.
    """
    shown = [scales.shown(row) for row in rows]
    found = [(kind, row["accuracy"], said) for row in shown for kind, said in _judged(row)]
    return tuple(said for _, _, said in sorted(found))


def _judged(row: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """How bad a task is, 0 the worst, and the sentence; nothing if it is not."""
    task, merged = row["task"], row["accuracy"]
    low, high = row.get("accuracy_low"), row.get("accuracy_high")
    chance, base = row.get("chance_accuracy"), row.get("zero_shot_accuracy")
    kept = row.get("normalized_accuracy")
    if chance is not None and low is not None and low <= chance:
        yield (
            0,
            f"{task}: {merged:.3f} can't be told from guessing among its classes ({chance:.3f})",
        )
    elif base is not None and _is_worse(row, merged, base):
        surely = "metric" in row or (high is not None and high < base)
        how = "" if surely else ", though on so few images that may be luck"
        word = "below" if row.get("greater_is_better", True) else "above"
        yield 1, f"{task}: {merged:.3f} is {word} the base's {base:.3f}{how}"
    elif kept is not None and kept < ENOUGH:
        yield 2, f"{task}: {merged:.3f} is {kept:.0%} of what its source has"


def _is_worse(row: Mapping[str, Any], merged: float, base: float) -> bool:
    """Whether it is certain that one value is worse than the other."""
    if "metric" in row and "greater_is_better" not in row:
        return False
    return merged < base if row.get("greater_is_better", True) else merged > base
