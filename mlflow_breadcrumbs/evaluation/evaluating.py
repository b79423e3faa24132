"""One registered version on the tasks of a task file, recorded in a run of its own."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import mlflow

from mlflow_breadcrumbs import ledger
from mlflow_breadcrumbs.evaluation import accuracy_records, caches, meters, scores, scoring
from mlflow_breadcrumbs.flavor import loading
from mlflow_breadcrumbs.models import image_sets, tasks
from mlflow_breadcrumbs.registry import pages, permissions, runs, tag_keys, task_files, versions
from mlflow_breadcrumbs.support import defaults, devices, escaping, executors, progress


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How good a version is on each task."""

    uri: str
    run_id: str
    accuracies: tuple[scores.Score, ...]

    def metrics(self) -> dict[str, float]:
        """See `scores.metrics`."""
        return scores.metrics(self.accuracies)

    def rows(self) -> list[dict[str, Any]]:
        """The table, one row per task."""
        return [accuracy.to_dict() for accuracy in self.accuracies]

    def to_dict(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {
            "uri": self.uri,
            "run_id": self.run_id,
            "metrics": self.metrics(),
            "tasks": self.rows(),
        }


def evaluate_version(
    uri: str,
    task_file: str,
    *,
    only: Sequence[str] = (),
    split: tasks.Split = "test",
    device: str = "auto",
    batch_size: int = defaults.BATCH_SIZE,
    cache: caches.Cache | None = None,
    nested: bool = False,
    show: progress.Progress = progress.silent,
    executor: executors.Executor = executors.LOCAL,
) -> Evaluation:
    """Measure a version on the tasks of a file, and log the result to a run.

    A task that the version has no head for is measured zero-shot, with its text tower.

    Args:
        uri: of the version.
        task_file: its path, or an artifact URI.
        only: names of tasks; all of the file when empty.
        split: of the images.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        batch_size: images at a time.
        cache: of accuracies (`caches.default()`); `None` measures each.
        nested: log to a run of its own though another is active.
        show: is told about the images.
        executor: measures; MLflow and the cache are spoken to by this process alone.

    Raises:
        RegistryError: the version can't be found or read, or is no open_clip model.
        IntegrityError: its bytes are not those that were registered.
        TaskError: a task, its images or its head are unusable.
        DeviceError: the device is absent, or not even one image fits into its memory.
    """
    device = devices.choose_device(device)
    listed = task_files.load(task_file)
    chosen = [tasks.find(listed, name) for name in only] or list(listed)
    resolved = versions.resolve(uri)
    ledger.check()
    permissions.check()
    with versions.workspace() as folder:
        version = loading.open_base(resolved, folder, device)
        pairs = [(loading.choose_head(version, task), task.images(split)) for task in chosen]
        for head, images in pairs:  # before a run is started
            scoring.check_classes(head, images)
        name = resolved.name or resolved.uri
        with (
            runs.run(f"evaluate {resolved.uri}", "evaluate", nested=nested) as run_id,
            ledger.recording("evaluate", name, run_id=run_id, subject=resolved.uri) as job,
        ):
            meter = meters.Meter(version.config, device, batch_size, cache, show, executor)
            accuracies = meter.accuracies(
                lambda: version.model, pairs, weights_digest=version.weights_digest
            )
            found = Evaluation(resolved.uri, run_id, accuracies)
            looked_at = [images for _, images in pairs]
            written = _log(found, accuracies, resolved, version.weights_digest, looked_at, split)
            pages.tell(_page(resolved.uri, accuracies, split), run_id=run_id)
            job.add(
                weights_digest=version.weights_digest,
                split=split,
                metrics=found.metrics(),
                **{accuracy_records.FILE_DIGEST: written},
            )
    return found


def _page(uri: str, accuracies: Sequence[scoring.Accuracy], split: str) -> pages.Page:
    """What MLflow's page of the run says."""
    rows = []
    for each in accuracies:
        low, high = each.interval()
        counts = (
            str(each.correct),
            str(each.total),
            f"{each.value:.3f}",
            f"{low:.3f} to {high:.3f}",
        )
        rows.append([escaping.markdown(each.task), *counts])
    return pages.Page(
        f"How good a version is, on the {split} images of each task.",
        titles=("task", "correct", "images", "accuracy", "95% interval"),
        rows=rows,
        made_from=[("version", uri)],
    )


def _log(
    found: Evaluation,
    accuracies: Sequence[scoring.Accuracy],
    resolved: versions.ResolvedVersion,
    weights_digest: str | None,
    looked_at: Sequence[image_sets.ImageSet],
    split: str,
) -> str:
    """All of it in the run; the digest of its `evaluation.json`."""
    accuracy_records.log_accuracies(found.run_id, accuracies, model_id=resolved.model_id)
    client = mlflow.MlflowClient()
    written = accuracy_records.log_version(found.run_id, weights_digest, split, found.rows())
    client.set_tag(found.run_id, "breadcrumbs.version", resolved.uri)
    if weights_digest is not None:  # last: by this tag the evaluation is found
        client.set_tag(found.run_id, tag_keys.WEIGHTS_DIGEST, weights_digest)
    for images in looked_at:
        accuracy_records.log_image_set(images, context=split)
    return written
