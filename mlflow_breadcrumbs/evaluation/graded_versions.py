"""One registered version, of whatever flavor, by the user's own evaluator, recorded in a run."""

from collections.abc import Sequence
from typing import Any

import mlflow

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.evaluation import (
    accuracy_records,
    evaluating,
    evaluator_files,
    examiners,
    grading,
    scores,
)
from mlflow_breadcrumbs.flavor import own_heads, unregistered
from mlflow_breadcrumbs.registry import pages, permissions, runs, tag_keys, versions
from mlflow_breadcrumbs.support import escaping, progress


def grade_version(
    uri: str,
    evaluator: evaluator_files.UserEvaluator,
    *,
    only: Sequence[str] = (),
    split: str = "test",
    nested: bool = False,
    show: progress.Progress = progress.silent,
) -> evaluating.Evaluation:
    """Let an evaluator measure a version, and log the result to a run.

    The evaluator is called before the run begins, so that one that fails leaves none.

    Args:
        uri: of the version.
        evaluator: what the user named.
        only: names of tasks; all that it knows when empty.
        split: of the data.
        nested: log to a run of its own though another is active.
        show: is told about the tasks.

    Raises:
        RegistryError: the version can't be found or read.
        IntegrityError: its bytes are not those that were registered.
        EvaluatorError: the evaluator fails, or what it says is no result.
    """
    grader = grading.Grader(evaluator, split, show)
    resolved = versions.resolve(uri)
    ledger.check()
    permissions.check()
    with versions.workspace() as folder:
        opened = versions.open_version(resolved, folder)
        digest = checkpoints.weights_digest(opened.weights)
        versions.check_digest(resolved, digest)
        subject = examiners.Examined(
            resolved.uri,
            opened.weights,
            digest,
            folder=opened.folder,
            uri=resolved.uri,
            own=unregistered.by_task(
                opened, opened.weights, own_heads.read(opened.folder), folder / "examined"
            ),
        )
        grades = tuple(grader.examine(subject, only).values())
        # What was measured is what is recorded: nobody has written to it meanwhile.
        versions.check_digest(resolved, checkpoints.weights_digest(opened.weights))
    with (
        runs.run(f"evaluate {resolved.uri}", "evaluate", nested=nested) as run_id,
        ledger.recording(
            "evaluate", resolved.name or resolved.uri, run_id=run_id, subject=resolved.uri
        ) as job,
    ):
        found = evaluating.Evaluation(resolved.uri, run_id, grades)
        written = _log(found, resolved, digest, split)
        pages.tell(_page(found, evaluator, split), run_id=run_id)
        details: dict[str, Any] = {accuracy_records.FILE_DIGEST: written}
        details |= {"evaluator": evaluator.description, "evaluator_digest": evaluator.digest}
        job.add(weights_digest=digest, split=split, metrics=found.metrics(), **details)
    return found


def _log(
    found: evaluating.Evaluation, resolved: versions.ResolvedVersion, digest: str, split: str
) -> str:
    """All of it in the run; the digest of its `evaluation.json`."""
    accuracy_records.log_grades(found.run_id, found.accuracies, model_id=resolved.model_id)
    client = mlflow.MlflowClient()
    written = accuracy_records.log_version(found.run_id, digest, split, found.rows())
    for score in found.accuracies:
        accuracy_records.log_data(score, context=split)
    client.set_tag(found.run_id, "breadcrumbs.version", resolved.uri)
    client.set_tag(found.run_id, tag_keys.WEIGHTS_DIGEST, digest)  # last: by it this is found
    return written


def _page(
    found: evaluating.Evaluation, evaluator: evaluator_files.UserEvaluator, split: str
) -> pages.Page:
    """What MLflow's page of the run says."""
    return pages.Page(
        f"How good a version is, by {escaping.code(evaluator.description)} on the {split} data.",
        titles=("task", "metric", "examples", "value", "95% interval"),
        rows=[_cells(score) for score in found.accuracies],
        made_from=[("version", found.uri)],
    )


def _cells(score: scores.Score) -> list[str]:
    ends = score.interval()
    sure = "" if ends is None else f"{ends.low:.3f} to {ends.high:.3f}"
    total = "" if score.total is None else str(score.total)
    cells = (score.task, score.scale.metric, total, f"{score.value:.4g}", sure)
    return [escaping.markdown(text) for text in cells]
