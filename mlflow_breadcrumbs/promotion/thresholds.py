"""Thresholds of metrics that a run carries, judged by MLflow's own validation.

`mlflow.models.MetricThreshold` and `mlflow.validate_evaluation_results` decide whether a value is
good enough, alone or beside the champion's, in the words and with the edge cases that MLflow's
users know. They fit single numbers. They don't fit the rest of a policy, which `gates` decides
itself: a threshold knows no interval, no images, no age, no data set, no NaN (which passes no
comparison and would read as "too low"), and is one number, while a floor for `*` is one per task.
"""

import mlflow
from mlflow.models import EvaluationResult, MetricThreshold
from mlflow.models.evaluation.validation import ModelValidationFailedException

from mlflow_breadcrumbs.promotion import policies


def fault(
    name: str, threshold: policies.Threshold, value: float, champion: float | None
) -> str | None:
    """What is wrong with a metric, in MLflow's words; `None` if nothing.

    Args:
        name: of the metric.
        threshold: without a champion only its `threshold` is looked at.
        value: finite.
        champion: the same metric of the version that has the alias.
    """
    changes = threshold if champion is not None else None
    if changes is None and threshold.threshold is None:
        return None
    relative = changes.min_relative_change if changes else None
    limit = MetricThreshold(
        threshold=threshold.threshold,
        min_absolute_change=changes.min_absolute_change if changes else None,
        min_relative_change=None if relative is None else float(relative),
        greater_is_better=threshold.greater_is_better,
    )
    baseline = None if champion is None else EvaluationResult({name: champion}, {})
    try:
        mlflow.validate_evaluation_results(
            {name: limit}, EvaluationResult({name: value}, {}), baseline
        )
    except ModelValidationFailedException as error:
        return " ".join(error.message.split())
    return None
