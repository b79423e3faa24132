"""Exports, each read back with the library of its own format."""

import dataclasses
import json
import subprocess
import sys
import uuid
from html import unescape

import huggingface_hub
import mlflow
import pytest
import zoos
from click.testing import CliRunner
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from markdown_it import MarkdownIt
from openlineage.client import event_v2
from prov import model as prov_model

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.audit import export
from mlflow_breadcrumbs.audit.export import subjects
from mlflow_breadcrumbs.commands import auditing
from mlflow_breadcrumbs.lineage import statement
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import canonical


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def stated(family, uri):
    return statement.parse(family.file(uri, "lineage.json").read_bytes())


def test_the_formats_in_the_help_are_those_there_are():
    assert tuple(export.FORMATS) == auditing.FORMATS


@pytest.mark.parametrize("form", auditing.FORMATS)
def test_the_same_version_gives_the_same_bytes(family, form):
    assert export.export(family.top, form) == export.export(family.top, form)


def test_slsa_is_lineage_json_itself(family):
    raw = family.file(family.merged, "lineage.json").read_bytes()
    assert export.export(family.merged, "slsa").encode() == raw


def ancestors(component):
    """Name, version and ancestors, all the way down."""
    below = component.pedigree.ancestors if component.pedigree else ()
    return {f"models:/{c.name}/{c.version}": ancestors(c) for c in below}


def test_cyclonedx(family):
    text = export.export(family.top, "cyclonedx")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    content = json.loads(text)
    component = Bom.from_json(content).metadata.component
    assert (component.name, component.version) == ("top", "1")
    assert component.type == "machine-learning-model"
    known = stated(family, family.top)
    assert [h.content for h in component.hashes] == [known.file_digest.removeprefix("sha256:")]
    leaf = {family.base: {}, family.sources[0]: {}, family.sources[1]: {}}
    assert ancestors(component) == {family.base: {}, family.merged: leaf, family.sources[2]: {}}


def test_cyclonedx_has_the_accuracies(family):
    text = export.export(family.merged, "cyclonedx")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    content = json.loads(text)
    card = content["metadata"]["component"]["modelCard"]
    metrics = card["quantitativeAnalysis"]["performanceMetrics"]
    for row in stated(family, family.merged).evaluation:
        expected = {"type": "accuracy", "value": f"{row['accuracy']:.6g}", "slice": row["task"]}
        assert expected in metrics


@pytest.mark.parametrize("form", export.FORMATS)
def test_merges_of_merges_fifty_deep(family, form):
    """The ancestry is the registry's answer; here it is made up, since fifty merges take long."""
    known = subjects.gather(family.merged)
    base = known.ancestry.parents[0]
    node = known.ancestry.parents[1]
    for number in range(50):
        parents = (base, dataclasses.replace(node, uri=f"models:/step/{number}"))
        node = dataclasses.replace(node, kind="merge", parents=parents)
    ancestry = dataclasses.replace(known.ancestry, parents=(base, node))
    text = export.FORMATS[form](dataclasses.replace(known, ancestry=ancestry))
    if form in ("prov", "model-card"):
        assert "models:/step/0" in text or "models:step/0" in text
    if form == "cyclonedx":
        assert text.count('"name": "step"') == 50


def test_openlineage(family):
    lines = export.export(family.merged, "openlineage").splitlines()
    start, complete = (json.loads(line) for line in lines)
    for found in (start, complete):
        # The library validates when its objects are made: ids, times and URLs.
        made = event_v2.RunEvent(
            eventType=event_v2.RunState(found["eventType"]),
            eventTime=found["eventTime"],
            producer=found["producer"],
            run=event_v2.Run(found["run"]["runId"]),
            job=event_v2.Job(found["job"]["namespace"], found["job"]["name"]),
            inputs=[event_v2.InputDataset(e["namespace"], e["name"]) for e in found["inputs"]],
            outputs=[event_v2.OutputDataset(e["namespace"], e["name"]) for e in found["outputs"]],
        )
        assert made.schemaURL == found["schemaURL"]
        assert uuid.UUID(made.run.runId).hex == family.run_id
        named = [(e["name"], e["facets"]["version"]["datasetVersion"]) for e in found["inputs"]]
        assert named == [("tiny", "1"), ("tiny-colours", "1"), ("tiny-tints", "1")]
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["outputs"] == []
    (output,) = complete["outputs"]
    assert (output["name"], output["facets"]["datasetType"]["datasetType"]) == ("merged", "MODEL")


def test_prov(family):
    text = export.export(family.top, "prov")
    document = prov_model.ProvDocument.deserialize(content=text, format="json")
    derived = {
        (str(r.args[0]), str(r.args[1])) for r in document.get_records(prov_model.ProvDerivation)
    }

    def name(uri):
        return uri.replace("models:/", "models:")

    assert {(name(family.top), name(uri)) for uri in (family.base, family.merged)} <= derived
    assert (name(family.merged), name(family.sources[1])) in derived
    (activity,) = document.get_records(prov_model.ProvActivity)
    used = {str(r.args[1]) for r in document.get_records(prov_model.ProvUsage)}
    assert used == {name(uri) for uri in (family.base, family.merged, family.sources[2])}
    assert str(activity.identifier) == f"runs:{stated(family, family.top).run_id}"


def test_the_model_card(family):
    card = huggingface_hub.ModelCard(export.export(family.merged, "model-card"))
    assert card.data.base_model == ["tiny", "tiny-colours", "tiny-tints"]
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert card.data.to_dict()["breadcrumbs"]["sources"] == list(family.sources[:2])
    measured = {
        (r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results or []
    }
    known = stated(family, family.merged)
    for row in known.evaluation:
        assert measured[row["task"], "accuracy"] == row["accuracy"]
        line = f"| {row['task']} | {row['zero_shot_accuracy']:.4f} | "
        assert line + f"{row['finetuned_accuracy']:.4f} | {row['accuracy']:.4f} |" in card.text
    for entry in known.inputs:
        assert f"| {entry.role} | `{entry.uri}` | `{entry.weights_digest}` |" in card.text
    assert "It keeps least on" in card.text
    assert "not recorded" in card.text
    top = export.export(family.top, "model-card")
    assert f"| `{family.merged}` | `{family.sources[0]}` | source | import |" in top
    assert "Not evaluated when it was merged." in top


@pytest.mark.parametrize("form", auditing.FORMATS)
def test_odd_names_deleted_sources_and_licences(family, form):
    client = mlflow.MlflowClient()
    client.rename_registered_model("merged", "größe | 100% ✓")
    uri = "models:/größe | 100% ✓/1"
    client.delete_model_version("tiny-colours", "1")
    text = export.export(uri, form)
    assert family.sources[0].removeprefix("models:/").partition("/")[0] in text


def test_what_cannot_be_exported_is_explained(family):
    with pytest.raises(ValueError, match=r"there is no format 'pdf'; choose one of slsa, "):
        export.export(family.merged, "pdf")
    with pytest.raises(
        errors.RegistryError, match=r"models:/tiny/1 has no lineage.json at .*merge"
    ):
        export.export(family.base, "prov")
    path = family.file(family.merged, "lineage.json")
    path.write_bytes(path.read_bytes().replace(b'"tints"', b'"cars"'))
    with pytest.raises(errors.IntegrityError, match="was changed after it was registered"):
        export.export(family.merged, "model-card")


def test_a_missing_extra_says_what_to_install(family, monkeypatch):
    for library in ("cyclonedx", "openlineage", "prov"):
        for name in [n for n in sys.modules if n.split(".")[0] == library]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)
        words = rf"format {library} requires the 'audit' extra .*mlflow-breadcrumbs\[audit\]"
        with pytest.raises(errors.ExtraError, match=words):
            export.export(family.merged, library)
    export.export(family.merged, "model-card")


def test_the_command(family, tmp_path):
    output = tmp_path / "bom.json"
    result = run("export", family.merged, "--format", "cyclonedx", "--output", output)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{output}: {family.merged} as cyclonedx\n"
    assert output.read_text() == export.export(family.merged, "cyclonedx")
    assert run("export", family.merged, "--format", "prov").stdout.startswith("{")
    made = json.loads(run("export", family.merged, "--format", "slsa", "--json").stdout)
    assert json.loads(made["content"])["_type"] == "https://in-toto.io/Statement/v1"
    assert run("export", family.merged).exit_code == 2
    assert run("export", family.base, "--format", "prov").exit_code == 1
    nowhere = tmp_path / "no" / "folder"
    result = run("export", family.merged, "--format", "prov", "--output", nowhere)
    assert result.exit_code == 1
    assert "No such file or directory" in result.stderr


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """A folder with a key pair of ours, and one of somebody else."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        zoos.new_key(folder / name)
    return folder


def signature(uri, key):
    """The exit code of `verify --key`, and the check of the signature."""
    result = run("verify", uri, "--key", key, "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    return result.exit_code, checks["signature"]["status"], checks["signature"]["detail"]


def test_a_signed_version_verifies_and_a_changed_one_does_not(family, keys):
    public = keys / "ours.pub"
    assert signature(family.merged, public)[:2] == (3, "missing")
    told = run("verify", family.merged, "--key", public, "--quiet").stdout
    assert next(line for line in told.splitlines() if "missing" in line).startswith("│ signature ")
    assert " ok " not in told.rpartition("└")[0]
    assert told.endswith(f"{family.merged} is not signed; all else is as recorded\n")
    result = run("export", family.merged, "--sign", keys / "ours")
    assert (result.exit_code, result.output) == (0, f"{family.merged} signed\n"), result.output
    assert signature(family.merged, public)[:2] == (0, "ok")
    (told,) = run("verify", family.merged, "--key", public, "--quiet").stdout.splitlines()
    assert told.startswith(f"{family.merged} (merge): ")
    code, status, detail = signature(family.merged, keys / "theirs.pub")
    assert (code, status) == (3, "changed")
    assert "Key mismatch" in detail

    for name in ("open_clip_model.safetensors", "lineage.json", "tasks/tints.json"):
        path = family.file(family.merged, name)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        code, status, detail = signature(family.merged, public)
        assert (code, status) == (3, "changed"), name
        path.write_bytes(content)
    assert signature(family.merged, public)[:2] == (0, "ok")
    path.unlink()
    assert signature(family.merged, public)[1] != "ok"
    path.write_bytes(content)
    bundle = family.file(family.merged, "model.sig")
    bundle.write_bytes(bundle.read_bytes()[:-100])
    assert signature(family.merged, public)[:2] == (3, "changed")


def test_the_librarys_own_command_verifies_it(family, keys):
    assert run("export", family.top, "--sign", keys / "ours").exit_code == 0
    folder = family.file(family.top).parent
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(folder / "model.sig"), "--public_key", str(keys / "ours.pub")]
    done = subprocess.run(
        [*command, "--ignore_unsigned_files"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_encrypted_key_takes_its_password_from_the_environment(family, tmp_path, monkeypatch):
    key = zoos.new_key(tmp_path / "locked", "open sesame")
    for password in (None, "open barley"):
        if password is not None:
            monkeypatch.setenv("BREADCRUMBS_KEY_PASSWORD", password)
        result = run("export", family.merged, "--sign", key)
        assert result.exit_code == 1
        assert f"cannot sign with the key {key}" in result.stderr
        assert "the password of an encrypted one goes into BREADCRUMBS_KEY_PASSWORD" in (
            result.stderr
        )
    monkeypatch.setenv("BREADCRUMBS_KEY_PASSWORD", "open sesame")
    assert run("export", family.merged, "--sign", key).exit_code == 0
    assert signature(family.merged, tmp_path / "locked.pub")[:2] == (0, "ok")


def test_only_what_verifies_is_signed(family, keys):
    mlflow.MlflowClient().set_model_version_tag("merged", "1", "breadcrumbs.base", "models:/x/1")
    result = run("export", family.merged, "--sign", keys / "ours")
    assert result.exit_code == 3
    assert "is not what was registered, so it was not signed" in result.stderr
    assert "tag breadcrumbs.base: changed" in result.stderr
    assert not family.file(family.merged, "model.sig").exists()


def test_a_whole_registry_needs_signatures_on_its_merges(family, keys):
    assert run("export", family.merged, "--sign", keys / "ours").exit_code == 0
    result = run("verify", "--all", "--key", keys / "ours.pub", "--json")
    made = {v["uri"]: v["ok"] for v in json.loads(result.stdout)["versions"]}
    assert [uri for uri, ok in made.items() if not ok] == [family.top]


def test_keys_that_are_none(family, keys, tmp_path):
    text = tmp_path / "key.pem"
    text.write_text("no key")
    for key in (text, tmp_path / "none.pem", keys / "ours.pub"):
        result = run("export", family.merged, "--sign", key)
        assert result.exit_code == 1
        assert f"cannot sign with the key {key}" in result.stderr
    for key in (text, tmp_path / "none.pem", keys / "ours"):
        result = run("verify", versions.resolve(family.merged).uri, "--key", key)
        assert result.exit_code == 1
        assert f"cannot verify with the key {key}" in result.stderr


NASTY = "<img src=x onerror=alert(1)>[click](https://evil.example)\x1b[2J`|\n\n# owned"


def test_the_model_card_shows_names_and_licences_as_they_are(family):
    """Task names, data-set names and licences are others' text: no Markdown, HTML or escapes."""
    path = family.file(family.merged, "lineage.json")
    whole = json.loads(path.read_text())
    predicate = whole["predicate"]
    for entry in predicate["buildDefinition"]["resolvedDependencies"][:3]:
        entry["annotations"]["licence"] = NASTY
        if "tasks" in entry["annotations"]:
            entry["annotations"]["tasks"] = [NASTY]
    for entry in predicate["runDetails"]["byproducts"][1:]:
        entry["name"] = f"evaluation/{NASTY}"
        entry["annotations"] |= {"task": NASTY, "dataset": NASTY}
    content = canonical.dumps(whole)
    path.write_bytes(content)
    client = mlflow.MlflowClient()
    digest = canonical.sha256(content)
    client.set_model_version_tag("merged", "1", "breadcrumbs.lineage_digest", digest)
    card = export.export(family.merged, "model-card")
    text = card.partition("\n---\n")[2]
    assert "onerror=alert" in text
    assert "\x1b" not in card
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert "<img" not in html
    assert 'evil.example"' not in html
    assert html.count("<h1>") == 1
    assert NASTY.replace("\x1b", "\\x1b").replace("\n", "\\n") in unescape(html)
