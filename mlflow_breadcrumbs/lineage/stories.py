"""What a merge is, told to people: in the description of its run and version, and in its card."""

import re
import statistics
from collections.abc import Mapping
from typing import Any

from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.registry import pages, records, uris, versions
from mlflow_breadcrumbs.support import escaping, scales, wording

_MASKED = (
    "their changes were masked, summed and scaled by the recipe below (Model Breadcrumbs, "
    "[Davari & Belilovsky, ECCV 2024](https://arxiv.org/abs/2312.06795), and its relatives)"
)
METHODS = {
    "sum": _MASKED,
    "mean": _MASKED,
    "tsv": "the leading singular vectors of their changes to each matrix were made orthogonal to "
    "one another and added by the recipe below (TSV-M, [Gargiulo et al., CVPR 2025]"
    "(https://arxiv.org/abs/2412.00081)); changes to other tensors were averaged",
    "iso": "their changes to each matrix were summed by the recipe below, and the sum's singular "
    "values made equal (Iso-C, [Marczak et al., ICML 2025](https://arxiv.org/abs/2502.04959)); "
    "changes to other tensors were averaged",
    "iso_cts": "the leading directions of the sum of their changes to each matrix and of each "
    "source alone were joined by the recipe below, and their singular values made equal (Iso-CTS, "
    "[Marczak et al., ICML 2025](https://arxiv.org/abs/2502.04959)); changes to other tensors were "
    "averaged",
    "ace": "their changes to each matrix were averaged by the recipe below, weighted by adaptive "
    "covariances (ACE, [Xu et al., CVPR 2026](https://arxiv.org/abs/2603.02945)); changes to other "
    "tensors were averaged",
    "covariance": "their changes to each matrix were averaged by the recipe below, weighted by the "
    "covariance of their rows (ACTMat, [arXiv 2604.01329](https://arxiv.org/abs/2604.01329)); "
    "changes to other tensors were averaged",
}
"""What a merge did, by the recipe's `combine`."""

CALIBRATED = (
    "; then each singular direction of a merged matrix was given the length that the sources have "
    "there (SVC, [arXiv 2602.05536](https://arxiv.org/abs/2602.05536))"
)

BELOW = " by the recipe below"
"""Of a method's words, where the recipe stands below them, as in a card."""

MODEL = (
    "Merges of fine-tuned versions of one base, made by `mlflow-breadcrumbs merge`. Each version's "
    "description says what went into it and what came out."
)
"""The description of a registered model that has none."""

COLUMNS = {
    "zero_shot_accuracy": "base",
    "finetuned_accuracy": "source",
    "accuracy": "merged",
    "normalized_accuracy": "merged / source",
}
"""Of the table of accuracies, beside the task."""

_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
"""Of Markdown, as the methods' words have them."""

NUMBERS = ("density", "gamma", "alpha")
"""The fields of a recipe that its sentence has."""


def summary(stated: statement.Statement) -> str:
    """A merge in one sentence of Markdown: what it is for, from what, and how."""
    return f"{_subject(stated)}: {_method(stated)}."


def told(stated: statement.Statement) -> str:
    """What was done with how many sources, in a sentence without Markdown that names none."""
    said = _LINK.sub(r"\1", _method(stated)).replace(BELOW, " by the recipe")
    sources = wording.counted(len(stated.sources), "fine-tuned versions")
    return f"{sources} of one base became one model without training: {said}."


def _subject(stated: statement.Statement) -> str:
    """What it is for and from what, without the full stop."""
    tasks = list(dict.fromkeys(task for entry in stated.sources for task in entry.tasks))
    subject = "One model"
    if tasks:
        subject += f" for {wording.counted(len(tasks), 'tasks')} ({pages.listed(tasks)})"
    return (
        f"{subject}, merged without training from {len(stated.sources)} fine-tuned versions of "
        f"{escaping.code(stated.base.uri)}"
    )


def _method(stated: statement.Statement) -> str:
    """What was done with the changes of the sources, without the full stop."""
    calibrated = CALIBRATED if stated.settings.calibrate == "svc" else ""
    return f"{METHODS[stated.settings.combine]}{calibrated}"


def tell(version: records.RegisteredVersion, stated: statement.Statement) -> None:
    """Let MLflow's pages of a merge's run and version say what it is; that this fails is logged."""
    page = _page(stated, version.name, version.version)
    pages.tell(page, run_id=stated.run_id, uri=version.uri, model=MODEL)


def tell_again(version: records.RegisteredVersion) -> None:
    """The same for a version that a stopped job made, by its `lineage.json`."""
    stated = contents.lineage_of(versions.resolve(version.uri))
    if isinstance(stated, statement.Statement):
        tell(version, stated)


def _page(stated: statement.Statement, name: str, number: str) -> pages.Page:
    fields = stated.settings.to_dict()
    recipe = ", ".join(f"{field} {fields[field]:g}" for field in NUMBERS if field in fields)
    by = f"Method {escaping.code(stated.method)}, with" if stated.method else "A recipe with"
    said = f"{_subject(stated)}. {_outcome(stated)}"
    following = ["promote", name, "--version", number, "--alias", "champion"]
    following += ["--policy", "policy.yaml"]
    if not stated.evaluation:
        following = ["evaluate", uris.of_version(name, number), "--tasks", "tasks.yaml"]
    return pages.Page(
        said,
        titles=("task", *COLUMNS.values()),
        rows=[_row(row) for row in stated.evaluation],
        how=f"{by} {recipe}: {_method(stated).replace(BELOW, '')}.",
        made_from=[(_role(entry), entry.uri) for entry in stated.inputs],
        following=["mlflow-breadcrumbs", *following],
    )


def _outcome(stated: statement.Statement) -> str:
    """What came out on average over the tasks, in a sentence."""
    means = {
        key: statistics.fmean(row[key] for row in stated.evaluation)
        for key in COLUMNS
        if stated.evaluation
        and all(isinstance(row.get(key), int | float) for row in stated.evaluation)
    }
    if len(means) < len(COLUMNS):
        return "See the table." if stated.evaluation else "Nobody measured yet what it can do."
    base, source, merged, kept = means.values()
    return (
        f"Its average accuracy is {merged:.3f}, where the base has {base:.3f} and the sources have "
        f"{source:.3f}, each on its own task: on average it keeps {kept:.3f} of a source's."
    )


def _row(row: Mapping[str, Any]) -> list[str]:
    row = scales.shown(row)
    found = [row.get(key) for key in COLUMNS]
    return [
        escaping.markdown(str(row["task"])),
        *("" if value is None else f"{value:.3f}" for value in found),
    ]


def _role(entry: statement.Input) -> str:
    """What a version was to the merge; its weight, where it is not 1."""
    if entry.weight is None or entry.weight == 1:
        return entry.role
    return f"{entry.role}, weight {entry.weight:g}"
