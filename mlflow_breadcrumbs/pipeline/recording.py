"""What a merge writes into its MLflow run: parameters, inputs, metrics, tables, the picture."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import LoggedModelInput, Param, RunTag
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from mlflow_breadcrumbs import compare
from mlflow_breadcrumbs.engine import merging, recipe
from mlflow_breadcrumbs.figures import results
from mlflow_breadcrumbs.pipeline import inputs
from mlflow_breadcrumbs.registry import run_files, runs, tag_keys, versions
from mlflow_breadcrumbs.support import canonical, tables


def log_inputs(run_id: str, settings: recipe.MergeRecipe, taken: inputs.Inputs) -> None:
    """The recipe and the versions, as parameters and as native model inputs.

    Under `mlflow run` the parameters are there already as they were given (`density` empty, an
    alias in `base`), and MLflow keeps the first value; what differs goes under `resolved.<name>`.
    """
    values = recipe_params(settings)
    values["base"] = taken.base.resolved.uri
    values |= {f"source.{i}": source.resolved.uri for i, source in enumerate(taken.sources)}
    client = mlflow.MlflowClient()
    given = client.get_run(run_id).data.params
    client.log_batch(
        run_id,
        params=[
            Param(key if key not in given else f"resolved.{key}", value)
            for key, value in values.items()
            if given.get(key) != value
        ],
        tags=[RunTag(tag_keys.RECIPE_DIGEST, settings.digest)],
    )
    log_models(run_id, taken)
    client.log_text(run_id, settings.to_json(), "recipe.json")


def log_materials(run_id: str, taken: inputs.Inputs, settings: Mapping[str, Any]) -> None:
    """The versions that a study works with, and its settings.

    The keys differ from the names that `mlflow run` gives its parameters.
    """
    values = {"study.base": taken.base.resolved.uri, **settings}
    values |= {f"source.{i}": source.resolved.uri for i, source in enumerate(taken.sources)}
    mlflow.MlflowClient().log_batch(
        run_id, params=[Param(key, str(value)) for key, value in values.items()]
    )
    log_models(run_id, taken)


def log_models(run_id: str, taken: inputs.Inputs) -> None:
    """The base and the sources as native model inputs."""
    ids = [version.resolved.model_id for version in taken.everything]
    models = [LoggedModelInput(known) for known in ids if known]
    mlflow.MlflowClient().log_inputs(run_id, models=models)


def recipe_params(settings: recipe.MergeRecipe) -> dict[str, str]:
    """A recipe's fields as a run's parameters."""
    return {
        field: _shortened(
            canonical.dumps(value).decode() if isinstance(value, list) else str(value)
        )
        for field, value in settings.to_dict().items()
    }


def log_merge(run_id: str, taken: inputs.Inputs, merged: merging.MergeResult) -> None:
    """Time, bytes and rate; how many sources touch the parameters; each mask, per tensor.

    `touched_by/<n>` is the share of the merged parameters that n sources changed; `masks.csv` has
    the kept and dropped counts and the smallest and largest kept change of every tensor.
    """
    values = {
        "merge_seconds": merged.seconds,
        "merge_bytes": merged.bytes_read,
        "merge_bytes_per_second": merged.bytes_read / merged.seconds,
    }
    values |= {f"touched_by/{number}": share for number, share in enumerate(merged.touched)}
    run_files.log_metrics(run_id, values)
    labels = [source.resolved.uri for source in taken.sources]
    rows = [
        dataclasses.asdict(entry) | {"source": labels[entry.source]} for entry in merged.statistics
    ]
    mlflow.MlflowClient().log_text(run_id, tables.to_csv(rows), "masks.csv")


def _shortened(value: str) -> str:
    """A parameter's value; the digest of one that MLflow would cut off without a word."""
    if len(value) <= MAX_PARAM_VAL_LENGTH:
        return value
    return f"{canonical.sha256(value.encode())}, see recipe.json"


def log_comparison(run_id: str, found: compare.Comparison) -> None:
    """The task vectors side by side: `comparison.json`, `.csv` (the table) and `.png`."""
    client = mlflow.MlflowClient()
    client.log_dict(run_id, found.to_dict(), "comparison.json")
    client.log_text(run_id, tables.to_csv(found.rows()), "comparison.csv")
    run_files.log_bytes(run_id, results.heat_map(found), "comparison.png")


def record_comparison(found: compare.Comparison) -> str:
    """A comparison in a run of its own, with the versions as parameters; the run's id."""
    name = f"compare {len(found.sources)} sources of {found.base}"
    with runs.run(name, "compare", nested=True) as run_id:
        uris = {f"source.{i}": uri for i, uri in enumerate(found.sources)}
        mlflow.log_params({f"compare.{key}": uri for key, uri in uris.items()})
        mlflow.log_param("compare.base", found.base)
        log_comparison(run_id, found)
    return run_id


def find_study(kind: str, base: str, sources: Sequence[str]) -> str | None:
    """The last finished run that `log_materials` wrote these sources into, in whatever order."""
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{tag_keys.KIND}` = '{kind}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    wanted = (base, sorted(sources))
    for run in found:
        params = run.data.params
        own = sorted(value for key, value in params.items() if key.startswith("source."))
        if (params.get("study.base"), own) == wanted:
            return str(run.info.run_id)
    return None


def read_comparison(run_id: str) -> tuple[dict[str, Any], bytes] | None:
    """What `log_comparison` left in a run: the comparison and its heat map; `None` without one."""
    with versions.workspace() as folder:
        kept = run_files.files_of(run_id, folder)
        if "comparison.json" not in kept.list():
            return None
        found: dict[str, Any] = json.loads(kept.file("comparison.json").read_bytes())
        return found, kept.file("comparison.png").read_bytes()
