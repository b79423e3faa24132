"""Comparisons and studies in MLflow's runs, written and found again."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import Param

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.pipeline import inputs, recording
from mlflow_breadcrumbs.registry import failures, pages, run_files, runs, tag_keys, versions
from mlflow_breadcrumbs.search import compare
from mlflow_breadcrumbs.support import escaping, json_documents, tables, wording

_SOURCE = re.compile(r"source\.\d+")


def log_materials(run_id: str, taken: inputs.Inputs, settings: Mapping[str, Any]) -> None:
    """The versions that a study works with, and its settings.

    The keys differ from the names that `mlflow run` gives its parameters.
    """
    values = {"study.base": taken.base.resolved.uri, **settings}
    values |= {f"source.{i}": source.resolved.uri for i, source in enumerate(taken.sources)}
    mlflow.MlflowClient().log_batch(
        run_id, params=[Param(key, str(value)) for key, value in values.items()]
    )
    recording.log_models(run_id, taken)


def log_comparison(run_id: str, found: compare.Comparison) -> None:
    """The task vectors side by side: `comparison.json`, `.csv` (the table) and `.png`."""
    client = mlflow.MlflowClient()
    client.log_dict(run_id, found.to_dict(), "comparison.json")
    client.log_text(run_id, tables.to_csv(found.rows()), "comparison.csv")
    run_files.log_bytes(run_id, found.picture(), "comparison.png")


def record_comparison(found: compare.Comparison) -> str:
    """A comparison in a run of its own, with the versions as parameters; the run's id."""
    name = f"compare {wording.counted(len(found.sources), 'sources')} of {found.base}"
    with runs.run(name, "compare", nested=True) as run_id:
        uris = {f"source.{i}": uri for i, uri in enumerate(found.sources)}
        mlflow.log_params({f"compare.{key}": uri for key, uri in uris.items()})
        mlflow.log_param("compare.base", found.base)
        log_comparison(run_id, found)
        advice = " ".join(escaping.markdown(each.advice) for each in found.findings)
        tell(
            run_id,
            f"The sources' changes side by side. {advice}".strip(),
            found.base,
            found.sources,
        )
    return run_id


def tell(
    run_id: str,
    said: str,
    base: str,
    sources: Sequence[str],
    *,
    titles: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> None:
    """Let MLflow's page of a study's run say what came out; that this fails is logged.

    Args:
        run_id: of the run.
        said: in Markdown.
        base: its URI.
        sources: their URIs.
        titles: of the table's columns.
        rows: the table, its cells in Markdown.
    """
    looked_at = [("base", base), *(("source", uri) for uri in sources)]
    pages.tell(pages.Page(said, titles, rows, made_from=looked_at), run_id=run_id)


def tell_of_study(run_id: str, said: str, taken: inputs.Inputs, **table: Any) -> None:
    """The same of a study whose versions are open; `table` is `titles` and `rows` of `tell`."""
    uris = [version.resolved.uri for version in taken.everything]
    tell(run_id, said, uris[0], uris[1:], **table)


def find_study(kind: str, base: str, sources: Sequence[str]) -> str | None:
    """The last finished run that `log_materials` wrote these sources into, in whatever order."""
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{tag_keys.KIND}` = '{kind}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    matching = (run for run in found if _is_over(run.data.params, base, sources))
    return next((str(run.info.run_id) for run in matching), None)


def is_over(run_id: str, base: str, sources: Sequence[str]) -> bool:
    """Whether what is in a run is about these very versions: one run may hold several jobs.

    Raises:
        RegistryError: the run can't be read.
    """
    with failures.explained(f"cannot read the run {run_id}"):
        params = mlflow.MlflowClient().get_run(run_id).data.params
    return _is_over(params, base, sources)


def _is_over(params: Mapping[str, str], base: str, sources: Sequence[str]) -> bool:
    """Whether the parameters of a study, or of a merge, name this base and just these sources."""
    named = [value for key, value in params.items() if _SOURCE.fullmatch(key)]
    keys = ("study.base", "resolved.base", "base")
    own = next((params[key] for key in keys if key in params), None)
    return own == base and sorted(named) == sorted(sources)


def read_comparison(run_id: str) -> tuple[dict[str, Any], bytes] | None:
    """What `log_comparison` left in a run: the comparison and its heat map; `None` without one."""
    with versions.workspace() as folder:
        kept = run_files.files_of(run_id, folder)
        if "comparison.json" not in kept.list():
            return None
        origin = f"comparison.json of the run {run_id}"
        found = json_documents.read(kept.file("comparison.json"), origin, errors.RegistryError)
        return found, kept.file("comparison.png").read_bytes()
