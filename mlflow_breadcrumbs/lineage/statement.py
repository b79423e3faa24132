"""`lineage.json`: what went into a merged version, as a statement that auditors' tools can read.

An in-toto Statement v1 (https://in-toto.io/Statement/v1) with a SLSA provenance v1 predicate
(https://slsa.dev/spec/v1.0/provenance), in canonical JSON. docs/lineage.md explains each field.
"""

import dataclasses
import datetime
import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import drafts, recipe
from mlflow_breadcrumbs.lineage import builder, kept_adapters, kept_parts
from mlflow_breadcrumbs.registry import accounts
from mlflow_breadcrumbs.support import canonical, credentials, json_documents

if TYPE_CHECKING:
    import jsonschema

FILE = "lineage.json"
BUILD_TYPE = "urn:mlflow-breadcrumbs:merge:v1"
BUILDER = "urn:mlflow-breadcrumbs"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
SCHEMA = "lineage.schema.json"


@dataclasses.dataclass(frozen=True)
class Input:
    """The base or a source, as it went into the merge."""

    role: str
    """`base` or `source`."""
    given: str
    """The URI that the user gave."""
    uri: str
    """The URI pinned to the version."""
    weights_digest: str
    model_id: str | None
    dtypes: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    weight: float | None = None
    licence: str | None = None
    """What the version's or its registered model's licence tag says."""
    preprocessing: Mapping[str, Any] | None = None
    """The source's own, where it is not the base's: its accuracy was measured with it."""
    rounding: float | None = None
    """The share of the task vector's norm that rounding explains, 0…1, where the source is stored
    in fewer bits than the base."""
    alignment: Mapping[str, Any] | None = None
    """What was decided of the source's tensors, where they are not quite the base's: see
    `alignment.Alignment.to_dict`; under `heads` the digests of what it keeps, by task."""

    def descriptor(self) -> dict[str, Any]:
        """The in-toto ResourceDescriptor."""
        annotations: dict[str, Any] = {
            "role": self.role,
            "given": self.given,
            "dtypes": list(self.dtypes),
            "tasks": list(self.tasks),
        }
        if self.model_id is not None:
            annotations["modelId"] = self.model_id
        if self.weight is not None:
            annotations["weight"] = self.weight
        if self.licence is not None:
            annotations["licence"] = self.licence
        if self.preprocessing is not None:
            annotations["preprocessing"] = dict(self.preprocessing)
        if self.rounding is not None:
            annotations["roundingShare"] = self.rounding
        if self.alignment is not None:
            annotations["alignment"] = dict(self.alignment)
        return {
            "uri": self.uri,
            "name": self.role,
            "digest": {"weightsSha256": _hex(self.weights_digest)},
            "annotations": annotations,
        }


@dataclasses.dataclass(frozen=True)
class Invocation:
    """The run that did the merge."""

    run_id: str
    started: datetime.datetime
    finished: datetime.datetime
    device: str
    backend: str


def build(
    *,
    file_name: str,
    file_digest: str,
    weights_digest: str,
    settings: recipe.MergeRecipe,
    given: Mapping[str, Any],
    inputs: Sequence[Input],
    invocation: Invocation,
    evaluation: Sequence[Mapping[str, Any]] = (),
    tolerances: Mapping[str, float] | None = None,
    running: Sequence[str] = (),
    choice: drafts.Choice | None = None,
    parts: kept_parts.KeptParts | None = None,
    adapter: kept_adapters.KeptAdapter | None = None,
) -> bytes:
    """The statement in canonical JSON, without the passwords and tokens of URIs that were given.

    Args:
        file_name: of the weights inside the version.
        file_digest: `sha256:…` of that file.
        weights_digest: of the merged weights.
        settings: the recipe as resolved.
        given: what the user asked for, as given.
        inputs: the base and the sources, in order.
        invocation: the run.
        evaluation: one mapping per task, with the data set's digest.
        tolerances: what `tolerance.tolerances` gave for the merge.
        running: names of the running statistics and counters that are the base's.
        choice: how the recipe came about, where it was not given.
        parts: where they were kept.
        adapter: where one was made of the change.
    """
    return canonical.dumps(
        credentials.cleaned(
            {
                "_type": STATEMENT_TYPE,
                "subject": [
                    {
                        "name": file_name,
                        "digest": {
                            "sha256": _hex(file_digest),
                            "weightsSha256": _hex(weights_digest),
                        },
                    }
                ],
                "predicateType": PREDICATE_TYPE,
                "predicate": {
                    "buildDefinition": {
                        "buildType": BUILD_TYPE,
                        "externalParameters": dict(given),
                        "internalParameters": {
                            "recipe": settings.to_dict(),
                            "recipeDigest": settings.digest,
                            **({"tolerance": _tolerance(tolerances)} if tolerances else {}),
                            **({"running": _running(running)} if running else {}),
                            **({"choice": choice.to_dict()} if choice else {}),
                        },
                        "resolvedDependencies": [
                            *(entry.descriptor() for entry in inputs),
                            builder.code(),
                        ],
                    },
                    "runDetails": {
                        "builder": {"id": BUILDER, "version": builder.versions()},
                        "metadata": {
                            "invocationId": invocation.run_id,
                            "startedOn": _timestamp(invocation.started),
                            "finishedOn": _timestamp(invocation.finished),
                        },
                        "byproducts": [
                            {
                                "name": "environment",
                                "annotations": {
                                    "user": accounts.user(),
                                    "device": invocation.device,
                                    "backend": invocation.backend,
                                    **builder.host(invocation.device),
                                },
                            },
                            *(
                                {"name": f"evaluation/{row['task']}", "annotations": dict(row)}
                                for row in evaluation
                            ),
                            *([parts.byproduct()] if parts else ()),
                            *([adapter.byproduct()] if adapter else ()),
                        ],
                    },
                },
            }
        )
    )


@dataclasses.dataclass(frozen=True)
class Statement:
    """A `lineage.json` that was read back: what it says of a merged version."""

    content: Mapping[str, Any]
    """The whole statement."""
    file_name: str
    """Of the weights inside the version."""
    file_digest: str
    weights_digest: str
    settings: recipe.MergeRecipe
    inputs: tuple[Input, ...]
    """The base, then the sources in the order of the sum."""
    run_id: str
    started: str
    """RFC 3339, UTC."""
    finished: str
    code: Mapping[str, Any]
    """The descriptor of this package's code; empty where none was written."""
    versions: Mapping[str, str]
    """Of this package and of the libraries."""
    environment: Mapping[str, Any]
    evaluation: tuple[Mapping[str, Any], ...]
    """One mapping per task."""
    tolerances: Mapping[str, float]
    """By dtype, how far decomposed matrices may be off when the merge is done again; empty where
    it must give the same bits."""
    choice: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How the recipe came about: `open`, `why`, `measured`; empty where it was given."""
    running: tuple[str, ...] = ()
    """Running statistics and counters that are the base's; a merge by a release that summed them
    has none."""
    method: str | None = None
    """That filled in the recipe, where it was given by name."""
    origin: str | None = None
    """The version that this one was made of by adding and taking out sources."""
    added: tuple[str, ...] = ()
    """Sources that the origin has not, as given."""
    removed: tuple[str, ...] = ()
    """Sources that only the origin has."""
    parts_digest: str | None = None
    """Of the index of the parts that were kept in the run."""
    adapter_rank: int | None = None
    """Of the adapter that was made of the change and kept in the run."""
    task_file: str | None = None
    """That it was measured on: a path on the machine that merged, or a URI."""

    def tolerance_text(self, key: str) -> dict[str, str]:
        """The tolerances as canonical JSON under a key; nothing where there are none."""
        return {key: canonical.dumps(dict(self.tolerances)).decode()} if self.tolerances else {}

    @property
    def base(self) -> Input:
        """The version that every source was fine-tuned from."""
        return self.inputs[0]

    @property
    def sources(self) -> tuple[Input, ...]:
        """What was merged into the base."""
        return self.inputs[1:]


def parse(content: bytes) -> Statement:
    """Read a `lineage.json`.

    Raises:
        StatementError: it is not one; the message lists every fault.
    """
    validate(content)
    whole = _read(content)
    (subject,) = whole["subject"]
    definition = whole["predicate"]["buildDefinition"]
    details = whole["predicate"]["runDetails"]
    dependencies = definition["resolvedDependencies"]
    asked = definition["externalParameters"]
    products = details["byproducts"]
    return Statement(
        content=whole,
        task_file=asked.get("tasks"),
        file_name=subject["name"],
        file_digest=f"sha256:{subject['digest']['sha256']}",
        weights_digest=f"sha256:{subject['digest']['weightsSha256']}",
        settings=recipe.MergeRecipe.from_dict(definition["internalParameters"]["recipe"]),
        inputs=tuple(_input(entry) for entry in dependencies if _role(entry) != "code"),
        run_id=details["metadata"]["invocationId"],
        started=details["metadata"]["startedOn"],
        finished=details["metadata"]["finishedOn"],
        code=next((entry for entry in dependencies if _role(entry) == "code"), {}),
        versions=details["builder"]["version"],
        environment=next(
            (entry["annotations"] for entry in products if entry["name"] == "environment"), {}
        ),
        evaluation=tuple(
            entry["annotations"] for entry in products if entry["name"].startswith("evaluation/")
        ),
        tolerances=definition["internalParameters"].get("tolerance", {}).get("relativeNorm", {}),
        choice=definition["internalParameters"].get("choice", {}),
        running=tuple(definition["internalParameters"].get("running", {}).get("tensors", ())),
        method=asked.get("method"),
        origin=asked.get("from"),
        added=tuple(asked.get("added", ())),
        removed=tuple(asked.get("removed", ())),
        parts_digest=kept_parts.digest_in(products),
        adapter_rank=kept_adapters.rank_in(products),
    )


def validate(content: bytes) -> None:
    """Hold a `lineage.json` against its schema, its recipe's ranges and its canonical form.

    Raises:
        StatementError: the message lists every fault with its place.
    """
    whole = _read(content)
    # Numbers and strings sort differently, and a path mixes them.
    found = sorted(_validator().iter_errors(whole), key=lambda fault: fault.json_path)
    faults = [f"{fault.json_path}: {_short(fault.message)}" for fault in found]
    if not faults:
        faults = _contradictions(content, whole)
    if faults:
        raise errors.StatementError(
            f"{FILE} is not a statement of the build type {BUILD_TYPE}:\n  " + "\n  ".join(faults)
        )


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `lineage.json`."""
    file = importlib.resources.files("mlflow_breadcrumbs.lineage") / SCHEMA
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _read(content: bytes) -> Any:
    return json_documents.parse(content, FILE, errors.StatementError)


@functools.cache
def _validator() -> "jsonschema.Draft202012Validator":
    import jsonschema

    return jsonschema.Draft202012Validator(schema())


def _contradictions(content: bytes, whole: Mapping[str, Any]) -> list[str]:
    """What a schema can't say: a sound recipe, its own digest, canonical bytes."""
    definition = whole["predicate"]["buildDefinition"]
    stated = definition["internalParameters"]
    sources = sum(_role(entry) == "source" for entry in definition["resolvedDependencies"])
    faults = []
    try:
        settings = recipe.MergeRecipe.from_dict(stated["recipe"])
        settings.weight_of(sources)
        if settings.bit_exact and "tolerance" in stated:
            faults.append("tolerance is given, but the recipe has no decompositions")
        if settings.digest != stated["recipeDigest"]:
            faults.append(
                f"recipeDigest is {stated['recipeDigest']}, but the recipe's is {settings.digest}"
            )
    except errors.RecipeError as error:
        faults.append(f"recipe: {error}")
    if canonical.dumps(whole) != content:
        faults.append("the bytes are not the canonical JSON (RFC 8785) of their content")
    return faults


def _tolerance(tolerances: Mapping[str, float]) -> dict[str, Any]:
    """What a repetition of the merge may differ by, and why."""
    return {
        "relativeNorm": dict(tolerances),
        "tensors": "merged tensors of two dimensions; all others have the same bits",
        "reason": "decompositions of matrices are not bit-identical across devices, "
        "processors and libraries",
    }


def _running(names: Sequence[str]) -> dict[str, Any]:
    """Which tensors were not summed, and why."""
    return {
        "from": "base",
        "tensors": list(names),
        "reason": "running statistics and counters are measured on images and don't add up",
    }


def _input(entry: Mapping[str, Any]) -> Input:
    annotations = entry["annotations"]
    return Input(
        role=annotations["role"],
        given=annotations["given"],
        uri=entry["uri"],
        weights_digest=f"sha256:{entry['digest']['weightsSha256']}",
        model_id=annotations.get("modelId"),
        dtypes=tuple(annotations["dtypes"]),
        tasks=tuple(annotations["tasks"]),
        weight=annotations.get("weight"),
        licence=annotations.get("licence"),
        preprocessing=annotations.get("preprocessing"),
        rounding=annotations.get("roundingShare"),
        alignment=annotations.get("alignment"),
    )


def _role(entry: Mapping[str, Any]) -> str:
    return str(entry["annotations"]["role"])


def _short(message: str) -> str:
    """A fault's message, which quotes the value at fault, however long."""
    return message if len(message) <= 200 else f"{message[:100]} … {message[-80:]}"


def _timestamp(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
