"""The live version is measured anew: what holds, what has drifted, what is rolled back."""

import dataclasses
import datetime
import json
from pathlib import Path

import mlflow
import pytest
import tiny
import yaml
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors, ledger
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.figures import studies
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.promotion import drift, facts, policies, promote, recheck
from mlflow_breadcrumbs.registry import aliases, versions

NOW = datetime.datetime.now(datetime.UTC)
KEPT = "average_normalized_accuracy: 0\nno_regression: {margin: 1}"
BROKEN = "tasks: {colours: {accuracy_low: 1.0}}"
"""Of a handful of images, no accuracy has an interval that reaches 1."""


def promoted(uri, text=KEPT):
    decision = promote.promote(
        promote.PromotionRequest(uri, "champion", policies.parse(text), device="cpu")
    )
    assert decision.result == "promoted", decision.verdict.to_markdown()
    return decision


def again(family, tasks, text=None, **changes):
    rules = policies.parse(text) if text else None
    return recheck.recheck(
        recheck.RecheckRequest("merged", "champion", str(tasks), rules, device="cpu", **changes)
    )


def run(*arguments):
    return CliRunner().invoke(cli.main, ["recheck", *map(str, arguments)])


@pytest.fixture
def fresh(family, tmp_path):
    """The same tasks on other images."""
    listed = yaml.safe_load(Path(family.tasks).read_text())
    images = tiny.image_tree(tmp_path / "fresh", 7)
    for task in listed["tasks"]:
        task["images"] = {"folder": str(images)}
    file = tmp_path / "fresh.yaml"
    file.write_text(yaml.safe_dump(listed))
    return file


def test_a_version_that_holds_on_fresh_images(family, fresh):
    pinned = versions.resolve(family.merged)
    evidence = mlflow.get_run(pinned.run_id).data.metrics
    promoted(family.merged)
    found = again(family, fresh)
    assert found.held
    assert found.sentence == "models:/merged/1 keeps every rule that it became champion by"
    made = mlflow.get_run(found.run_id)
    assert made.info.status == "FINISHED"
    assert made.data.tags["breadcrumbs.decision"] == "held"
    assert {entry.task for entry in found.drifts} == set(pinned.tasks)
    for entry in found.drifts:
        now, change = (made.data.metrics[f"{key}/{entry.task}"] for key in ("accuracy", "drift"))
        assert change == pytest.approx(now - evidence[f"accuracy/{entry.task}"])
        low, high = entry.interval()
        assert low <= entry.change <= high
        assert entry.now.dataset_digest != entry.before.dataset_digest
        assert entry.before.origin == "lineage.json"
    names = {entry.path for entry in mlflow.MlflowClient().list_artifacts(found.run_id)}
    assert names >= {"policy.yaml", "verdict.json", "verdict.md", "drift.csv", "drift.png"}
    said = ledger.history("merged")[-1]
    assert (said.kind, said.phase, said.run_id) == ("recheck", "done", found.run_id)
    assert said.details["verdict"] == "held"
    assert ledger.verify().holds


def test_a_rule_that_no_longer_holds_is_acted_on(family, fresh, tmp_path):
    settings = recipe.MergeRecipe.from_method("breadcrumbs", sources=2, alpha=0.5)
    other = flow.merge(
        flow.MergeRequest(
            family.base, family.sources[:2], "merged", settings, tasks=family.tasks, device="cpu"
        )
    ).version
    promoted(family.merged)
    promoted(other.uri)
    (tmp_path / "policy.yaml").write_text(BROKEN)
    arguments = ["merged@champion", "--tasks", fresh, "--policy", tmp_path / "policy.yaml"]
    result = run(*arguments)
    assert result.exit_code == 3, result.output
    assert f"{other.uri} is champion, and 1 of 2 rules do not hold (accuracy_low/colours)" in (
        result.output
    )
    assert aliases.version_at("merged", "champion") == other.version
    result = run(*arguments, "--rollback", "--json")
    assert result.exit_code == 3
    answer = json.loads(result.stdout)
    assert (answer["held"], answer["rollback"]["after"]) == (False, "1")
    assert "is back at version 1" in answer["sentence"]
    assert aliases.version_at("merged", "champion") == "1"
    assert ledger.verify().holds


def test_what_is_not_measured_anew_is_unknown_and_rolls_nothing_back(family, fresh):
    promoted(family.merged)
    listed = yaml.safe_load(fresh.read_text())
    listed["tasks"] = [task for task in listed["tasks"] if task["name"] == "colours"]
    fresh.write_text(yaml.safe_dump(listed))
    found = again(family, fresh, roll_back=True)
    assert not found.held
    assert [rule.verdict for rule in found.verdict.objections] == ["unknown"]
    assert found.rollback is None
    assert aliases.version_at("merged", "champion") == "1"


def test_a_policy_that_looks_at_no_accuracy_is_rechecked_and_the_drift_is_shown(family, fresh):
    promoted(family.merged, "verified: true")
    result = run("merged@champion", "--tasks", fresh)
    assert result.exit_code == 0, result.output
    assert "models:/merged/1 keeps every rule that it became champion by" in result.stdout
    assert "verified" in result.stdout
    answer = json.loads(run("merged@champion", "--tasks", fresh, "--json").stdout)
    assert [rule["name"] for rule in answer["rules"]] == ["weights", "verified"]
    pinned = versions.resolve(family.merged)
    assert {row["task"] for row in answer["drift"]} == set(pinned.tasks)
    made = mlflow.get_run(answer["run_id"])
    assert {f"accuracy/{task}" for task in pinned.tasks} <= set(made.data.metrics)
    names = {entry.path for entry in mlflow.MlflowClient().list_artifacts(answer["run_id"])}
    assert names >= {"drift.csv", "drift.png"}


def test_without_a_measurement_there_is_no_picture():
    assert studies.over_time([], {}) is None


def test_the_rules_of_the_moment_are_left_out():
    rules = policies.parse(
        "approvals: 1\nno_regression: {margin: 0}\n"
        "freeze: [{starts: 2001-01-01, ends: 2001-01-02}]\n"
        f"evidence: {{min_images: 5, data: {{cars: {{digest: 'sha256:{'0' * 64}'}}}}}}"
    )
    kept = recheck.lasting(rules)
    assert (kept.approvals, kept.evidence.min_images) == (1, 5)
    assert (kept.freeze, kept.no_regression, kept.evidence.data) == ((), None, {})


def test_bad_input_is_one_message(family, fresh):
    result = run("merged@champion", "--tasks", fresh)
    assert result.exit_code == 1
    assert "no version of 'merged' has the alias 'champion', so there is nothing to recheck" in (
        result.stderr
    )
    mlflow.MlflowClient().set_registered_model_alias("merged", "champion", "1")
    result = run("merged@champion", "--tasks", fresh)
    assert result.exit_code == 1
    assert "nothing says by which policy models:/merged/1 became 'champion'" in result.stderr
    assert "give --policy FILE" in result.stderr
    result = run("merged", "--tasks", fresh)
    assert result.exit_code == 2
    assert "'merged' is no version by its alias; give NAME@ALIAS" in result.stderr
    listed = yaml.safe_load(fresh.read_text())
    listed["tasks"] = [{**listed["tasks"][0], "name": "others"}]
    fresh.write_text(yaml.safe_dump(listed))
    with pytest.raises(errors.TaskError, match="has none of the tasks that are judged"):
        again(family, fresh, KEPT)


def measurement(task, correct, days, digest="a"):
    moment = NOW - datetime.timedelta(days=days)
    return facts.Measurement(task, "test", digest, correct, 100, moment, "run x")


def test_drift_is_held_against_the_evidence_of_the_promotion():
    first, second, after = (measurement("cars", n, d) for n, d in ((90, 30), (88, 20), (70, 5)))
    now = measurement("cars", 60, 0)
    since = NOW - datetime.timedelta(days=10)
    (found,) = drift.drifts([after, now, first, second], [now], since)
    assert (found.before, found.change) == (second, pytest.approx(-0.28))
    low, high = found.interval()
    assert low < -0.28 < high < 0
    (found,) = drift.drifts([after, now], [now], since)  # nothing is that old
    assert found.before == after
    (found,) = drift.drifts([first, second, now], [now], None)
    assert found.before == first
    assert list(drift.drifts([now], [now], since)) == []


@pytest.mark.parametrize("tasks", [1, 2, 5, 20])
def test_the_picture_has_a_panel_per_task(tasks):
    names = [f"a task whose name goes on and on {number}" for number in range(tasks)]
    rows = drift.points(
        [measurement(name, 90 - day, 9 - day) for name in names for day in range(9)]
    )
    assert [row["accuracy"] for row in rows if row["task"] == names[0]][:2] == [0.9, 0.89]
    floors = dict.fromkeys(names) | {names[0]: 0.85}
    png = studies.over_time(rows, floors)
    assert studies.over_time(rows, floors, [rows[3]["time"]]) != png
    assert studies.over_time(rows, dict.fromkeys(names)) != png
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("floor", "limit"),
    [
        ("accuracy: 0.7", 0.7),
        ("accuracy: 0.7, accuracy_low: 0.75", 0.75),
        ("accuracy: 0.7, normalized_accuracy: 0.9", 0.72),
        ("normalized_accuracy: 0", 0),
    ],
)
def test_the_limit_in_the_picture_is_the_highest_that_a_rule_has(floor, limit):
    rules = policies.parse(f"tasks: {{a: {{{floor}}}}}")
    measured = dataclasses.replace(measurement("a", 80, 0), finetuned_accuracy=0.8)
    assert recheck._limit(rules, measured) == pytest.approx(limit)
    assert recheck._limit(rules, measurement("b", 80, 0)) is None
