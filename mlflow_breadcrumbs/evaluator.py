"""What the entry point of `mlflow.model_evaluator` names: `evaluation.plugin`, by its oldest name.

A version may carry the code that saved it, and MLflow loads it with that code. The name has to be
found there too, so it is the one that every release has had.
"""

from mlflow_breadcrumbs.evaluation.plugin import Evaluator

__all__ = ["Evaluator"]
