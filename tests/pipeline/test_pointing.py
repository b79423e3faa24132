"""A merge that exists already takes no alias back, unless it is told to."""

import json

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, ledger
from mlflow_breadcrumbs.pipeline import pointing
from mlflow_breadcrumbs.registry import aliases, versions


@pytest.fixture
def made(family):
    """The version of `merged`, and a second one that is newer."""
    old = versions.resolve(family.merged).registered
    client = mlflow.MlflowClient()
    first = client.get_model_version("merged", old.version)
    new = client.create_model_version("merged", first.source, first.run_id, tags=first.tags)
    return old, versions.resolve(f"models:/merged/{new.version}").registered


def at():
    return aliases.version_at("merged", "candidate")


def test_an_alias_does_not_go_back(made):
    old, new = made
    ledger.set_alias("merged", "candidate", new.version)
    found = pointing.point(old, "candidate", force=False)
    assert (found.moved, at()) == (False, new.version)
    assert f"merged@candidate stays at {new.uri}, and does not go to {old.uri}" in found.note
    assert "back to an older version. With --force-alias it goes there" in found.note
    found = pointing.point(old, "candidate", force=True)
    assert (found.moved, at()) == (True, old.version)
    assert f"went from version {new.version} to version {old.version}" in found.note


def test_an_alias_goes_on_to_a_newer_version_or_to_its_first(made):
    old, new = made
    assert pointing.point(old, "candidate", force=False) == pointing.Pointed(True, None)
    assert pointing.point(old, "candidate", force=False) == pointing.Pointed(True, None)
    found = pointing.point(new, "candidate", force=False)
    assert (found.moved, at()) == (True, new.version)
    assert f"from version {old.version} to version {new.version}" in found.note


@pytest.mark.parametrize("cause", ["promote", "rollback", "recheck"])
def test_what_was_decided_stays(made, cause):
    old, new = made
    ledger.set_alias("merged", "candidate", old.version, because=cause)
    found = pointing.point(new, "candidate", force=False)
    assert (found.moved, at()) == (False, old.version)
    assert f"it was put there by {ledger.history('merged')[-1].actor} ({cause})" in found.note


def test_a_merge_of_every_night_leaves_what_a_sweep_found(family):
    arguments = ["merge", "--base", family.base, "--sources", ",".join(family.sources[:2])]
    arguments += ["--registered-model", "nightly", "--alias", "candidate", "--json"]

    def merge(*more):
        result = CliRunner().invoke(cli.main, [*arguments, *more])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    first = merge("--alpha", "0.3")
    assert "notes" not in first or not any("candidate" in note for note in first["notes"])
    assert merge("--alpha", "0.6")["version"] == "2"
    again = merge("--alpha", "0.3")
    assert (again["reused"], again["version"]) == (True, "1")
    assert any("nightly@candidate stays at models:/nightly/2" in note for note in again["notes"])
    assert aliases.version_at("nightly", "candidate") == "2"
    shown = CliRunner().invoke(cli.main, [*arguments[:-1], "--alpha", "0.3"])
    assert "models:/nightly/1 exists already, nothing was merged\n" in shown.stdout
    merge("--alpha", "0.3", "--force-alias")
    assert aliases.version_at("nightly", "candidate") == "1"
