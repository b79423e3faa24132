"""A version is promoted on its evidence, refused with every rule, and both are on record."""

import datetime
import json
import math
import sys
from pathlib import Path

import mlflow
import pairs
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli, errors, ledger
from mlflow_breadcrumbs.evaluation import evaluating, evaluator_files
from mlflow_breadcrumbs.promotion import approvals, gathering, policies, promote
from mlflow_breadcrumbs.registry import aliases, tag_keys, versions

NOW = datetime.datetime.now(datetime.UTC)
LET_THROUGH = "average_normalized_accuracy: 0"
NEVER = "tasks: {colours: {accuracy_low: 1.0}}"
"""Of a handful of images, no accuracy has an interval that reaches 1."""


def decide(uri, text, alias="champion", now=None, **changes):
    request = promote.PromotionRequest(uri, alias, policies.parse(text), device="cpu", **changes)
    return promote.promote(request, now=now)


def rule(decision, name):
    (one,) = [rule for rule in decision.verdict.rules if rule.name == name]
    return one


def at(alias="champion"):
    return aliases.version_at("merged", alias)


def events(kind):
    return [event for event in ledger.history("merged") if event.kind == kind]


def test_a_first_promotion_and_all_that_it_leaves(family):
    text = f"{LET_THROUGH}\nno_regression: {{margin: 0}}\nverified: true"
    decision = decide(family.merged, text)
    assert (decision.result, decision.before) == ("promoted", None), decision.verdict.to_markdown()
    assert decision.sentence == "models:/merged/1 is champion now"
    assert at() == "1"

    run = mlflow.get_run(decision.run_id)
    experiment = mlflow.get_experiment(run.info.experiment_id)
    assert experiment.name == "breadcrumbs-promotions"
    assert run.info.status == "FINISHED"
    assert run.data.tags["breadcrumbs.decision"] == "promoted"
    assert run.data.tags["breadcrumbs.kind"] == "promotion"
    assert run.data.params["policy_digest"] == decision.policy_digest
    assert run.data.params["weights_digest"] == versions.resolve(family.merged).recorded_digest
    assert run.data.metrics["rules_passed"] == len(decision.verdict.rules)
    assert "average_normalized_accuracy" in run.data.metrics
    kept = Path(mlflow.artifacts.download_artifacts(run_id=decision.run_id))
    assert policies.load(kept / "policy.yaml").digest == decision.policy_digest
    verdict = json.loads((kept / "verdict.json").read_text())
    assert verdict["passed"] is True
    assert {entry["origin"] for entry in verdict["facts"]["measurements"]} == {"lineage.json"}
    assert (kept / "verdict.md").read_text().startswith("| rule | value |")

    told = [(event.kind, event.phase) for event in ledger.history("merged")][-4:]
    assert told == [
        ("promotion", "intent"),
        ("alias", "intent"),
        ("alias", "done"),
        ("promotion", "done"),
    ]
    said = events("promotion")[-1]
    assert said.run_id == decision.run_id
    assert said.subject == family.merged
    assert said.details == {
        "alias": "champion",
        "version": "1",
        "verdict": "promoted",
        "policy_digest": decision.policy_digest,
        "weights_digest": decision.weights_digest,
        "decision": decision.run_id,
    }
    moved = events("alias")[-1].details
    assert (
        moved.items()
        >= {
            "alias": "champion",
            "before": None,
            "after": "1",
            "because": "promote",
            "decision": decision.run_id,
            "policy_digest": decision.policy_digest,
        }.items()
    )
    assert ledger.verify().holds


def test_a_refusal_is_on_record_too_and_moves_nothing(family, tmp_path):
    (tmp_path / "policy.yaml").write_text(NEVER)
    arguments = ["promote", "merged", "--version", "1", "--alias", "champion"]
    arguments += ["--policy", str(tmp_path / "policy.yaml")]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 3, result.output
    assert "accuracy_low/colours" in result.output
    assert "models:/merged/1 does not become champion: 1 of 2 rules have not passed" in (
        result.output
    )
    assert at() is None
    (said,) = [event for event in events("promotion") if event.phase == "done"]
    assert said.details["verdict"] == "refused"
    run = mlflow.get_run(said.run_id)
    assert (run.info.status, run.data.tags["breadcrumbs.decision"]) == ("FINISHED", "refused")
    assert run.data.metrics["rules_failed"] == 1

    result = CliRunner().invoke(cli.main, [*arguments, "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["result"]) == (3, "refused")
    assert [entry["verdict"] for entry in found["rules"]] == ["passed", "failed"]


@pytest.mark.parametrize(("text", "result"), [(LET_THROUGH, "promoted"), (NEVER, "refused")])
def test_a_dry_run_writes_nothing(family, text, result):
    head = ledger.head()
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    decision = decide(family.merged, text, dry_run=True, tasks=family.tasks)
    assert (decision.result, decision.run_id, at()) == (result, None, None)
    assert ledger.head() == head
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == len(runs)
    assert decide(family.merged, LET_THROUGH, dry_run=True, expected="7").result == "lost"


def test_missing_evidence_is_named_or_made(family):
    """`top` was merged without tasks: nothing was measured."""
    text = "average_normalized_accuracy: 0\nno_regression: {margin: 1.0}"
    decision = decide(family.top, text)
    assert decision.result == "refused"
    found = rule(decision, "average_normalized_accuracy")
    assert found.verdict == "unknown"
    assert found.sentence.endswith("run `promote` with --tasks")
    decision = decide(family.top, text, tasks=family.tasks)
    assert decision.result == "promoted", decision.verdict.to_markdown()
    # The denominators are those of the merge and of the source that it was made from.
    evaluated = [event.kind for event in ledger.history("merged")].count("evaluate")
    assert evaluated == 2  # intent and outcome
    assert decide(family.top, text, tasks=family.tasks).result == "promoted"  # is there already
    assert [event.kind for event in ledger.history("merged")].count("evaluate") == evaluated


def test_a_champion_is_measured_on_the_same_images(family):
    text = "no_regression: {margin: 1.0}"
    assert decide(pairs.merge(family, 0.5, tasks=False), text).result == "promoted"
    decision = decide(family.merged, text)
    assert "the champion models:/merged/2 was not measured on the same images" in (
        rule(decision, "no_regression/colours").sentence
    )
    decision = decide(family.merged, text, tasks=family.tasks)
    assert decision.result == "promoted", decision.verdict.to_markdown()
    assert rule(decision, "no_regression/colours").verdict == "passed"
    assert (decision.before, at()) == ("2", "1")
    assert decision.sentence == "models:/merged/1 is champion now, in place of version 2"


@pytest.fixture
def measured(family, monkeypatch):
    """A version whose only evidence is a run of `evaluate`; its URI and the run's id."""
    monkeypatch.chdir(family.folder)
    uri = pairs.merge(family, 0.5, tasks=False)
    found = evaluating.evaluate_version(uri, family.tasks, only=["colours", "tints"], device="cpu")
    return uri, found.run_id


def refusal(uri, text="tasks: {colours: {accuracy: 0}}"):
    """What the rule about the accuracy says, which must be unknown."""
    decision = decide(uri, text)
    assert decision.result == "refused"
    found = rule(decision, "accuracy/colours")
    assert found.verdict == "unknown"
    return found.sentence


def test_an_evaluation_is_evidence(measured):
    uri, _ = measured
    assert decide(uri, "tasks: {colours: {accuracy: 0}}").result == "promoted"


def test_evidence_on_other_weights_does_not_count(measured):
    uri, run_id = measured
    client = mlflow.MlflowClient()
    client.set_tag(run_id, "breadcrumbs.weights_digest", f"sha256:{'0' * 64}")
    assert refusal(uri).startswith("these weights were not measured on colours")
    kept = json.loads(
        Path(
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="evaluation.json")
        ).read_text()
    )
    client.log_dict(run_id, kept | {"weights_digest": "sha256:other"}, "evaluation.json")
    client.set_tag(run_id, "breadcrumbs.weights_digest", kept["weights_digest"])
    decision = decide(uri, "tasks: {colours: {accuracy: 0}}")
    assert decision.result == "refused"
    facts = gathering.gather(versions.resolve(uri), policies.parse(LET_THROUGH), None)
    assert facts.set_aside == (f"run {run_id} measured other weights, sha256:other",)


def test_a_metric_that_is_nan_or_another_sets_the_evidence_aside(measured):
    uri, run_id = measured
    mlflow.MlflowClient().log_metric(run_id, "accuracy/colours", float("nan"))
    said = refusal(uri)
    assert f"run {run_id} says that accuracy/colours is" in said
    assert f"but run {run_id}'s metric says nan" in said


def test_a_metric_that_is_missing_sets_the_evidence_aside(measured, family):
    uri, run_id = measured
    family_of_values = ("metrics", "latest_metrics")
    import sqlite3

    with sqlite3.connect(family.tracking_uri.removeprefix("sqlite:///")) as connection:
        for table in family_of_values:
            connection.execute(
                f"DELETE FROM {table} WHERE run_uuid = ? AND key = 'accuracy/colours'", (run_id,)
            )
    assert f"but run {run_id}'s metric says nothing" in refusal(uri)


def test_a_run_that_was_rewritten_contradicts_the_ledger(measured):
    uri, run_id = measured
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="evaluation.json")
    kept = json.loads(Path(path).read_text())
    (row,) = [row for row in kept["tasks"] if row["task"] == "colours"]
    row["correct"] = row["total"] + 1 - row["correct"] if row["correct"] else row["total"]
    client = mlflow.MlflowClient()
    client.log_dict(run_id, kept, "evaluation.json")
    client.log_metric(run_id, "accuracy/colours", row["correct"] / row["total"])
    (event,) = [event for event in events("evaluate") if event.phase == "done"]
    said = refusal(uri)
    assert f"the evaluation.json of run {run_id} is sha256:" in said
    assert f"when event {event.sequence} was written" in said


def test_an_evaluation_that_cannot_be_read_is_set_aside(measured):
    uri, run_id = measured
    client = mlflow.MlflowClient()
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="evaluation.json")
    kept = json.loads(Path(path).read_text())
    for row in kept["tasks"]:
        row["correct"] = row["total"] + 1
    client.log_dict(run_id, kept, "evaluation.json")
    assert "7 of 6 images of colours is no count" in refusal(uri)
    client.log_text(run_id, "{", "evaluation.json")
    assert "its evaluation.json can't be read" in refusal(uri)
    mlflow.delete_run(run_id)
    assert refusal(uri).startswith("these weights were not measured")


def test_a_lineage_that_was_changed_is_no_evidence(family):
    path = family.file(family.merged, "lineage.json")
    path.write_bytes(path.read_bytes().replace(b'"accuracy":', b'"accuracy": '))
    assert f"the lineage.json of {family.merged} was changed after it was registered" in str(
        gathering.gather(
            versions.resolve(family.merged), policies.parse(LET_THROUGH), None
        ).set_aside
    )
    assert decide(family.merged, LET_THROUGH).result == "refused"


def test_evidence_that_is_too_old_is_renewed_with_tasks(family):
    text = "evidence: {max_age: 30 days}"
    later = NOW + datetime.timedelta(days=31)
    decision = decide(family.merged, text, now=later)
    assert decision.result == "refused"
    found = rule(decision, "evidence/colours")
    assert (found.verdict, found.value) == ("failed", "31.0 days")
    assert "older than 30 days; run `promote` with --tasks" in found.sentence
    # Renewed at the time of the machine's clock, which is still 31 days before.
    soon = NOW + datetime.timedelta(days=29)
    assert decide(family.merged, text, now=soon).result == "promoted"
    decide(family.merged, text, now=later, tasks=family.tasks)
    assert [event.kind for event in ledger.history("merged")].count("evaluate") == 2


def test_weights_that_were_changed_are_refused_whatever_the_policy(family):
    path = family.file(family.merged)
    state = load_file(path)
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name] = state[name] + torch.ones_like(state[name])
    save_file(state, path)
    decision = decide(family.merged, "freeze: [{starts: 2001-01-01, ends: 2001-01-02}]")
    assert decision.result == "refused"
    assert (
        rule(decision, "weights").sentence == "the weights were changed after they were registered"
    )
    decision = decide(family.merged, "verified: true")
    assert "weights: " in rule(decision, "verified").sentence


def test_weights_that_were_changed_are_not_measured_either(family):
    path = family.file(family.top)
    state = load_file(path)
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name] = state[name] + torch.ones_like(state[name])
    save_file(state, path)
    decision = decide(family.top, LET_THROUGH, tasks=family.tasks)
    assert (decision.result, rule(decision, "weights").verdict) == ("refused", "failed")


def test_a_task_cannot_be_edited_away(family):
    mlflow.MlflowClient().set_model_version_tag("merged", "1", tag_keys.TASK, "tints")
    decision = decide(family.merged, 'tasks: {"*": {accuracy: 0}}')
    assert rule(decision, "accuracy/colours").verdict == "passed"


def test_an_interruption_after_the_alias_was_moved_is_settled_as_promoted(family, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promote.predecessors, "mark", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decide(family.merged, LET_THROUGH)
    assert at() == "1"
    assert [event.phase for event in events("promotion")] == ["intent"]
    decision = decide(family.merged, LET_THROUGH)  # its run has ended, so it is settled
    assert decision.sentence == "models:/merged/1 is champion already"
    said = [event.details for event in events("promotion") if event.phase == "done"]
    assert [entry["verdict"] for entry in said] == ["promoted", "promoted"]
    assert (said[0]["settled"], said[0]["version"]) == (True, "1")
    assert "breadcrumbs.promoted/champion" in versions.resolve(family.merged).tags


@pytest.fixture
def person(monkeypatch):
    def become(name):
        monkeypatch.setenv("LOGNAME", name)

    return become


def approve(*more):
    arguments = ["approve", "merged", "--version", "1", *more]
    return CliRunner().invoke(cli.main, arguments)


def test_approvals_are_counted_withdrawn_and_bound_to_the_weights(family, person):
    text = "approvals: 2"
    assert rule(decide(family.merged, text), "approvals").value == 0
    refused = approve()
    assert refused.exit_code == 1
    assert "made the weights of models:/merged/1, and can't approve them" in refused.output
    person("ann")
    given = approve("--comment", "looked at it", "--json")
    assert given.exit_code == 0, given.output
    (standing,) = json.loads(given.stdout)["standing"]
    assert (standing["person"], standing["comment"]) == ("ann", "looked at it")
    head = ledger.head()
    assert approve().exit_code == 0
    assert ledger.head() == head  # once is enough
    assert rule(decide(family.merged, text), "approvals").sentence == "approved by ann"
    person("ben")
    nothing = approve("--withdraw")
    assert nothing.exit_code == 1
    assert "ben has not approved the weights of models:/merged/1" in nothing.output
    assert "approved by ann, ben now" in approve().output
    person("ann")
    assert "approved by ben now" in approve("--withdraw", "--comment", "saw more").output
    assert decide(family.merged, text).result == "refused"
    assert approve().exit_code == 0
    assert decide(family.merged, text).result == "promoted"
    other = pairs.merge(family, 0.5)
    assert rule(decide(other, text), "approvals").value == 0
    said = [event for event in ledger.history("merged") if event.kind.startswith("approval")]
    assert [(event.kind, event.phase) for event in said] == [
        ("approval", "done"),
        ("approval", "done"),
        ("approval_withdrawn", "done"),
        ("approval", "done"),
    ]
    assert said[2].details["comment"] == "saw more"
    assert ledger.verify().holds


def test_makers_are_found_by_the_run_where_the_ledger_knows_nothing(family, tmp_path):
    resolved = versions.resolve(family.merged)
    digest = resolved.recorded_digest
    by_ledger = approvals.makers(resolved, digest, ledger.proven("merged", [digest]))
    with ledger.using(f"sqlite:///{tmp_path}/empty.db"):
        assert ledger.proven("merged", [digest]) == []
        assert approvals.makers(resolved, digest, []) == by_ledger
    mlflow.delete_run(resolved.run_id)


def test_only_registered_versions_are_approved_and_promoted(family):
    uri = f"models:/{versions.resolve(family.merged).model_id}"
    with pytest.raises(errors.PromotionError, match="only a version can have an alias"):
        decide(uri, LET_THROUGH)
    with pytest.raises(errors.PromotionError, match="is not registered; approve a version"):
        approvals.approve(uri)


def test_a_metric_counts_where_it_was_measured_and_not_where_it_was_typed(family, tmp_path):
    text = "metrics: {latency_ms: {threshold: 30, greater_is_better: false}}"
    found = rule(decide(family.merged, text), "metric latency_ms")
    assert found.verdict == "unknown"
    assert found.sentence.startswith("these weights were not measured by latency_ms; run")
    digest = versions.resolve(family.merged).recorded_digest
    with mlflow.start_run(tags={"breadcrumbs.weights_digest": digest}) as run:
        mlflow.log_metric("latency_ms", 12.5)
    found = rule(decide(family.merged, text), "metric latency_ms")
    assert (found.verdict, found.value) == ("unknown", None)
    assert f"the run {run.info.run_id} has 12.5, which anybody may have typed" in found.sentence
    words = (sys.executable, "-c", "import sys; print(len(sys.argv[1:]) + 12.5)", "{model}")
    (tmp_path / "latency.yaml").write_text(
        yaml.safe_dump(
            {
                "tasks": [
                    {
                        "name": "latency",
                        "command": list(words),
                        "metric": "latency_ms",
                        "greater_is_better": False,
                        "range": [0, math.inf],
                    }
                ]
            }
        )
    )
    own = evaluator_files.read(str(tmp_path / "latency.yaml"))
    decision = decide(family.merged, f"{text}\nevidence: {{in_ledger: true}}", evaluator=own)
    found = rule(decision, "metric latency_ms")
    assert (found.verdict, found.value) == ("passed", 13.5)
    assert decision.result == "promoted"
    assert rule(decide(family.merged, text), "metric latency_ms").verdict == "passed"


def test_licences_of_base_and_sources_as_they_are_now(family):
    text = "licences: [MIT, Apache-2.0]"
    decision = decide(family.merged, text)
    assert [r.verdict for r in decision.verdict.rules] == ["passed", *["unknown"] * 3]
    client = mlflow.MlflowClient()
    client.set_registered_model_tag("tiny", "license", "MIT")
    client.set_registered_model_tag("tiny-colours", "licence", "apache-2.0")
    client.set_model_version_tag("tiny-tints", "1", "license", "CC-BY-NC-4.0")
    decision = decide(family.merged, text)
    assert rule(decision, f"licence of source {family.sources[1]}").verdict == "failed"
    client.set_model_version_tag("tiny-tints", "1", "license", "MIT")
    assert decide(family.merged, text).result == "promoted"
    # `top` is made from `merged`, which has no licence of its own, and from another source.
    decision = decide(family.top, text)
    named = [r.name for r in decision.verdict.rules]
    assert f"licence of source {family.sources[1]}" in named
    assert rule(decision, f"licence of source {family.sources[2]}").verdict == "unknown"
    client.delete_model_version("tiny-tints", "1")  # nothing but the lineage is left of it
    assert decide(family.merged, text).result == "refused"


def test_a_race_that_is_lost_names_the_winner(family, tmp_path):
    (tmp_path / "policy.yaml").write_text(LET_THROUGH)
    other = pairs.merge(family, 0.5)
    assert decide(other, LET_THROUGH).result == "promoted"
    winner = events("alias")[-1]
    arguments = ["promote", "merged", "--version", "1", "--alias", "champion"]
    arguments += ["--policy", str(tmp_path / "policy.yaml"), "--expect-current", "none"]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 3, result.output
    assert (
        "models:/merged/1 passed, but came too late: merged@champion is at version 2, and was "
        f"expected at no version: {winner.actor} moved it at {winner.time} "
        f"(event {winner.sequence})"
    ) in result.output
    assert at() == "2"
    assert events("promotion")[-1].details["verdict"] == "lost"
    assert ledger.verify().holds


def test_an_alias_that_moves_while_it_is_decided_is_a_lost_race(family, monkeypatch):
    """A click in MLflow, after the champion was looked at."""
    other = pairs.merge(family, 0.5)

    def click(*arguments, log=promote._log):
        mlflow.MlflowClient().set_registered_model_alias("merged", "champion", other[-1])
        log(*arguments)

    monkeypatch.setattr(promote, "_log", click)
    decision = decide(family.merged, LET_THROUGH)
    assert decision.result == "lost"
    assert "so it was changed in MLflow itself" in decision.sentence
    assert at() == "2"


def test_a_version_given_by_an_alias_is_pinned(family, monkeypatch):
    """Case 27: the alias moves after it was resolved."""
    other = pairs.merge(family, 0.5)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("merged", "candidate", "1")

    def moved(*arguments, gather=gathering.gather):
        client.set_registered_model_alias("merged", "candidate", other[-1])
        return gather(*arguments)

    monkeypatch.setattr(gathering, "gather", moved)
    decision = decide("models:/merged@candidate", LET_THROUGH)
    assert (decision.result, decision.version, at()) == ("promoted", "1", "1")


def test_the_champion_may_be_promoted_again_without_being_moved(family):
    decide(family.merged, LET_THROUGH)
    moved = len(events("alias"))
    decision = decide(family.merged, LET_THROUGH)
    assert (decision.result, decision.sentence) == (
        "promoted",
        "models:/merged/1 is champion already",
    )
    assert len(events("alias")) == moved
    assert decide(family.merged, NEVER).result == "refused"


def test_an_experiment_that_was_deleted_is_named(family):
    experiment = mlflow.create_experiment("gone")
    mlflow.delete_experiment(experiment)
    with pytest.raises(errors.RegistryError, match="the experiment 'gone' was deleted; restore it"):
        decide(family.merged, LET_THROUGH, experiment="gone")
    assert at() is None


def test_task_files_that_do_not_have_the_tasks_are_named(family, tmp_path):
    content = yaml.safe_load(Path(family.tasks).read_text())
    content["tasks"] = [task for task in content["tasks"] if task["name"] == "hues"]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    later = NOW + datetime.timedelta(days=31)
    with pytest.raises(errors.TaskError, match=r"has none of the tasks that are judged \(colours"):
        decide(
            family.merged,
            "evidence: {max_age: 1 day}",
            now=later,
            tasks=str(tmp_path / "other.yaml"),
        )
    assert at() is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["merged"], 2, "Give a version as NAME/VERSION or NAME@ALIAS, or NAME and --version."),
        (["merged", "--uri", "models:/merged/1"], 2, "Give a version as NAME/VERSION"),
        (["merged/1", "--version", "1"], 1, "'models:/merged/1/1' names no version; write NAME"),
        (["merged", "--version", "9"], 1, "cannot resolve models:/merged/9"),
        (["nobody", "--version", "1"], 1, "cannot resolve models:/nobody/1"),
        (["merged", "--version", "1", "--expect-current", "two"], 2, "give a version's number"),
        (["merged", "--version", "1", "--alias", "latest"], 1, "'latest' can't be an alias"),
        (["merged", "--version", "1", "--policy", "none.yaml"], 1, "none.yaml can't be read"),
    ],
)
def test_bad_input_is_one_message(family, tmp_path, arguments, code, words):
    (tmp_path / "policy.yaml").write_text(LET_THROUGH)
    defaults = ["--alias", "champion", "--policy", str(tmp_path / "policy.yaml")]
    result = CliRunner().invoke(cli.main, ["promote", *defaults, *arguments])
    assert result.exit_code == code, result.output
    assert words in result.output
    assert at() is None


def test_an_evaluation_of_fewer_tasks_has_the_sources_of_the_lineage(family):
    """What the merge measured of its sources divides what is measured of the merge later."""
    first = decide(family.merged, LET_THROUGH, dry_run=True)
    evaluating.evaluate_version(family.merged, family.tasks, only=["colours"], device="cpu")
    again = decide(family.merged, LET_THROUGH, dry_run=True)
    assert (first.result, again.result) == ("promoted", "promoted"), again.verdict.to_markdown()
    name = "average_normalized_accuracy"
    assert rule(again, name).value == rule(first, name).value


def test_a_dry_run_says_what_would_be_measured(family, tmp_path):
    decision = decide(family.top, LET_THROUGH, dry_run=True, tasks=family.tasks)
    assert decision.result == "refused"
    planned = {each.uri: each.tasks for each in decision.would_measure}
    assert next(iter(planned)) == family.top
    assert family.merged in planned
    found = rule(decision, "average_normalized_accuracy")
    assert "with --tasks" not in found.sentence
    assert family.tasks in found.sentence
    path = tmp_path / "policy.yaml"
    path.write_text(LET_THROUGH)
    name, version = family.top.removeprefix("models:/").split("/")
    arguments = ["promote", name, "--version", version, "--alias", "champion", "--dry-run"]
    arguments += ["--policy", str(path), "--tasks", family.tasks]
    result = CliRunner().invoke(cli.main, arguments)
    for each in decision.would_measure:
        assert f"would measure {each}" in result.stdout
    shown = json.loads(CliRunner().invoke(cli.main, [*arguments, "--json"]).stdout)
    assert shown["would_measure"] == [
        {"uri": each.uri, "tasks": list(each.tasks)} for each in decision.would_measure
    ]


def evaluated():
    """The versions that were evaluated so far, one for each run of it, sorted."""
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.`breadcrumbs.kind` = 'evaluate'",
        output_format="list",
    )
    return sorted(run.data.tags["breadcrumbs.version"] for run in runs)


def test_what_is_on_record_is_not_measured_again(family):
    """Of version and source: only what lacks a measurement on the images of the file gets one."""
    text = "average_normalized_accuracy: 0"
    evaluating.evaluate_version(family.merged, family.tasks, only=["colours"], device="cpu")
    before = evaluated()
    foreseen = decide(family.top, text, tasks=family.tasks, dry_run=True)
    assert next(str(each) for each in foreseen.recorded).startswith(
        f"{family.merged} on colours: run "
    )
    decision = decide(family.top, text, tasks=family.tasks)
    assert decision.result == "promoted", decision.verdict.to_markdown()
    made = {each.uri: each.tasks for each in foreseen.would_measure}
    assert evaluated() == sorted([*before, *made])
    assert "colours" in made[family.top]
    assert "colours" not in made[family.merged]
    assert [(each.uri, each.task) for each in decision.recorded] == [(family.merged, "colours")]


def test_evidence_that_is_on_record_of_some_tasks_leaves_the_others(family):
    uri = pairs.merge(family, 0.5, tasks=False)
    evaluating.evaluate_version(uri, family.tasks, only=["colours"], device="cpu")
    text = "average_accuracy: 0"
    decision = decide(uri, text, tasks=family.tasks, dry_run=True)
    (wanted,) = decision.would_measure
    assert (wanted.uri, wanted.tasks) == (uri, ("tints",))
    assert [(each.uri, each.task) for each in decision.recorded] == [(uri, "colours")]
    fresh = decide(uri, text, tasks=family.tasks, dry_run=True, cache=False)
    assert [each.tasks for each in fresh.would_measure] == [("colours", "tints")]
    assert fresh.recorded == ()
    assert decide(uri, text, tasks=family.tasks).result == "promoted"


def test_a_champion_that_was_measured_on_these_images_is_not_measured_again(family):
    text = "no_regression: {margin: 1.0}"
    first = pairs.merge(family, 0.5, tasks=False)
    assert decide(first, text).result == "promoted"
    evaluating.evaluate_version(first, family.tasks, device="cpu")
    before = evaluated()
    second = pairs.merge(family, 0.25, tasks=False)
    decision = decide(second, text, tasks=family.tasks)
    assert decision.result == "promoted", decision.verdict.to_markdown()
    assert evaluated() == sorted([*before, second])
    assert {each.uri for each in decision.recorded} == {first}


def test_evidence_that_is_too_old_is_no_reason_not_to_measure(family):
    later = NOW + datetime.timedelta(days=31)
    text = "evidence: {max_age: 30 days}"
    decision = decide(family.merged, text, now=later, tasks=family.tasks, dry_run=True)
    assert [each.uri for each in decision.would_measure] == [family.merged]
    assert decision.recorded == ()


def test_images_that_changed_are_measured(family, tmp_path):
    """What is on record of a task counts for its images, and not for its name."""
    uri = pairs.merge(family, 0.5, tasks=False)
    evaluating.evaluate_version(uri, family.tasks, only=["colours"], device="cpu")
    text = "average_accuracy: 0"
    listed = yaml.safe_load(Path(family.tasks).read_text())
    for task in listed["tasks"]:
        task["limit"] = 4
    (tmp_path / "fewer.yaml").write_text(yaml.safe_dump(listed))
    decision = decide(uri, text, tasks=str(tmp_path / "fewer.yaml"), dry_run=True)
    assert [each.tasks for each in decision.would_measure] == [("colours", "tints")]
    assert decision.recorded == ()


def test_what_is_on_record_is_named(family, tmp_path):
    evaluating.evaluate_version(family.merged, family.tasks, only=["colours"], device="cpu")
    path = tmp_path / "policy.yaml"
    path.write_text(LET_THROUGH)
    name, version = family.top.removeprefix("models:/").split("/")
    arguments = ["promote", name, "--version", version, "--alias", "champion", "--dry-run"]
    arguments += ["--policy", str(path), "--tasks", family.tasks]
    shown = CliRunner().invoke(cli.main, arguments).stdout
    assert f"on record already: {family.merged} on colours: run " in shown
    (row,) = json.loads(CliRunner().invoke(cli.main, [*arguments, "--json"]).stdout)["recorded"]
    assert (row["uri"], row["task"]) == (family.merged, "colours")
