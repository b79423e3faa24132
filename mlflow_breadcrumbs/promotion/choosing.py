"""Which measurement of a task counts: the newest that is what the policy asks for."""

import datetime
from collections.abc import Mapping, Sequence

from mlflow_breadcrumbs.promotion import facts, holding, numbers, policies


def choose(rules: policies.Policy, known: facts.Facts) -> dict[str, facts.Measurement | None]:
    """The measurement that counts for each task: the newest on the split and images asked for.

    Of a task that was measured by its accuracy and by other metrics, that is the accuracy.

    The tasks are those that the version was made for and those that the policy names; where
    neither names any, those that were measured.
    """
    if not rules.looks_at_accuracy:
        return {}
    names = dict.fromkeys((*known.tasks, *rules.named_tasks))
    measured = {entry.task: None for entry in known.measurements}
    return {task: newest(rules, known.measurements, task) for task in names or measured}


def numbers_of(
    rules: policies.Policy, measurements: Sequence[facts.Measurement]
) -> Mapping[str, numbers.Number]:
    """What a policy's `metrics` may name: of each task and metric the newest measurement."""
    kinds = dict.fromkeys((entry.task, entry.scale) for entry in measurements)
    found = [
        newest(rules, [entry for entry in measurements if entry.scale == scale], task)
        for task, scale in kinds
    ]
    return numbers.of([entry for entry in found if entry is not None])


def is_recent(rules: policies.Policy, entry: facts.Measurement, now: datetime.datetime) -> bool:
    """Whether a measurement is as young as the policy asks for, at a time with its time zone."""
    limit = rules.evidence.max_age
    return limit is None or -holding.CLOCKS <= now - entry.measured <= limit


def newest(
    rules: policies.Policy, measurements: Sequence[facts.Measurement], task: str
) -> facts.Measurement | None:
    """The newest measurement of a task on the split and images asked for, an accuracy if any."""
    asked = rules.evidence.data.get(task)
    fitting = [
        entry
        for entry in measurements
        if entry.task == task
        and entry.split == rules.evidence.split
        and (asked is None or asked.digest in (None, entry.dataset_digest))
    ]
    accuracies = [entry for entry in fitting if entry.scale.is_accuracy]
    return max(accuracies or fitting, key=lambda entry: entry.measured, default=None)
