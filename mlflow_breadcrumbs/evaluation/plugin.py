"""MLflow's evaluation, by this package: the plugin `breadcrumbs` of `mlflow.model_evaluator`.

```python
mlflow.models.evaluate(
    "models:/clip-merged@candidate",
    frame,  # columns image (paths, bytes or base64), label, and task where there are several
    targets="label",
    model_type="classifier",
    evaluators="breadcrumbs",
)
```

MLflow imports this module with its own, so all that is heavy is imported when it is needed.
"""

import logging
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models.evaluation.base import EvaluationResult, ModelEvaluator

SETTINGS = ("batch_size",)
"""What `evaluator_config` may hold."""

_logger = logging.getLogger(__name__)


class Evaluator(ModelEvaluator):  # type: ignore[misc]  # MLflow has no types
    """Measures a version of the flavor `breadcrumbs`, with the metrics of `evaluate`."""

    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: Any, **kwargs: Any) -> bool:
        """Whether it is for this type of model; which model it is shows only later."""
        return model_type == "classifier"

    def evaluate(
        self,
        *,
        model_type: str,
        dataset: Any,
        run_id: str,
        evaluator_config: dict[str, Any] | None,
        model: Any = None,
        model_id: str | None = None,
        **kwargs: Any,
    ) -> EvaluationResult | None:
        """Measure the model on each task of the data, and log what `evaluate` logs.

        Returns:
            The metrics and artifacts; `None`, which MLflow passes over, for a model of another
            flavor: without `evaluators=`, MLflow asks every evaluator that it knows.
        """
        from mlflow_breadcrumbs import errors
        from mlflow_breadcrumbs.flavor import serving

        raw = _raw(model)
        if not isinstance(raw, serving.OpenClipModel):
            _logger.warning(
                "The evaluator 'breadcrumbs' measures versions of the flavor 'breadcrumbs' that "
                "are loaded here, not %s; leave it out, or use evaluators='default'.",
                type(raw if raw is not None else model).__name__,
            )
            return None
        try:
            return _evaluate(raw, dataset, run_id, evaluator_config or {}, model_id)
        except errors.BreadcrumbsError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _raw(model: Any) -> Any:
    """What the pyfunc wraps; `None` where it does not say."""
    try:
        return model.get_raw_model()
    except (AttributeError, NotImplementedError, MlflowException):
        return None


def _evaluate(
    raw: Any, dataset: Any, run_id: str, settings: dict[str, Any], model_id: str | None
) -> EvaluationResult:
    from mlflow.models.evaluation.artifacts import CsvEvaluationArtifact, ImageEvaluationArtifact

    from mlflow_breadcrumbs import errors
    from mlflow_breadcrumbs.evaluation import accuracy_records, frames, meters, scores
    from mlflow_breadcrumbs.support import defaults

    if unknown := sorted(set(settings) - set(SETTINGS)):
        raise errors.TaskError(
            f"evaluator_config has {', '.join(map(repr, unknown))}; the evaluator 'breadcrumbs' "
            f"knows {', '.join(SETTINGS)}."
        )
    if not dataset.has_targets:
        raise errors.TaskError("The data has no labels: name their column, as targets='label'.")
    pairs = frames.split(dataset.features_data, list(dataset.labels_data), raw.heads)
    measuring = meters.Meter(
        raw.config, raw.device, int(settings.get("batch_size", defaults.BATCH_SIZE))
    )
    accuracies = measuring.accuracies(lambda: raw.model, pairs)
    accuracy_records.log_accuracies(run_id, accuracies, model_id=model_id)
    kinds = {".csv": CsvEvaluationArtifact, ".png": ImageEvaluationArtifact}
    paths = ["evaluation.csv", "per_class.csv"]
    paths += [f"confusion/{found.task}{kind}" for found in accuracies for kind in kinds]
    return EvaluationResult(
        metrics=scores.metrics(accuracies),
        artifacts={path: kinds[path[-4:]](uri=f"runs:/{run_id}/{path}") for path in paths},
        run_id=run_id,
    )
