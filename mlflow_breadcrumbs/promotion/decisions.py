"""How a judgement is kept in its MLflow run, for people with MLflow alone."""

import json
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import Param, RunTag

from mlflow_breadcrumbs.promotion import policies, verdicts
from mlflow_breadcrumbs.registry import failures, pages, run_files, versions
from mlflow_breadcrumbs.support import escaping

EXPERIMENT = "breadcrumbs-promotions"
"""Where the runs of decisions are, unless another is named."""
TAG_DECISION = "breadcrumbs.decision"
"""On the run of a decision: what became of it."""
TAG_POLICY = "breadcrumbs.policy_digest"


def log(
    run_id: str,
    resolved: versions.ResolvedVersion,
    alias: str,
    rules: policies.Policy,
    verdict: verdicts.Verdict,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    facts: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Parameters, metrics and tags in one request; the policy and the verdict as files.

    Args:
        run_id: Of the decision.
        resolved: The version that was judged.
        alias: The one that it is about.
        rules: What it was held against.
        verdict: What came out.
        params: Of the run.
        metrics: Of the run.
        tags: Of the run, beside the version and the alias.
        facts: What belongs into `verdict.json` beside the policy and the rules.
        files: More artifacts, by name.

    Raises:
        RegistryError: MLflow refused, or can't be reached.
    """
    own = {"breadcrumbs.version": resolved.uri, "breadcrumbs.alias": alias, **tags}
    mlflow.MlflowClient().log_batch(
        run_id,
        metrics=run_files.as_metrics(metrics),
        params=[Param(key, str(value)) for key, value in params.items()],
        tags=[RunTag(key, value) for key, value in own.items()],
    )
    record = {"policy": rules.to_dict(), **facts, **verdict.to_dict()}
    for path, content in {
        "policy.yaml": rules.to_yaml().encode(),
        "verdict.json": json.dumps(record, indent=2, ensure_ascii=False).encode(),
        "verdict.md": verdict.to_markdown().encode(),
        **(files or {}),
    }.items():
        with failures.explained(f"cannot log {path}"):
            run_files.log_bytes(run_id, content, path)


def tell(
    run_id: str, resolved: versions.ResolvedVersion, sentence: str, verdict: verdicts.Verdict
) -> None:
    """Let MLflow's page of a decision's run say what came of it; that this fails is logged."""
    page = pages.Page(
        f"{escaping.markdown(sentence)}.",
        titles=verdicts.TITLES,
        rows=verdict.cells(),
        made_from=[("version", resolved.uri)],
    )
    pages.tell(page, run_id=run_id)
