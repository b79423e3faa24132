"""Audits, signatures and versions that were taken up are in the history, too."""

import json

import mlflow
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, ledger
from mlflow_breadcrumbs.audit import export
from mlflow_breadcrumbs.ledger import anchors, stores
from mlflow_breadcrumbs.support import canonical


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def last(name="merged"):
    event = ledger.history(name)[-1]
    return event.kind, event.phase, event.subject, event.details


def kept(uri):
    name, version = uri.removeprefix("models:/").split("/")
    return mlflow.MlflowClient().get_model_version(name, version).tags[anchors.TAG_HEAD]


def test_a_verification_is_in_the_history_and_leaves_the_version_alone(family):
    before = kept(family.merged)
    assert run("verify", family.merged).exit_code == 0
    kind, phase, subject, details = last()
    assert (kind, phase, subject) == ("verify", "done", family.merged)
    assert (details["ok"], details["failed"]) == (True, {})
    assert details["counts"]["ok"] > 10
    # An auditor's own ledger must not put its head in the place of the one that is kept there.
    assert kept(family.merged) == before
    assert ledger.verify().holds


def test_a_verification_that_fails_says_what(family):
    mlflow.MlflowClient().set_model_version_tag("merged", "1", "breadcrumbs.base", "models:/x/1")
    assert run("verify", "--all").exit_code == 3
    _, _, subject, details = last()
    assert (subject, details["ok"]) == (family.merged, False)
    assert details["failed"] == {"tag breadcrumbs.base": "changed"}
    assert last("top")[0] == "verify"


def test_an_export_is_in_the_history_with_its_digest(family):
    text = run("export", family.merged, "--format", "slsa").stdout
    kind, _, subject, details = last()
    assert (kind, subject) == ("export", family.merged)
    assert details == {"format": "slsa", "content_digest": canonical.sha256(text.encode())}


def test_a_ledger_that_cannot_be_written_stops_no_audit(family, monkeypatch, caplog):
    monkeypatch.setenv(stores.VARIABLE, "postgresql://ann@127.0.0.1:9/x")
    result = run("verify", family.merged, "--json")
    assert json.loads(result.stdout)["ok"] is True
    assert "this is not in the history: the ledger " in caplog.text


def test_a_signature_is_in_the_history(family, tmp_path):
    export.seal(family.merged, str(zoos.new_key(tmp_path / "key.pem")))
    kind, phase, subject, details = last()
    assert (kind, phase, subject) == ("sign", "done", family.merged)
    intent = ledger.history("merged")[-2]
    assert intent.details["file"] == "model.sig"
    assert intent.details["signature_digest"] == canonical.sha256(
        family.file(family.merged, "model.sig").read_bytes()
    )
    assert details == {}
