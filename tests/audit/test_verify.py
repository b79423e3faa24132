"""What `verify` finds: nothing on what is intact, and each change by its name."""

import json

import mlflow
import pytest
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.audit import evidence, export, reproduce, verify
from mlflow_breadcrumbs.registry import tag_keys, versions
from mlflow_breadcrumbs.support import canonical


def failures(uri):
    """The checks that fail, by name."""
    return {check.name: check.status for check in verify.verify(uri).failures}


def flip(path, position=-1):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_what_is_intact_passes_every_check(family):
    report = verify.verify(family.merged)
    assert (report.uri, report.kind, report.failures) == (family.merged, "merge", ())
    assert report.counts == {"ok": len(report.checks), "changed": 0, "missing": 0, "unknown": 0}
    names = [check.name for check in report.checks]
    assert len(set(names)) == len(names)
    assert {
        "weights",
        "weights in lineage.json",
        "weights file",
        "lineage.json",
        "lineage.json's schema",
        "tag breadcrumbs.merge_digest",
        "tags of the logged model",
        "head tints",
        "configuration",
        "run",
        f"run's input {family.base}",
        f"run's input {family.sources[1]}",
        "run's output",
        "metric accuracy/colours",
        f"base {family.base}",
        f"source {family.sources[0]}",
    } <= set(names)


def test_one_byte_of_the_weights(family):
    uri = family.merged
    flip(family.file(uri))
    found = failures(uri)
    assert found == {
        "weights": "changed",
        "weights in MLmodel": "changed",
        "weights in lineage.json": "changed",
        "weights file": "changed",
        "ledger event": "changed",
    }
    flip(family.file(uri), 3)  # the header's length: no safetensors file any more
    (check,) = verify.verify(uri).failures
    assert (check.name, check.status) == ("weights", "changed")
    assert "is not a sound safetensors file" in check.detail
    family.file(uri).unlink()
    assert failures(uri) == {"weights": "missing"}


@pytest.mark.parametrize("key", ["recipe_digest", "weights_digest", "merge_digest", "base"])
def test_one_tag(family, key):
    uri = family.merged
    client = mlflow.MlflowClient()
    client.set_model_version_tag("merged", "1", f"breadcrumbs.{key}", "models:/other/1")
    found = failures(uri)
    assert found.pop(f"tag breadcrumbs.{key}") == "changed"
    assert found == ({"weights": "changed"} if key == "weights_digest" else {})
    client.delete_model_version_tag("merged", "1", f"breadcrumbs.{key}")
    assert failures(uri) == {f"tag breadcrumbs.{key}": "missing"}


def test_more_tags(family):
    uri = family.merged
    client = mlflow.MlflowClient()
    client.set_model_version_tag("merged", "1", "breadcrumbs.task", "colours")
    client.set_model_version_tag("merged", "1", tag_keys.of_source("sha256:00"), "models:/x/1")
    client.set_model_version_tag("merged", "1", "owner", "somebody")
    client.set_logged_model_tags(
        versions.resolve(uri).model_id, {"breadcrumbs.base": "models:/x/1"}
    )
    assert failures(uri) == {
        "tag breadcrumbs.task": "changed",
        "tag breadcrumbs.source/00": "changed",
        "tags of the logged model": "changed",
    }


def test_one_native_input_and_the_output(family):
    source = versions.resolve(family.sources[0]).model_id
    family.execute(
        "DELETE FROM inputs WHERE source_type = 'RUN_INPUT' AND source_id = ? "
        "AND destination_id = ?",
        family.run_id,
        source,
    )
    (check,) = verify.verify(family.merged).failures
    assert (check.name, check.status) == (f"run's input {family.sources[0]}", "missing")
    assert check.detail == f"the run has no model input {source}"
    family.execute(
        "DELETE FROM inputs WHERE source_type = 'RUN_OUTPUT' AND source_id = ?", family.run_id
    )
    assert failures(family.merged)["run's output"] == "missing"


def test_an_input_that_the_lineage_does_not_name_is_shown(family):
    other = versions.resolve(family.sources[2]).model_id
    model = mlflow.entities.LoggedModelInput(other)
    mlflow.MlflowClient().log_inputs(family.run_id, models=[model])
    report = verify.verify(family.merged)
    assert report.ok
    (check,) = (check for check in report.checks if check.status == "unknown")
    assert check.name == f"run's input {other}"


def test_the_bytes_of_a_source(family):
    uri = family.merged
    path = family.file(family.sources[1])
    flip(path)
    (check,) = verify.verify(uri).failures
    assert (check.name, check.status) == (f"source {family.sources[1]}", "changed")
    assert failures(family.sources[1]) == {
        "weights": "changed",
        "weights in MLmodel": "changed",
        "ledger event": "changed",
    }
    path.rename(path.with_name("moved"))
    try:
        (check,) = verify.verify(uri).failures
    finally:
        path.with_name("moved").rename(path)
    assert (check.name, check.status) == (f"source {family.sources[1]}", "missing")


def test_the_tag_of_a_source(family):
    uri = family.merged
    mlflow.MlflowClient().set_model_version_tag(
        "tiny-colours", "1", "breadcrumbs.weights_digest", "sha256:00"
    )
    assert failures(uri) == {f"tag of {family.sources[0]}": "changed"}


def rewrite(family, uri, change):
    """Change `lineage.json` and keep it canonical."""
    path = family.file(uri, "lineage.json")
    content = json.loads(path.read_bytes())
    change(content["predicate"]["buildDefinition"])
    path.write_bytes(canonical.dumps(content))
    return canonical.sha256(path.read_bytes())


def test_lineage_json(family):
    uri = family.merged

    def other_source(definition):
        definition["resolvedDependencies"][1]["uri"] = "models:/tiny-hues/1"

    digest = rewrite(family, uri, other_source)
    found = failures(uri)
    assert found["lineage.json"] == "changed"
    assert found["tag breadcrumbs.sources"] == "changed"
    assert found["source models:/tiny-hues/1"] == "changed"
    # Who corrects the digest too leaves the other records behind.
    mlflow.MlflowClient().set_model_version_tag("merged", "1", "breadcrumbs.lineage_digest", digest)
    found = failures(uri)
    assert "lineage.json" not in found
    assert found["tags of the logged model"] == "changed"
    assert found["source models:/tiny-hues/1"] == "changed"


def test_a_lineage_json_that_is_none(family):
    uri = family.merged
    rewrite(family, uri, lambda definition: definition.pop("buildType"))
    report = verify.verify(uri)
    (check,) = (check for check in report.checks if check.name == "lineage.json's schema")
    assert "$.predicate.buildDefinition: 'buildType' is a required property" in check.detail
    family.file(uri, "lineage.json").write_bytes(b"{")
    assert failures(uri) == {"lineage.json": "changed", "lineage.json's schema": "changed"}
    family.file(uri, "lineage.json").unlink()
    assert failures(uri) == {"lineage.json": "missing"}


def test_a_merge_that_hides_that_it_is_one(family):
    """Without its file and its tags it is still what its run and its logged model say."""
    client = mlflow.MlflowClient()
    family.file(family.merged, "lineage.json").unlink()
    for key in versions.resolve(family.merged).tags:
        client.delete_model_version_tag("merged", "1", key)
    report = verify.verify(family.merged)
    assert report.kind == "merge"
    found = {check.name: check.status for check in report.checks if check.status != "ok"}
    assert found == {
        "weights": "unknown",
        "lineage.json": "missing",
        "tag breadcrumbs.task": "missing",
        "ledger head": "unknown",
    }


def test_a_head_and_the_configuration(family):
    uri = family.merged
    path = family.file(uri, "tasks/tints.json")
    path.write_text(path.read_text().replace("green", "teal"))
    config = family.file(uri, "open_clip_config.json")
    config.write_text(config.read_text().replace("bicubic", "bilinear"))
    assert failures(uri) == {"head tints": "changed", "configuration": "changed"}
    path.with_suffix(".safetensors").unlink()
    config.write_text("{")
    assert failures(uri) == {"heads": "changed", "configuration": "changed"}


def test_a_metric(family):
    mlflow.MlflowClient().log_metric(family.run_id, "accuracy/colours", 0.999)
    (check,) = verify.verify(family.merged).failures
    assert (check.name, check.status) == ("metric accuracy/colours", "changed")
    assert check.detail.startswith("0.999, but lineage.json says ")


def test_a_deleted_run(family):
    mlflow.MlflowClient().delete_run(family.run_id)
    report = verify.verify(family.merged)
    assert report.ok
    assert "not yet purged" in next(c.detail for c in report.checks if c.name == "run")
    family.execute("UPDATE runs SET run_uuid = 'elsewhere' WHERE run_uuid = ?", family.run_id)
    assert failures(family.merged) == {"run": "missing"}


def test_a_deleted_source_is_verified_by_its_logged_model(family):
    uri = family.merged
    client = mlflow.MlflowClient()
    model = versions.resolve(family.sources[0]).model_id
    path = family.file(family.sources[0])
    client.delete_model_version("tiny-colours", "1")
    report = verify.verify(uri)
    assert report.ok
    (check,) = (check for check in report.checks if check.name == f"source {family.sources[0]}")
    assert check.detail.startswith(f"the version was deleted; these are the bytes of {model}")
    flip(path)
    assert failures(uri) == {f"source {family.sources[0]}": "changed"}
    client.delete_logged_model(model)
    report = verify.verify(uri)
    assert {c.name: c.status for c in report.failures} == {f"source {family.sources[0]}": "missing"}
    assert next(c for c in report.checks if c.name == "head colours").status == "unknown"


def test_a_dangling_source(family):
    uri = family.merged
    model = versions.resolve(family.sources[0]).model_id
    family.execute(
        "UPDATE model_versions SET source = 'models:/nowhere/3', storage_location = NULL "
        "WHERE name = 'tiny-colours'",
    )
    mlflow.MlflowClient().delete_logged_model(model)
    (check,) = verify.verify(uri).failures
    assert (check.name, check.status) == (f"source {family.sources[0]}", "missing")
    assert "nowhere" in check.detail


def test_a_name_that_was_made_anew_is_another_version(family):
    uri = family.merged
    client = mlflow.MlflowClient()
    client.delete_registered_model("tiny-colours")
    client.copy_model_version(family.sources[2], "tiny-colours")
    failed = {check.name: check for check in verify.verify(uri).failures}
    uri = family.sources[0]
    assert set(failed) == {"head colours", f"source {uri}", f"tag of {uri}"}
    assert "(the version is now m-" in failed[f"source {uri}"].detail


def test_versions_without_records(family, tmp_path):
    client = mlflow.MlflowClient()
    client.delete_model_version_tag("tiny", "1", "breadcrumbs.weights_digest")
    client.create_registered_model("foreign")
    client.create_model_version("foreign", str(tmp_path / "nowhere"))
    for uri in ("models:/tiny/1", "models:/foreign/1"):
        report = verify.verify(uri)
        assert report.ok
        assert next(c for c in report.checks if c.name == "weights").status == "unknown"
    with pytest.raises(errors.RegistryError, match="cannot resolve models:/none/1"):
        verify.verify("models:/none/1")


def test_a_whole_registry(family):
    reports = verify.verify_all()
    colours, tints, hues = family.sources
    assert [report.uri for report in reports] == [
        family.merged,
        family.base,
        colours,
        hues,
        tints,
        family.top,
    ]
    assert all(report.ok for report in reports)
    flip(family.file(family.merged))
    family.execute("UPDATE model_versions SET status = 'FAILED' WHERE name = 'tiny-hues'")
    broken = {r.uri: {c.name for c in r.failures} for r in verify.verify_all() if not r.ok}
    assert set(broken) == {family.merged, family.top, "models:/tiny-hues/1"}
    assert broken[family.top] == {f"source {family.merged}"}
    assert broken["models:/tiny-hues/1"] == {"version"}


def test_weights_that_versions_share_are_read_once(family, monkeypatch):
    read = []
    original = evidence._read

    def counted(resolved, *more):
        read.append(resolved.location)
        return original(resolved, *more)

    monkeypatch.setattr(evidence, "_read", counted)
    verify.verify_all()
    assert len(read) == len(set(read)) == 6


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_the_command(family):
    uri = family.merged
    result = run("verify", uri)
    assert result.exit_code == 0, result.output
    assert f"{uri} (merge): " in result.output
    assert run("verify", "--all").output.endswith("6 versions, 0 failed\n")
    mlflow.MlflowClient().set_model_version_tag("merged", "1", "breadcrumbs.base", "models:/x/1")
    result = run("verify", uri, "--json")
    assert result.exit_code == 3
    made = json.loads(result.stdout)
    assert (made["uri"], made["ok"], made["counts"]["changed"]) == (uri, False, 1)
    result = run("verify", "--all")
    assert result.exit_code == 3
    assert "6 versions, 1 failed" in result.output
    words = (
        f"{uri}: tag breadcrumbs.base: changed: models:/x/1, but lineage.json says {family.base}"
    )
    assert words in result.output
    made = json.loads(run("verify", "--all", "--json").stdout)
    assert [v["uri"] for v in made["versions"] if not v["ok"]] == [uri]
    assert run("verify").exit_code == 2
    assert run("verify", uri, "--all").exit_code == 2
    assert run("verify", "models:/none/1").exit_code == 1


@pytest.mark.slow
def test_over_a_tracking_server(server, light, tmp_path, monkeypatch):
    """Everything over HTTP: verify, reproduce, export and sign see no file of the store."""
    monkeypatch.chdir(tmp_path)
    previous = mlflow.get_tracking_uri()
    zoos.use(server)
    try:
        mlflow.set_experiment("evidence-over-http")
        client = mlflow.MlflowClient()
        family = zoos.merge_family(zoos.fill(tmp_path, server))
        client.delete_model_version(*family.sources[2].removeprefix("models:/").split("/"))
        for uri in (family.merged, family.top):
            report = verify.verify(uri)
            assert report.ok, report.failures
            assert reproduce.reproduce(uri).identical
            assert all(export.export(uri, form) for form in export.FORMATS)
        run("export", family.merged, "--sign", zoos.new_key(tmp_path / "key"))
        assert verify.verify(family.merged, key=tmp_path / "key.pub").ok
        name, number = family.merged.removeprefix("models:/").split("/")
        client.set_model_version_tag(name, number, "breadcrumbs.base", "models:/x/1")
        broken = {report.uri for report in verify.verify_all() if not report.ok}
        assert broken & {family.merged, family.top} == {family.merged}
    finally:
        zoos.use(previous)


def test_a_server_that_is_down_is_not_a_missing_version(family, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    zoos.use("http://127.0.0.1:9")
    for arguments in ((family.merged,), ("--all",)):
        result = run("verify", *arguments)
        assert result.exit_code == 1
        assert "the tracking server http://127.0.0.1:9 does not answer" in result.stderr
