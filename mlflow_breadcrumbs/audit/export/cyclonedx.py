"""A machine-learning bill of materials, CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json).

The version is the subject; the base and the sources are its `pedigree.ancestors`, and those of a
merged source are that source's ancestors, as deep as the registry knows them.
"""

import datetime
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import mlflow_breadcrumbs
from mlflow_breadcrumbs.audit.export import subjects
from mlflow_breadcrumbs.lineage import relatives, statement
from mlflow_breadcrumbs.support import extras

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

PREFIX = "mlflow-breadcrumbs"


def write(known: subjects.Subject) -> str:
    """The bill of materials as JSON text.

    Raises:
        ExtraError: the extra `audit` is not installed.
    """
    with extras.needed("audit", "the format cyclonedx"):
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion

    tool = Component(
        name="mlflow-breadcrumbs",
        version=mlflow_breadcrumbs.__version__,
        type=ComponentType.APPLICATION,
    )
    metadata = BomMetaData(
        component=_subject(known),
        timestamp=datetime.datetime.fromisoformat(known.stated.finished),
    )
    metadata.tools.components.add(tool)
    # The same lineage is the same document.
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, known.lineage_digest), metadata=metadata)
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    content = json.loads(text)
    # The library has no model cards yet.
    if known.stated.evaluation:
        content["metadata"]["component"]["modelCard"] = _model_card(known.stated)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _subject(known: subjects.Subject) -> "Component":
    """The merged version."""
    from cyclonedx.model import (
        ExternalReference,
        ExternalReferenceType,
        HashAlgorithm,
        HashType,
        XsUri,
    )
    from cyclonedx.model.component import Pedigree

    def digest(value: str) -> HashType:
        return HashType(alg=HashAlgorithm.SHA_256, content=value.removeprefix("sha256:"))

    stated = known.stated
    # An ancestor may appear twice, so only the subject has a reference.
    component = _component(known.resolved.uri, known.resolved.model_id, known.resolved.uri)
    component.description = "Merged without training from the ancestors in its pedigree"
    component.hashes.add(digest(stated.file_digest))
    component.external_references.add(
        ExternalReference(
            type=ExternalReferenceType.ATTESTATION,
            url=XsUri(statement.FILE),
            comment="in-toto Statement with SLSA provenance, beside the weights",
            hashes=[digest(known.lineage_digest)],
        )
    )
    _describe(
        component,
        {
            "weightsDigest": stated.weights_digest,
            "recipeDigest": stated.settings.digest,
            "recipe": stated.settings.to_json(),
            "runId": stated.run_id,
            **stated.tolerance_text("tolerance"),
        },
    )
    component.pedigree = Pedigree(
        ancestors=[_parent(entry, node) for entry, node in known.parents()],
        notes=f"recipe {stated.settings.to_json()}",
    )
    return component


def _parent(stated: statement.Input, node: relatives.Ancestor) -> "Component":
    """The base or a direct source, as the statement names it."""
    from cyclonedx.model.license import DisjunctiveLicense

    component = _component(stated.uri, stated.model_id)
    if stated.licence is not None:
        component.licenses.add(DisjunctiveLicense(name=stated.licence))
    described = {
        "role": stated.role,
        "weightsDigest": stated.weights_digest,
        "tasks": ",".join(stated.tasks),
        "kind": node.kind,
    }
    if stated.weight is not None:
        described["weight"] = f"{stated.weight:g}"
    _describe(component, described)
    _add_ancestors(component, node)
    return component


def _ancestor(node: relatives.Ancestor) -> "Component":
    """A version further back, as its own tags describe it."""
    component = _component(node.uri, None)
    _describe(
        component,
        {
            "role": node.role,
            "weightsDigest": node.weights_digest or "unknown",
            "tasks": ",".join(node.tasks),
            "kind": node.kind,
        },
    )
    _add_ancestors(component, node)
    return component


def _add_ancestors(component: "Component", node: relatives.Ancestor) -> None:
    from cyclonedx.model.component import Pedigree

    if node.parents:
        component.pedigree = Pedigree(ancestors=[_ancestor(parent) for parent in node.parents])


def _component(uri: str, model_id: str | None, bom_ref: str | None = None) -> "Component":
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name, version = subjects.name_and_version(uri)
    qualifiers = {"model_uuid": model_id} if model_id else {}
    return Component(
        name=name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=bom_ref,
        purl=PackageURL("mlflow", None, name, version, qualifiers),
    )


def _describe(component: "Component", values: dict[str, str]) -> None:
    from cyclonedx.model import Property

    for key, value in values.items():
        component.properties.add(Property(name=f"{PREFIX}:{key}", value=value))


def _model_card(stated: statement.Statement) -> dict[str, Any]:
    """The CycloneDX model card: accuracy per task, and the images that it was measured on."""
    return {
        "modelParameters": {
            **({} if any("evaluator" in row for row in stated.evaluation) else IMAGES),
            "datasets": [
                {
                    "type": "dataset",
                    "name": row.get("dataset", row["task"]),
                    "description": f"{_counted(row)}, {row['dataset_digest']}",
                }
                for row in stated.evaluation
            ],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {"type": kind, "value": f"{value:.6g}", "slice": row["task"]}
                for row in stated.evaluation
                for kind, value in _performance(row)
            ]
        },
    }


IMAGES = {"task": "image-classification"}
"""What models of open_clip are for, which this package measures itself."""


def _counted(row: Mapping[str, Any]) -> str:
    """On how much it was measured."""
    if "evaluator" in row:
        return f"{row.get('images', row.get('examples', '?'))} examples"
    return f"{row.get('images', '?')} images"


def _performance(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What a task's row says of the merged model, by the name of the metric."""
    metric = str(row.get("metric", "accuracy"))
    kinds = {
        metric: row.get("value", row.get("accuracy")),
        "normalized_accuracy": row.get("normalized_accuracy"),
        f"finetuned_{metric}": row.get("finetuned_value", row.get("finetuned_accuracy")),
    }
    for kind, value in kinds.items():
        if value is not None:
            yield kind, value
