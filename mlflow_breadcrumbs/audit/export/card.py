"""A model card in Hugging Face's form: YAML front matter, then Markdown for people."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from mlflow_breadcrumbs import flavor
from mlflow_breadcrumbs.audit.export import subjects
from mlflow_breadcrumbs.lineage import relatives, statement, stories
from mlflow_breadcrumbs.support import escaping, scales, tables

COLUMNS = {
    "task": "task",
    "zero_shot_accuracy": "base",
    "finetuned_accuracy": "source",
    "accuracy": "merged",
    "normalized_accuracy": "merged / source",
    "images": "images",
    "split": "split",
}


def write(known: subjects.Subject) -> str:
    """The card as text; what others wrote into it shows as it is, and is no Markdown or HTML."""
    front = yaml.safe_dump(_front_matter(known), sort_keys=False, allow_unicode=True)
    title = f"{known.title}, version {known.resolved.version or known.resolved.uri}"
    sections = [
        f"# {escaping.markdown(title)}",
        stories.summary(known.stated),
        *_origin(known),
        *_recipe(known.stated),
        *_accuracy(known.stated),
        *_limits(known.stated),
        *_check(known),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(known: subjects.Subject) -> dict[str, Any]:
    """What tools read: https://huggingface.co/docs/hub/model-cards."""
    stated = known.stated
    names = [subjects.name_and_version(entry.uri)[0] for entry in stated.inputs]
    licences = {entry.licence for entry in stated.inputs}
    ours = {"library_name": "open_clip"} if stated.file_name == flavor.WEIGHTS_FILE else {}
    front: dict[str, Any] = ours | {
        "tags": ["merge", "model-breadcrumbs", "mlflow"],
        "base_model": list(dict.fromkeys(names)),
        "base_model_relation": "merge",
        "breadcrumbs": {
            "version": known.resolved.uri,
            "weights_digest": stated.weights_digest,
            "base": stated.base.uri,
            "sources": [entry.uri for entry in stated.sources],
            "recipe": stated.settings.to_dict(),
        },
    }
    if len(licences) == 1 and None not in licences:
        front["license"] = licences.pop()
    if stated.evaluation:
        front["model-index"] = [
            {"name": known.title, "results": [_result(row) for row in stated.evaluation]}
        ]
    return front


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    metric, value = row.get("metric", "accuracy"), row.get("value", row.get("accuracy"))
    metrics = [{"type": metric, "value": value}]
    if "normalized_accuracy" in row:
        metrics.append({"type": "normalized_accuracy", "value": row["normalized_accuracy"]})
    return {
        **({} if "evaluator" in row else {"task": {"type": "image-classification"}}),
        "dataset": {
            "name": row.get("dataset", row["task"]),
            "type": row["task"],
            "revision": row["dataset_digest"],
        },
        "metrics": metrics,
    }


def _origin(known: subjects.Subject) -> Iterable[str]:
    yield "## Where it comes from"
    yield tables.to_markdown(
        ("role", "version", "weights digest", "weight", "tasks", "licence"),
        [
            (
                entry.role,
                escaping.code(entry.uri),
                escaping.code(entry.weights_digest),
                "" if entry.weight is None else f"{entry.weight:g}",
                escaping.markdown(", ".join(entry.tasks)),
                escaping.markdown(entry.licence or "not recorded"),
            )
            for entry in known.stated.inputs
        ],
    )
    further = [
        (
            escaping.code(node.uri),
            escaping.code(parent.uri),
            escaping.markdown(parent.role or ""),
            escaping.markdown(parent.kind),
        )
        for _, root in known.parents()
        for node in _walk(root)
        for parent in node.parents
    ]
    if further:
        yield "Some of these were made from other versions:"
        yield tables.to_markdown(("version", "made from", "as", "kind"), further)


def _walk(node: relatives.Ancestor) -> Iterable[relatives.Ancestor]:
    yield node
    for parent in node.parents:
        yield from _walk(parent)


def _recipe(stated: statement.Statement) -> Iterable[str]:
    yield "## How it was merged"
    fields = stated.settings.to_dict()
    yield tables.to_markdown(
        ("field", "value"), [(key, escaping.code(str(value))) for key, value in fields.items()]
    )
    if stated.tolerances:
        allowed = ", ".join(
            f"{value:g} ({escaping.markdown(dtype)})" for dtype, value in stated.tolerances.items()
        )
        yield (
            "Singular value decompositions are not bit-identical across devices: merged again, a "
            f"matrix may differ by a relative Frobenius norm of {allowed}."
        )


def _accuracy(stated: statement.Statement) -> Iterable[str]:
    yield "## Accuracy"
    if not stated.evaluation:
        yield "Not evaluated when it was merged."
        return
    graded = any("evaluator" in row for row in stated.evaluation)
    things, sets = ("data", "data sets") if graded else ("images", "image sets")
    shown = [scales.shown(row) for row in stated.evaluation]
    kinds = [key for key in COLUMNS if any(key in row for row in shown)]
    rows = [tuple(_cell(key, row.get(key)) for key in kinds) for row in shown]
    yield tables.to_markdown(tuple(COLUMNS[key] for key in kinds), rows)
    yield (
        "Base: zero-shot. Source: the version that was fine-tuned for the task. All three were "
        f"measured in one run, on the same {things} with the same settings. The {sets}:"
    )
    yield "\n".join(
        f"- {escaping.markdown(row['task'])}: "
        f"{escaping.markdown(row.get('dataset', row['task']))}, "
        f"{escaping.code(row['dataset_digest'])}"
        for row in stated.evaluation
    )


def _limits(stated: statement.Statement) -> Iterable[str]:
    yield "## Limits"
    limits = ["It inherits the training data, biases and licences of the base and of every source."]
    scored = [row for row in stated.evaluation if "normalized_accuracy" in row]
    if scored:
        things = "data" if any("evaluator" in row for row in scored) else "images"
        worst = min(scored, key=lambda row: row["normalized_accuracy"])
        limits.append(
            f"It keeps least on {escaping.markdown(worst['task'])}: "
            f"{worst['normalized_accuracy']:.1%} of its source's accuracy."
        )
        limits.append(
            f"Accuracy says nothing about {things} unlike those above. Other tasks than these, and "
            "zero-shot use, were not measured."
        )
    else:
        limits.append("Nobody has measured here what it can do; evaluate it before you use it.")
    if any(entry.licence is None for entry in stated.inputs):
        limits.append("Not every version that went into it has a licence recorded.")
    yield "\n".join(f"- {limit}" for limit in limits)


def _check(known: subjects.Subject) -> Iterable[str]:
    stated, uri = known.stated, _quoted(escaping.line(known.resolved.uri))
    commit = stated.code.get("digest", {}).get("gitCommit")
    dirty = " with uncommitted changes" if stated.code.get("annotations", {}).get("dirty") else ""
    measure = "within the tolerance" if stated.tolerances else "every bit"
    yield "## How to check this"
    yield (
        "```sh\n"
        f"mlflow-breadcrumbs verify {uri}      # is it still what was registered?\n"
        f"mlflow-breadcrumbs reproduce {uri}   # merge it again, compare {measure}\n"
        "```"
    )
    yield tables.to_markdown(
        ("record", "value"),
        [
            ("weights digest", escaping.code(stated.weights_digest)),
            (f"SHA-256 of {escaping.code(stated.file_name)}", escaping.code(stated.file_digest)),
            ("SHA-256 of `lineage.json`", f"`{known.lineage_digest}`"),
            ("MLflow run", escaping.code(stated.run_id)),
            ("merged", escaping.markdown(f"{stated.started} to {stated.finished}")),
            ("code", f"commit {escaping.code(commit)}{dirty}" if commit else _NO_COMMIT),
            ("libraries", escaping.markdown(", ".join(map(" ".join, stated.versions.items())))),
        ],
    )


def _quoted(text: str) -> str:
    """A word of a shell's command."""
    inner = text.replace("'", "'\\''")
    return f"'{inner}'"


_NO_COMMIT = "no git commit recorded"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if key.endswith("accuracy") else escaping.markdown(str(value))
