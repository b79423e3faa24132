"""The runs of a sweep in MLflow: one parent, one child per recipe, found again by their digests."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
from mlflow.entities import Param, RunTag

from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.pipeline import recording
from mlflow_breadcrumbs.registry import projects, run_files, runs, tag_keys

TAG_SWEEP_DIGEST = "breadcrumbs.sweep_digest"
TAG_PARENT = "mlflow.parentRunId"
KIND_SWEEP, KIND_TRIAL = "sweep", "trial"
FOLDER = "sweep"
"""Where the parent's artifacts are."""
RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Parent:
    """The run of a sweep."""

    run_id: str
    experiment_id: str
    finished: bool
    """The sweep was done before; nothing is left to do."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A child run: one recipe and what was measured of it."""

    run_id: str
    metrics: Mapping[str, float]
    finished: bool


NOTHING = Trial("", {}, finished=False)
"""A recipe of which nothing was measured yet."""


@contextlib.contextmanager
def parent(name: str, digest: str) -> Iterator[Parent]:
    """The run of the sweep with this digest: the one that there is, or a new one.

    `mlflow run` has opened a run already; that one becomes the parent, unless an earlier one of
    the same sweep is found. A sweep that ends in an error leaves its run FAILED, one that is
    killed leaves it RUNNING; either goes on.
    """
    found = mlflow.search_runs(
        experiment_ids=[runs.experiment_id()],
        filter_string=f"tags.`{TAG_SWEEP_DIGEST}` = '{digest}' "
        f"and tags.`{tag_keys.KIND}` = '{KIND_SWEEP}'",
        output_format="list",
    )
    found.sort(key=lambda run: run.info.start_time)
    finished = next((run for run in found if run.info.status == "FINISHED"), None)
    if finished is not None:
        projects.point(name, "This sweep was done before.", run_id=finished.info.run_id)
        yield Parent(finished.info.run_id, finished.info.experiment_id, finished=True)
        return
    known = found[0].info.run_id if found else None
    if known is not None:
        projects.point(name, "This sweep goes on in the run that began it.", run_id=known)
    nested = mlflow.active_run() is not None
    with mlflow.start_run(run_id=known, run_name=None if known else name, nested=nested) as run:
        mlflow.set_tags({tag_keys.KIND: KIND_SWEEP, TAG_SWEEP_DIGEST: digest})
        yield Parent(run.info.run_id, run.info.experiment_id, finished=False)


def trials(parent: Parent) -> dict[str, Trial]:
    """The children that there are, by the digest of their recipe."""
    found = mlflow.search_runs(
        experiment_ids=[parent.experiment_id],
        filter_string=f"tags.`{TAG_PARENT}` = '{parent.run_id}' "
        f"and tags.`{tag_keys.KIND}` = '{KIND_TRIAL}'",
        output_format="list",
    )
    return {
        run.data.tags[tag_keys.RECIPE_DIGEST]: Trial(
            run.info.run_id, dict(run.data.metrics), run.info.status == "FINISHED"
        )
        for run in found
    }


def save(
    parent: Parent,
    settings: recipe.MergeRecipe,
    earlier: Trial | None,
    metrics: Mapping[str, float],
    *,
    weights_digest: str | None = None,
    finished: bool,
) -> Trial:
    """Write what was measured of a recipe into its child run, which is made at the first call.

    Args:
        parent: of the child.
        settings: the recipe.
        earlier: what this child held before; it may have been left by a sweep that was killed.
        metrics: to add.
        weights_digest: of the merged weights.
        finished: nothing more will be measured of this recipe.
    """
    client = mlflow.MlflowClient()
    run_id = earlier.run_id if earlier else _create(client, parent, settings)
    tags = [RunTag(tag_keys.WEIGHTS_DIGEST, weights_digest)] if weights_digest else []
    params = [Param(key, value) for key, value in recording.recipe_params(settings).items()]
    client.log_batch(run_id, run_files.as_metrics(metrics), params, tags)
    if finished:
        client.set_terminated(run_id, "FINISHED")
    return Trial(run_id, {**(earlier.metrics if earlier else {}), **metrics}, finished)


def log_outcome(
    parent: Parent,
    chosen: recipe.MergeRecipe,
    validation: Mapping[str, float],
    test: Mapping[str, float],
) -> None:
    """The chosen recipe: the metrics of the contract are those on the test images."""
    averages = {name: value for name, value in validation.items() if name.startswith("average_")}
    values = {f"validation/{name}": value for name, value in averages.items()} | dict(test)
    mlflow.MlflowClient().log_batch(
        parent.run_id,
        run_files.as_metrics(values),
        tags=[RunTag(tag_keys.RECIPE_DIGEST, chosen.digest)],
    )


def _create(client: Any, parent: Parent, settings: recipe.MergeRecipe) -> str:
    name = f"density {settings.density:g}, gamma {settings.gamma:g}, alpha {settings.alpha:g}"
    run = client.create_run(
        parent.experiment_id,
        run_name=name,
        tags={
            TAG_PARENT: parent.run_id,
            tag_keys.KIND: KIND_TRIAL,
            tag_keys.RECIPE_DIGEST: settings.digest,
        },
    )
    run_id: str = run.info.run_id
    return run_id


def save_result(parent: Parent, result: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """The pictures, tables and the recipe of a sweep, then its result, which says: it is done."""
    run_files.log_files(parent.run_id, files, FOLDER)
    mlflow.MlflowClient().log_dict(parent.run_id, dict(result), f"{FOLDER}/{RESULT}")


def load_result(parent: Parent) -> dict[str, Any]:
    """What `save_result` wrote."""
    found: dict[str, Any] = mlflow.artifacts.load_dict(f"runs:/{parent.run_id}/{FOLDER}/{RESULT}")
    return found
