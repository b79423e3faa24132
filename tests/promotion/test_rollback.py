"""Back to the version before: by the history, by tags without one, past what is unfit."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, ledger
from mlflow_breadcrumbs.promotion import policies, promote, rollback
from mlflow_breadcrumbs.registry import aliases, tag_keys, versions

RULES = policies.parse("freeze: [{starts: 2001-01-01, ends: 2001-01-02}]")


@pytest.fixture
def three(family):
    """`merged` with three versions of the same weights, in files of their own, promoted in turn."""
    client = mlflow.MlflowClient()
    first = client.get_model_version("merged", "1")
    folder = Path(versions.resolve(family.merged).location.removeprefix("file://"))
    for number in (2, 3):
        copy = family.folder / f"copy-{number}"
        shutil.copytree(folder, copy)
        client.create_model_version("merged", copy.as_uri(), first.run_id, tags=first.tags)
    for number in (1, 2, 3):
        request = promote.PromotionRequest(f"models:/merged/{number}", "champion", RULES)
        assert promote.promote(request).result == "promoted"
    return family


def at(alias="champion"):
    return aliases.version_at("merged", alias)


def run(*arguments, alias="champion"):
    return CliRunner().invoke(cli.main, ["rollback", "merged", "--alias", alias, *arguments])


def delete(number):
    mlflow.MlflowClient().delete_model_version("merged", str(number))


def damage(number):
    place = versions.resolve(f"models:/merged/{number}").location.removeprefix("file://")
    path = Path(place) / "open_clip_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_back_and_back_again_and_then_there_is_nothing(three):
    assert run().output == "merged@champion is back at version 2, from version 3\n"
    assert at() == "2"
    assert run().output == "merged@champion is back at version 1, from version 2\n"
    result = run()
    assert result.exit_code == 3
    assert result.output == (
        "merged@champion stays at version 1: it is the first that was champion, so there is "
        "nothing earlier to go back to\n"
    )
    kinds = [(event.kind, event.phase) for event in ledger.history("merged")][-8:]
    one = [("rollback", "intent"), ("alias", "intent"), ("alias", "done"), ("rollback", "done")]
    assert kinds == one * 2
    last = ledger.history("merged")[-1]
    assert last.details == {
        "alias": "champion",
        "before": "2",
        "after": "1",
        "skipped": [],
        "verdict": "rolled_back",
    }
    assert ledger.alias_changes("merged", "champion")[-1].cause == "rollback"
    assert ledger.verify().holds


def test_what_is_promoted_again_can_be_gone_back_to_again(three):
    run()
    request = promote.PromotionRequest("models:/merged/3", "champion", RULES)
    assert promote.promote(request).result == "promoted"
    assert run("--json").exit_code == 0
    assert at() == "2"


def test_back_to_a_version_that_was_put_there_past_the_gates(three):
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("merged", "live", "3")
    ledger.move("merged", "live", "2", because="promote", expected="3")
    assert run(alias="live").exit_code == 0
    assert at("live") == "3"  # the ledger knows of it from the promotion alone
    client.set_registered_model_alias("merged", "live", "1")
    ledger.look(["merged"])
    assert run(alias="live").exit_code == 0
    assert at("live") == "3"


def test_to_a_version_that_had_the_alias(three):
    result = run("--to", "1", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["after"] == "1"
    again = run("--to", "1")
    assert (again.exit_code, at()) == (1, "1")
    assert "merged@champion is at version 1 already" in again.output


def test_never_to_a_version_that_never_had_it(three):
    client = mlflow.MlflowClient()
    first = client.get_model_version("merged", "1")
    client.create_model_version("merged", first.source, first.run_id, tags=first.tags)
    result = run("--to", "4")
    assert (result.exit_code, at()) == (1, "3")
    assert "version 4 of 'merged' never was champion" in result.output
    assert "(earlier ones: 2, 1); use `mlflow-breadcrumbs promote`" in result.output


def test_a_deleted_version_is_passed_over_and_said_so(three):
    delete(2)
    result = run()
    assert (result.exit_code, at()) == (0, "1")
    assert "models:/merged/2 is skipped: cannot resolve models:/merged/2" in result.output


def test_a_version_whose_weights_were_changed_is_passed_over(three):
    damage(2)
    result = run()
    assert (result.exit_code, at()) == (0, "1")
    assert "models:/merged/2 is skipped: its weights are sha256:" in result.output


def test_a_tag_that_was_changed_with_the_weights_contradicts_the_ledger(three):
    damage(2)
    from mlflow_breadcrumbs.lineage import contents

    found = contents.digest_of(versions.resolve("models:/merged/2"))
    mlflow.MlflowClient().set_model_version_tag("merged", "2", tag_keys.WEIGHTS_DIGEST, found)
    assert run().exit_code == 0
    assert at() == "1"


def test_where_no_version_is_fit_nothing_is_moved(three):
    delete(1)
    damage(2)
    result = run()
    assert (result.exit_code, at()) == (3, "3")
    assert "merged@champion stays at version 3: no earlier version is fit" in result.output
    assert run("--to", "2").exit_code == 3


def test_a_champion_that_was_deleted_is_replaced(three):
    delete(3)
    assert at() is None
    assert run().output == (
        "models:/merged/3 is skipped: cannot resolve models:/merged/3: Model Version "
        "(name=merged, version=3) not found; 'merged' has the versions 1, 2\n"
        "merged@champion is back at version 2, from no version\n"
    )


def test_after_a_click_in_mlflow(three):
    mlflow.MlflowClient().set_registered_model_alias("merged", "champion", "1")
    # The history says 1, 2, 3; what the click did is not in it, and before 1 there was nothing.
    assert run("--to", "3").exit_code == 0
    assert at() == "3"


def test_without_runs_evaluations_and_lineage(three):
    for found in mlflow.search_runs(search_all_experiments=True, output_format="list"):
        mlflow.delete_run(found.info.run_id)
    for number in (1, 2, 3):
        place = versions.resolve(f"models:/merged/{number}").location.removeprefix("file://")
        (Path(place) / "lineage.json").unlink()
    assert run().exit_code == 0
    assert at() == "2"


def test_without_the_ledger_by_the_tags_of_the_versions(three, tmp_path, monkeypatch):
    monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", f"sqlite:///{tmp_path}/new.db")
    assert run().exit_code == 0
    assert at() == "2"
    assert "breadcrumbs.promoted/champion" not in versions.resolve("models:/merged/3").tags


def test_without_the_ledger_and_without_tags(family):
    mlflow.MlflowClient().set_registered_model_alias("merged", "champion", "1")
    done = rollback.rollback("merged", "champion")
    assert not done.moved
    assert "no version is tagged as promoted. Check --ledger-uri" in done.sentence


def test_a_race_is_lost_here_too(three, monkeypatch):
    def click(*arguments, fault=rollback._fault):
        mlflow.MlflowClient().set_registered_model_alias("merged", "champion", "1")
        return fault(*arguments)

    monkeypatch.setattr(rollback, "_fault", click)
    result = run()
    assert (result.exit_code, at()) == (3, "1")
    assert "not rolled back: merged@champion is at version 1, and was expected at version 3" in (
        result.output
    )
