"""`lineage.json`: what it says, that it validates, and that faults are named."""

import datetime
import json

import jsonschema
import mlflow
import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import resource_descriptor, statement_pb2
from in_toto_attestation.v1 import statement as in_toto

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.lineage import ancestry_tags, builder, kept_parts, statement
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import canonical

OLD = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [
        {"name": "m.safetensors", "digest": {"sha256": "0" * 64, "weightsSha256": "1" * 64}}
    ],
    "predicateType": "https://slsa.dev/provenance/v1",
    "predicate": {
        "buildDefinition": {
            "buildType": "urn:mlflow-breadcrumbs:merge:v1",
            "externalParameters": {
                "base": "models:/clip@base",
                "sources": ["models:/cars/1"],
                "registeredModel": "merged",
                "tasks": None,
            },
            "internalParameters": {
                "recipe": recipe.MergeRecipe(density=0.5).to_dict(),
                "recipeDigest": recipe.MergeRecipe(density=0.5).digest,
            },
            "resolvedDependencies": [
                {
                    "uri": "models:/clip/1",
                    "name": "base",
                    "digest": {"weightsSha256": "2" * 64},
                    "annotations": {
                        "role": "base",
                        "given": "models:/clip@base",
                        "dtypes": ["F32"],
                        "tasks": [],
                    },
                },
                {
                    "uri": "models:/cars/1",
                    "name": "source",
                    "digest": {"weightsSha256": "3" * 64},
                    "annotations": {
                        "role": "source",
                        "given": "models:/cars/1",
                        "dtypes": ["F32"],
                        "tasks": ["cars"],
                        "modelId": "m-1",
                        "weight": 1,
                    },
                },
            ],
        },
        "runDetails": {
            "builder": {
                "id": "urn:mlflow-breadcrumbs",
                "version": {"mlflow_breadcrumbs": "0.1.0", "torch": "2.9"},
            },
            "metadata": {
                "invocationId": "abc",
                "startedOn": "2026-01-01T00:00:00Z",
                "finishedOn": "2026-01-01T00:00:01Z",
            },
            "byproducts": [{"name": "environment", "annotations": {"user": "someone"}}],
        },
    },
}
"""As the first release wrote it, outside git and without an evaluation; it must stay valid."""


def changed(place, value=None):
    """`OLD` with one value set, or removed where none is given; canonical."""
    content = json.loads(json.dumps(OLD))
    *path, last = place
    inner = content
    for key in path:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return canonical.dumps(content)


BUILD = ("predicate", "buildDefinition")
ASKED = (*BUILD, "externalParameters")
PARTS = ("predicate", "runDetails", "byproducts", 0)


def test_files_of_the_first_release_stay_valid():
    found = statement.parse(canonical.dumps(OLD))
    assert (found.base.uri, [source.uri for source in found.sources]) == (
        "models:/clip/1",
        ["models:/cars/1"],
    )
    assert (found.base.model_id, found.sources[0].model_id) == (None, "m-1")
    assert found.weights_digest == f"sha256:{'1' * 64}"
    assert found.settings == recipe.MergeRecipe(density=0.5)
    assert (found.code, found.evaluation, found.environment) == ({}, (), {"user": "someone"})


def made_of_another():
    content = json.loads(changed((*ASKED, "from"), "models:/merged/1"))
    asked = content["predicate"]["buildDefinition"]["externalParameters"]
    asked |= {"added": ["models:/cars@best"], "removed": ["models:/signs/1"], "method": "ties"}
    kept = kept_parts.KeptParts(f"sha256:{'4' * 64}", 123, "urn:mlflow-breadcrumbs:parts:v1")
    content["predicate"]["runDetails"]["byproducts"].append(kept.byproduct())
    return content


def test_a_merge_of_another_says_so():
    found = statement.parse(canonical.dumps(made_of_another()))
    assert (found.origin, found.added, found.removed) == (
        "models:/merged/1",
        ("models:/cars@best",),
        ("models:/signs/1",),
    )
    assert (found.method, found.parts_digest) == ("ties", f"sha256:{'4' * 64}")
    assert statement.parse(canonical.dumps(OLD)).origin is None


def test_releases_that_know_nothing_of_changes_and_parts_read_them():
    """What was added to the schema is allowed by it as it was."""
    before = statement.schema()
    asked = before["$defs"]["buildDefinition"]["properties"]["externalParameters"]["properties"]
    for name in ("method", "from", "added", "removed"):
        del asked[name]
    del before["$defs"]["parts"]
    rules = before["$defs"]["runDetails"]["properties"]["byproducts"]["items"]["allOf"]
    rules[:] = [rule for rule in rules if rule["if"]["properties"]["name"] != {"const": "parts"}]
    jsonschema.Draft202012Validator(before).validate(made_of_another())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lineage.json is not JSON"),
        (b"[]", r"\$: \[\] is not of type 'object'"),
        (changed(("subject",), []), r"\$\.subject: \[\] should be non-empty"),
        (
            changed(("_type",), "other"),
            r"_type'\]: 'https://in-toto.io/.*' was expected",
        ),
        (
            changed((*BUILD, "buildType"), "urn:other"),
            r"buildType: 'urn:mlflow-breadcrumbs:merge:v1' was expected",
        ),
        (
            changed((*BUILD, "resolvedDependencies", 1, "annotations", "role"), "base"),
            r"resolvedDependencies\[1\]\.annotations\.role: 'source' was expected",
        ),
        (
            changed((*BUILD, "resolvedDependencies", 1, "digest", "weightsSha256"), "33"),
            r"weightsSha256: '33' does not match",
        ),
        (
            changed((*BUILD, "internalParameters", "recipe", "density"), 2),
            "recipe: density is 2.0; it must be in 0 < density ≤ 1",
        ),
        (
            changed((*BUILD, "internalParameters", "recipe", "weights"), [1, 2]),
            "recipe: the recipe has 2 weights for 1 source;",
        ),
        (
            changed((*BUILD, "internalParameters", "recipe", "density"), 0.25),
            r"recipeDigest is sha256:\w+, but the recipe's is sha256:",
        ),
        (changed((*ASKED, "from"), "clip/1"), r"externalParameters\.from: 'clip/1' does not match"),
        (changed((*ASKED, "removed"), "x"), r"removed: 'x' is not of type 'array'"),
        (
            changed(PARTS, {"name": "parts", "annotations": {}}),
            r"byproducts\[0\]: 'digest' is a required property",
        ),
        (json.dumps(OLD).encode(), "the bytes are not the canonical JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(content, words):
    with pytest.raises(errors.StatementError, match=words):
        statement.validate(content)


def test_every_fault_is_listed():
    content = json.loads(changed((*BUILD, "buildType")))
    content["subject"] = []
    content["predicate"]["runDetails"]["metadata"]["startedOn"] = "yesterday"
    with pytest.raises(errors.StatementError) as caught:
        statement.validate(canonical.dumps(content))
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "$.predicate.buildDefinition",
        "$.predicate.runDetails.metadata.startedOn",
        "$.subject",
    ]


def test_a_merge_writes_who_what_where_and_with_what_result(family):
    content = family.file(family.merged, "lineage.json").read_bytes()
    found = statement.parse(content)
    assert [entry.uri for entry in found.inputs] == [family.base, *family.sources[:2]]
    assert [entry.weight for entry in found.inputs] == [None, 1, 0.5]
    assert found.run_id == family.run_id
    start, end = map(datetime.datetime.fromisoformat, (found.started, found.finished))
    assert start <= end
    assert found.versions == builder.versions()
    assert found.code["annotations"]["version"] == builder.versions()["mlflow_breadcrumbs"]
    assert len(found.code["digest"]["gitCommit"]) == 40
    assert isinstance(found.code["annotations"]["dirty"], bool)
    assert {"machine", "processor", "processors", "system", "python", "device", "backend"} <= set(
        found.environment
    )
    metrics = mlflow.MlflowClient().get_run(family.run_id).data.metrics
    assert [row["task"] for row in found.evaluation] == ["colours", "tints"]
    for row in found.evaluation:
        assert row["accuracy"] == metrics[f"accuracy/{row['task']}"]
        assert row["split"] == "test"
        assert row["dataset_digest"].startswith("sha256:")
    assert ancestry_tags.tags_of(content).items() <= versions.resolve(family.merged).tags.items()


def test_licence_tags_are_written(family):
    client = mlflow.MlflowClient()
    client.set_registered_model_tag("tiny", "license", "mit")
    client.set_registered_model_tag("tiny-tints", "license", "mit")
    client.set_model_version_tag("tiny-tints", "1", "licence", "cc-by-4.0")
    request = flow.MergeRequest(
        base=family.base,
        sources=family.sources[1:],
        registered_model="licensed",
        recipe=recipe.MergeRecipe.from_method("task_arithmetic", sources=2),
        device="cpu",
    )
    uri = flow.merge(request).version.uri
    found = statement.parse(family.file(uri, "lineage.json").read_bytes())
    assert [entry.licence for entry in found.inputs] == ["mit", "cc-by-4.0", None]


def test_the_public_library_reads_it(family):
    """The shapes are those of in-toto and SLSA: their own protocol buffers take every field."""
    content = json.loads(family.file(family.merged, "lineage.json").read_bytes())
    parsed = json_format.ParseDict(content, statement_pb2.Statement())
    in_toto.Statement.copy_from_pb(parsed).validate()
    # SLSA's `version` of the builder and its parameters are free-form; the rest must be known.
    predicate = json_format.ParseDict(content["predicate"], provenance_pb2.Provenance())
    assert predicate.build_definition.build_type == statement.BUILD_TYPE
    for dependency in predicate.build_definition.resolved_dependencies:
        resource_descriptor.ResourceDescriptor.copy_from_pb(dependency).validate()
    assert predicate.run_details.metadata.invocation_id == family.run_id
