"""Accuracies in MLflow's runs: metrics, tables, pictures, data sets."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset

from mlflow_breadcrumbs.evaluation import scorecard, scores, scoring
from mlflow_breadcrumbs.figures import results
from mlflow_breadcrumbs.models import image_sets
from mlflow_breadcrumbs.registry import run_files
from mlflow_breadcrumbs.support import canonical, tables


def log_image_set(image_set: image_sets.ImageSet, *, context: str) -> None:
    """Log an image set as an input of the active run.

    MLflow keeps 36 characters of a digest, so it gets the first 32 hexadecimal ones; the source's
    tags have all of it.

    Args:
        image_set: The images.
        context: What they were used for: `training`, `validation` or `testing`.
    """
    source = CodeDatasetSource(
        {
            "breadcrumbs.image_set": image_set.name,
            "breadcrumbs.digest": image_set.digest,
            "breadcrumbs.images": str(len(image_set)),
            "breadcrumbs.classes": str(len(image_set.classes)),
        }
    )
    digest = image_set.digest.removeprefix("sha256:")[:32]
    mlflow.log_input(MetaDataset(source, name=image_set.name, digest=digest), context=context)


def log_data(score: scores.Score, *, context: str) -> None:
    """Log the data that a user's evaluator measured on as an input of the active run."""
    source = CodeDatasetSource(
        {"breadcrumbs.data": score.image_set, "breadcrumbs.digest": score.dataset_digest}
    )
    digest = score.dataset_digest.removeprefix("sha256:")[:32]
    name = score.image_set[:LONGEST]
    mlflow.log_input(MetaDataset(source, name=name, digest=digest), context=context)


LONGEST = 200
"""Characters of a data set's name."""
EVALUATION = "evaluation.json"
"""The artifact of a run that measured accuracies: the split, and a row per task."""
FILE_DIGEST = "evaluation_digest"
"""In the details of an event `evaluate`: of the bytes of that artifact, `sha256:…`."""
LINEAGE = "lineage_digest"
"""In the details of an event `merge`: of the bytes of the version's `lineage.json`."""


def log_evaluation(run_id: str, card: scorecard.Scorecard, split: str) -> None:
    """The metrics in one batch, the table, the picture, and the images as data-set inputs."""
    client = mlflow.MlflowClient()
    run_files.log_metrics(run_id, card.metrics() | card.seconds())
    client.log_text(run_id, tables.to_csv(card.rows()), "evaluation.csv")
    client.log_dict(run_id, {"split": split, "tasks": card.rows()}, EVALUATION)
    run_files.log_bytes(run_id, results.bars(card.rows(), split=split), "evaluation.png")
    for images in card.images:
        log_image_set(images, context=split)
    for score in card.scores:
        if score.merged.origin():
            log_data(score.merged, context=split)


def log_accuracies(
    run_id: str, accuracies: Sequence[scoring.Accuracy], *, model_id: str | None
) -> None:
    """One model on its tasks: metrics, `evaluation.csv`, classes and confusion matrices.

    `per_class.csv` has one row per class; `confusion/<task>.csv` and `.png` count the images by
    true class (rows) and predicted class (columns).
    """
    client = mlflow.MlflowClient()
    run_files.log_metrics(run_id, scores.metrics(accuracies), model_id=model_id)
    client.log_text(
        run_id, tables.to_csv([found.to_dict() for found in accuracies]), "evaluation.csv"
    )
    rows = [row for found in accuracies for row in found.per_class()]
    client.log_text(run_id, tables.to_csv(rows), "per_class.csv")
    for found in accuracies:
        matrix = [
            {"true class": name} | dict(zip(found.classes, counts, strict=True))
            for name, counts in zip(found.classes, found.confusion().tolist(), strict=True)
        ]
        client.log_text(run_id, tables.to_csv(matrix), f"confusion/{found.task}.csv")
        run_files.log_bytes(run_id, found.picture(), f"confusion/{found.task}.png")


def log_grades(run_id: str, grades: Sequence[scores.Score], *, model_id: str | None) -> None:
    """One model by a user's evaluator: metrics and `evaluation.csv`."""
    run_files.log_metrics(run_id, scores.metrics(grades), model_id=model_id)
    rows = [found.to_dict() for found in grades]
    mlflow.MlflowClient().log_text(run_id, tables.to_csv(rows), "evaluation.csv")


def log_version(
    run_id: str, weights_digest: str | None, split: str, rows: Sequence[Mapping[str, Any]]
) -> str:
    """Write the `evaluation.json` of one version's run; the digest of its bytes."""
    content = {"weights_digest": weights_digest, "split": split, "tasks": list(rows)}
    written = json.dumps(content, indent=2).encode()
    run_files.log_bytes(run_id, written, EVALUATION)
    return canonical.sha256(written)
