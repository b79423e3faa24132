"""The list of merged versions."""

import json
import shutil

import mlflow
import pytest
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.audit import export, inventory
from mlflow_breadcrumbs.registry import catalog, run_files, versions


def run(*arguments, code=0):
    done = CliRunner().invoke(cli.main, ["list", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def test_every_merged_version_is_listed_with_what_is_known(family, tmp_path):
    client = mlflow.MlflowClient()
    for alias in ("candidate", "best"):
        client.set_registered_model_alias("merged", alias, "1")
    key = zoos.new_key(tmp_path / "key")
    export.seal(family.merged, str(key))
    top, merged = inventory.merged().versions
    assert (top.uri, merged.uri) == (family.top, family.merged)
    assert merged.sources == family.sources[:2]
    assert top.sources == (family.merged, family.sources[2])
    assert (merged.aliases, top.aliases) == (("best", "candidate"), ())
    assert (merged.signed, top.signed) == (True, False)
    measured = client.get_run(family.run_id).data.metrics["average_normalized_accuracy"]
    assert merged.average_normalized_accuracy == measured
    assert top.average_normalized_accuracy is None
    assert merged.created <= top.created
    assert merged.created.endswith("Z")
    told = json.loads(run("merged", "--json").stdout)
    assert told == {"versions": [merged.to_dict() | {"sources": [*merged.sources],
                                                     "aliases": [*merged.aliases]}],
                    "more": False}  # fmt: skip
    shown = run("merged").stdout
    assert "1 merged version of merged" in shown
    assert "merged/1" in shown


def test_what_is_gone_leaves_the_rest_of_the_list(family):
    mlflow.delete_run(family.run_id)
    shutil.rmtree(versions.resolve(family.top).location.removeprefix("file://"))
    top, merged = inventory.merged().versions
    assert merged.average_normalized_accuracy is None
    assert merged.signed is False
    assert top.signed in (None, False)
    assert run("tiny").stdout == "0 merged versions of tiny\n"
    assert run("nobody").stdout == "0 merged versions of nobody\n"
    assert "can't name a registered model" in run("no/body", code=1).stderr


@pytest.mark.parametrize("page", [1, 7, 1000])
def test_no_more_is_read_than_is_listed(family, monkeypatch, page):
    client = mlflow.MlflowClient()
    for number in range(12):
        client.copy_model_version(family.merged, f"copy-{number:02}")
    monkeypatch.setattr(catalog, "PAGE", page)
    monkeypatch.setattr(run_files, "TOGETHER", 2)
    asked = []
    search = mlflow.MlflowClient.search_model_versions
    monkeypatch.setattr(
        mlflow.MlflowClient,
        "search_model_versions",
        lambda *given, **named: asked.append(given) or search(*given, **named),
    )
    found = inventory.merged(most=5)
    assert [each.uri for each in found.versions] == [
        f"models:/copy-{number:02}/1" for number in range(11, 6, -1)
    ]
    assert found.more
    assert len(asked) == -(-6 // page)
    assert len(inventory.merged(most=14).versions) == 14
    assert not inventory.merged(most=14).more
    said = run("--most", 5).stdout
    assert "the newest 5 merged versions; --most lists more" in said
