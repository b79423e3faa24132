"""What a merge writes into its MLflow run: parameters, inputs, metrics, tables, the picture."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import mlflow
from mlflow.entities import LoggedModelInput, Param, RunTag
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from mlflow_breadcrumbs.engine import merging, recipe
from mlflow_breadcrumbs.pipeline import inputs
from mlflow_breadcrumbs.registry import run_files, tag_keys
from mlflow_breadcrumbs.support import canonical, credentials, tables

UNNAMED = "classes without names"
"""Why it is doubtful that a tensor was merged."""


def log_inputs(
    run_id: str,
    settings: recipe.MergeRecipe,
    taken: inputs.Inputs,
    asked: Mapping[str, str | None],
) -> None:
    """The recipe and the versions, as parameters and as native model inputs.

    Under `mlflow run` those that were given are there already, `base` perhaps by an alias, and
    MLflow keeps the first value; what differs goes under `resolved.<name>`.

    Args:
        run_id: of the merge.
        settings: the recipe.
        taken: the versions.
        asked: further parameters, as they were given; `None` is none.
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
        ]
        + [
            Param(key, _shortened(credentials.hidden(value)))
            for key, value in asked.items()
            if value is not None and key not in given
        ],
        tags=[RunTag(tag_keys.RECIPE_DIGEST, settings.digest)],
    )
    log_models(run_id, taken)
    client.log_text(run_id, settings.to_json(), "recipe.json")


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


def log_effort(run_id: str, merged: merging.MergeResult) -> None:
    """Time, bytes and rate; how many sources touch the parameters.

    `touched_by/<n>` is the share of the merged parameters that n sources changed. MLflow shows
    metrics in the order of their logging, and these matter less than accuracies.
    """
    values = {
        "merge_seconds": merged.seconds,
        "merge_bytes": merged.bytes_read,
        "merge_bytes_per_second": merged.bytes_read / merged.seconds,
    }
    values |= {f"touched_by/{number}": share for number, share in enumerate(merged.touched)}
    run_files.log_metrics(run_id, values)


def log_masks(run_id: str, taken: inputs.Inputs, merged: merging.MergeResult) -> None:
    """`masks.csv`: per tensor the kept and dropped counts, smallest and largest kept change."""
    labels = [source.resolved.uri for source in taken.sources]
    rows = [
        dataclasses.asdict(entry) | {"source": labels[entry.source]} for entry in merged.statistics
    ]
    mlflow.MlflowClient().log_text(run_id, tables.to_csv(rows), "masks.csv")


def log_alignments(
    run_id: str, taken: inputs.Inputs, settings: recipe.MergeRecipe, unnamed: Sequence[str]
) -> None:
    """`alignment.json`: the decision per tensor of sources that are not quite as the base.

    Args:
        run_id: of the merge.
        taken: the versions.
        settings: the recipe.
        unnamed: tensors of heads that were merged though their classes have no names; they are
            there of every source.
    """
    rows = [
        row
        for uri, aligned in taken.alignments.items()
        for row in aligned.rows(uri, settings.merges)
    ]
    doubtful = {(row["source"], row["tensor"]): row for row in rows if row["tensor"] in unnamed}
    for uri in (source.resolved.uri for source in taken.sources):
        for name in unnamed:
            if (uri, name) not in doubtful:
                row = {"source": uri, "tensor": name, "decision": "merge", "name": name}
                rows.append(row)
                doubtful[uri, name] = row
            doubtful[uri, name]["why"] = UNNAMED
    if rows:
        run_files.log_bytes(run_id, json.dumps(rows, indent=1).encode(), "alignment.json")


def log_notes(run_id: str, notes: Sequence[str]) -> None:
    """`notes.json`: what a user should know of the sources and the merge, as it is printed."""
    if notes:
        content = json.dumps(list(notes), indent=1, ensure_ascii=False)
        run_files.log_bytes(run_id, content.encode(), "notes.json")


def _shortened(value: str) -> str:
    """A parameter's value; the digest of one that MLflow would cut off without a word."""
    if len(value) <= MAX_PARAM_VAL_LENGTH:
        return value
    return f"{canonical.sha256(value.encode())}, see recipe.json"
