"""Single numbers held against limits, and measurements told in words: what `gates` is made of."""

import datetime
import math

from mlflow_breadcrumbs.promotion import facts, fields, policies, verdicts
from mlflow_breadcrumbs.support import wording

NO_INTERVAL = "{} does not say how many examples were right, so that there is no interval"
"""With the origin of a measurement."""
CLOCKS = datetime.timedelta(minutes=5)
"""By how much the clocks of two machines may differ."""


def counted(found: facts.Measurement) -> str:
    """What an accuracy rests on."""
    if found.counts is None:
        return f"of {found.origin}"
    return f"{found.correct} of {wording.counted(found.counts[1], 'images')}"


def other_metric(found: facts.Measurement) -> str:
    """Why there is no accuracy to be held against a limit, and what to do."""
    name = f"{found.scale.metric}/{found.task}"
    return (
        f"{found.task} was measured by {found.scale.metric}, {found.accuracy:.4g}; ask for "
        f"normalized_accuracy, or for {name} under metrics"
    )


def plain_regression(
    name: str, asked: policies.NoRegression, ours: facts.Measurement, theirs: facts.Measurement
) -> verdicts.Rule:
    """The same for a metric without an interval: the two numbers, in the metric's own unit.

    That a loss is ruled out can't be shown by numbers alone.
    """
    limit, gain = -asked.margin + 0.0, ours.scale.gain(ours.accuracy, theirs.accuracy)
    said = f"{ours.scale.metric} {ours.accuracy:.4g}, the champion {theirs.accuracy:.4g}"
    if gain < limit:
        return verdicts.Rule(name, gain, limit, "failed", f"{said}: worse by more than the margin")
    if asked.test == "non_inferiority":
        why = f"{said}: {NO_INTERVAL.format(ours.origin)}, by which a loss could be ruled out"
        return verdicts.Rule(name, gain, limit, "unknown", why)
    return verdicts.Rule(name, gain, limit, "passed", f"{said}; there is no interval to judge by")


def at_least(name: str, value: float, limit: float, what: str) -> verdicts.Rule:
    """A number that must be at least a limit; `what` is the sentence, or its beginning."""
    if not math.isfinite(value):
        return verdicts.Rule(name, str(value), limit, "unknown", f"{what}: not a number")
    if value >= limit:
        return verdicts.Rule(name, value, limit, "passed", what)
    return verdicts.Rule(name, value, limit, "failed", f"{what}: below {limit:g}")


def age(
    name: str, age: datetime.timedelta, limit: datetime.timedelta, what: str, how: str
) -> verdicts.Rule:
    """An age that must be at most a limit; `how` says what to do where it is not."""
    asked = fields.duration_text(limit)
    if age < -CLOCKS:
        return verdicts.Rule(
            name, None, asked, "unknown", f"{what}: that is to come; check the clocks"
        )
    shown = duration(max(age, datetime.timedelta()))
    if age <= limit:
        return verdicts.Rule(name, shown, asked, "passed", what)
    return verdicts.Rule(name, shown, asked, "failed", f"{what}: older than {asked}; {how}")


def duration(age: datetime.timedelta) -> str:
    """An age for people, in the largest unit of which there are two."""
    seconds = age.total_seconds()
    for unit in ("day", "hour"):
        if seconds >= 2 * fields.UNITS[unit]:
            return f"{seconds / fields.UNITS[unit]:.1f} {unit}s"
    return f"{seconds / 60:.0f} minutes"
