"""W3C PROV-JSON (https://www.w3.org/submissions/prov-json): entities, activities, agents.

The merge is an activity that used the base and the sources and generated the version; every
version further back that the registry knows is an entity from which a later one was derived.
"""

import urllib.parse
from typing import TYPE_CHECKING, Any

from mlflow_breadcrumbs.audit.export import subjects
from mlflow_breadcrumbs.lineage import relatives
from mlflow_breadcrumbs.registry import uris
from mlflow_breadcrumbs.support import extras

if TYPE_CHECKING:
    from prov.model import ProvDocument

NAMESPACES = {
    "models": "models:/",
    "runs": "runs:/",
    "datasets": "urn:mlflow-breadcrumbs:dataset:",
    "users": "urn:mlflow-breadcrumbs:user:",
    "breadcrumbs": "urn:mlflow-breadcrumbs:",
}


def write(known: subjects.Subject) -> str:
    """The document as PROV-JSON text.

    Raises:
        ExtraError: the extra `audit` is not installed.
    """
    with extras.needed("audit", "the format prov"):
        from prov.model import ProvDocument

    document = ProvDocument()
    for prefix, uri in NAMESPACES.items():
        document.add_namespace(prefix, uri)
    _add_merge(document, known)
    _add_evaluation(document, known)
    _add_ancestors(document, known.ancestry, {known.resolved.uri})
    return f"{document.serialize(format='json', indent=2)}\n"


def _add_merge(document: "ProvDocument", known: subjects.Subject) -> None:
    """The version, the merge that generated it, what that used, and who did it."""
    stated = known.stated
    merged, run = _model(known.resolved.uri), _name("runs", stated.run_id)
    document.entity(
        merged,
        {
            "prov:type": "merge",
            "breadcrumbs:weightsDigest": stated.weights_digest,
            "breadcrumbs:fileDigest": stated.file_digest,
            "breadcrumbs:lineageDigest": known.lineage_digest,
        },
    )
    recipe: dict[str, Any] = {
        "breadcrumbs:recipe": stated.settings.to_json(),
        "breadcrumbs:recipeDigest": stated.settings.digest,
        **stated.tolerance_text("breadcrumbs:tolerance"),
    }
    document.activity(run, stated.started, stated.finished, recipe)
    document.wasGeneratedBy(merged, run, stated.finished)
    for entry in stated.inputs:
        described: dict[str, Any] = {
            "breadcrumbs:weightsDigest": entry.weights_digest,
            "breadcrumbs:tasks": ",".join(entry.tasks),
        }
        if entry.licence is not None:
            described["breadcrumbs:licence"] = entry.licence
        document.entity(_model(entry.uri), described)
        role: dict[str, Any] = {"prov:role": entry.role}
        if entry.weight is not None:
            role["breadcrumbs:weight"] = entry.weight
        document.used(run, _model(entry.uri), other_attributes=role)
        document.wasDerivedFrom(merged, _model(entry.uri), run)
    software = _name("breadcrumbs", f"mlflow_breadcrumbs/{stated.versions['mlflow_breadcrumbs']}")
    commit = stated.code.get("digest", {}).get("gitCommit")
    document.agent(
        software,
        {"prov:type": "prov:SoftwareAgent"}
        | ({"breadcrumbs:gitCommit": commit} if commit is not None else {}),
    )
    document.wasAssociatedWith(run, software)
    if "user" in stated.environment:
        user = _name("users", stated.environment["user"])
        document.agent(user, {"prov:type": "prov:Person"})
        document.wasAssociatedWith(run, user)


KINDS = (
    *("accuracy", "finetuned_accuracy", "metric", "value", "finetuned_value", "evaluator"),
    "normalized_accuracy",
)
"""What of a measurement is exported, where it is there."""


def _add_evaluation(document: "ProvDocument", known: subjects.Subject) -> None:
    """The images, and the accuracies that were measured on them."""
    run = _name("runs", known.stated.run_id)
    for row in known.stated.evaluation:
        images = _name("datasets", row["dataset_digest"].removeprefix("sha256:"))
        document.entity(images, {"breadcrumbs:name": row.get("dataset", row["task"])})
        document.used(run, images, other_attributes={"prov:role": "evaluation"})
        result = _name("breadcrumbs", f"evaluation/{known.stated.run_id}/{row['task']}")
        document.entity(
            result,
            {f"breadcrumbs:{kind}": row[kind] for kind in KINDS if kind in row},
        )
        document.wasGeneratedBy(result, run)
        document.wasDerivedFrom(result, images)


def _add_ancestors(document: "ProvDocument", node: relatives.Ancestor, done: set[str]) -> None:
    """What the sources were made from; the direct ones are described by the statement."""
    for parent in node.parents:
        if node.role:
            document.wasDerivedFrom(_model(node.uri), _model(parent.uri))
            if parent.uri not in done:
                digest = parent.weights_digest or "unknown"
                described = {"prov:type": parent.kind, "breadcrumbs:weightsDigest": digest}
                document.entity(_model(parent.uri), described)
        done.add(parent.uri)
    for parent in node.parents:
        _add_ancestors(document, parent, done)


def _model(uri: str) -> str:
    return _name("models", uris.short(uri))


def _name(prefix: str, local: str) -> str:
    """A qualified name; what a URI can't hold is percent-encoded."""
    return f"{prefix}:{urllib.parse.quote(local, safe='/')}"
