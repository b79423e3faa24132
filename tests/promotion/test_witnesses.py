"""Who approved, who made, and what was measured: only as a whole ledger vouches for it."""

import getpass
import json
import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

import mlflow
import pytest
import zoos
from click.testing import CliRunner
from registered import register

from mlflow_breadcrumbs import cli, errors, ledger
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import evaluating
from mlflow_breadcrumbs.ledger import events, settling, stores
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.promotion import approvals, gathering, policies, promote, rollback
from mlflow_breadcrumbs.registry import aliases, versions
from mlflow_breadcrumbs.support import people

STRICT = "tasks: {colours: {accuracy: 0}}\nevidence: {in_ledger: true}"
LOOSE = "tasks: {colours: {accuracy: 0}}"


def decide(uri, text, **changes):
    rules = policies.parse(text)
    return promote.promote(
        promote.PromotionRequest(uri, "champion", rules, device="cpu", **changes)
    )


def rule(decision, name):
    (one,) = [rule for rule in decision.verdict.rules if rule.name == name]
    return one


def run(*arguments):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def approve(person, monkeypatch, *more):
    monkeypatch.setenv("LOGNAME", person)
    return run("approve", "merged", "--version", "1", *more)


def rows(family, statement, *values):
    """Change the ledger past the package; how many rows."""
    with sqlite3.connect(family.folder / zoos.LEDGER) as connection:
        return connection.execute(statement, values).rowcount


def begin_and_die(name, run_id):
    """In a process of its own: as mallory, register, and be killed before the outcome."""
    os.environ["LOGNAME"] = "mallory"
    with ledger.recording("merge", name, run_id=run_id):
        register(name, run_id)
        os.kill(os.getpid(), signal.SIGKILL)


def test_who_settles_a_killed_merge_has_not_made_it(zoo, monkeypatch):
    with mlflow.start_run() as made:
        child = multiprocessing.get_context("fork").Process(
            target=begin_and_die, args=("m", made.info.run_id)
        )
        child.start()
        child.join()
    monkeypatch.setenv("LOGNAME", "ann")
    assert settling.settle() == 1
    *_, settled = ledger.history("m")
    assert (settled.details["settled"], settled.actor.split("@")[0]) == (True, "ann")
    history = ledger.proven("m", ["sha256:1"])
    resolved = versions.resolve("models:/m/1")
    assert approvals.makers(resolved, "sha256:1", history) == ("mallory",)
    check, *_ = ledger.check_version("models:/m/1", "sha256:1")
    assert "merge by mallory@" in check.message


def test_who_takes_a_stopped_merge_up_has_not_made_it(store, monkeypatch):
    """The intent was settled as abandoned before there was a version."""
    with mlflow.start_run() as made:
        draft = {"kind": "merge", "name": "m", "run_id": made.info.run_id}
        register("m", made.info.run_id)
    with stores.opened() as opened, opened.writing() as connection:
        intent = events.append(
            connection, events.Draft(actor="mallory@far", phase="intent", **draft)
        )
        gone = events.Draft(actor="ann@here", phase="abandoned", intent=intent.sequence, **draft)
        events.append(connection, gone)
        details = {"weights_digest": "sha256:1", "taken_up": True}
        taken = events.Draft(
            actor="ann@here", phase="done", subject="models:/m/1", details=details, **draft
        )
        events.append(connection, taken)
    history = ledger.proven("other", ["sha256:1"])
    resolved = versions.resolve("models:/m/1")
    assert approvals.makers(resolved, "sha256:1", history) == ("mallory",)


def test_an_alias_is_moved_by_who_began_to(store):
    register("m", mlflow.MlflowClient().create_run("0").info.run_id)
    draft = {"kind": "alias", "name": "m", "subject": "models:/m/1"}
    details = {"alias": "champion", "before": None, "after": "1", "because": "promote"}
    with stores.opened() as opened, opened.writing() as connection:
        intent = events.append(
            connection, events.Draft(actor="mallory@far", phase="intent", details=details, **draft)
        )
        settled = details | {"settled": True}
        events.append(
            connection,
            events.Draft(
                actor="ann@here", phase="done", intent=intent.sequence, details=settled, **draft
            ),
        )
    (move,) = ledger.alias_changes("m", "champion")
    assert move.actor == "mallory@far"


@pytest.mark.parametrize("form", ["{0}", "{1}", "{0} ", "{0}@x", "DOM\\{0}", "{1}@example.org"])
def test_a_maker_by_another_spelling_is_the_maker(family, monkeypatch, form):
    user = getpass.getuser()
    done = approve(form.format(user, user.upper()), monkeypatch)
    assert done.exit_code == 1, done.output
    maker = people.normal(user)
    assert f"{maker} made the weights of models:/merged/1, and can't approve them" in done.output


def test_five_spellings_are_one_approval(family, monkeypatch):
    for spelling in ("eve", "Eve", "eve ", "eve@x", "ｅｖｅ", "DOM\\eve"):
        assert approve(spelling, monkeypatch).exit_code == 0
    decision = decide(family.merged, "approvals: 2")
    assert (rule(decision, "approvals").value, decision.result) == (1, "refused")
    assert rule(decision, "approvals").sentence == "approved by eve"
    assert approve("EVE@other", monkeypatch, "--withdraw").exit_code == 0
    assert rule(decide(family.merged, "approvals: 1"), "approvals").value == 0


@pytest.mark.parametrize("name", ["eve\x1b[2Kann", "eve\u200b"])
def test_a_name_with_control_characters_is_refused(family, monkeypatch, name):
    before = ledger.head()
    done = approve(name, monkeypatch)
    assert done.exit_code == 1
    assert "can't be written into the history: it has the control character U+" in done.output
    assert "; set LOGNAME to a name without it" in done.output
    assert "\x1b" not in done.output
    assert ledger.head() == before


def forge(family, uri):
    """A run with the right tags, metrics and a made-up `evaluation.json`; its id."""
    found = evaluating.evaluate_version(uri, family.tasks, only=["colours"], device="cpu")
    client = mlflow.MlflowClient()
    digest = versions.resolve(uri).recorded_digest
    kept = mlflow.artifacts.load_text(
        f"{mlflow.get_run(found.run_id).info.artifact_uri}/evaluation.json"
    )
    content = json.loads(kept)
    (row,) = content["tasks"]
    row["correct"], row["total"] = 999, 1000
    mlflow.delete_run(found.run_id)
    tags = {"breadcrumbs.kind": "evaluate", "breadcrumbs.weights_digest": digest}
    with mlflow.start_run(tags=tags) as made:
        mlflow.log_metric("accuracy/colours", 0.999)
        client.log_dict(made.info.run_id, content, "evaluation.json")
    return made.info.run_id


def test_a_made_up_evaluation_is_no_evidence(family):
    run_id = forge(family, family.top)
    assert decide(family.top, LOOSE).result == "promoted"  # as ever, where a policy lets it
    decision = decide(family.top, STRICT)
    assert decision.result == "refused"
    assert rule(decision, "accuracy/colours").sentence == (
        "these weights were not measured on colours; the ledger has no event of run "
        f"{run_id}, so that its evaluation.json may be anybody's; run `promote` with --tasks"
    )
    assert decide(family.top, STRICT, tasks=family.tasks).result == "promoted"


def test_a_file_that_was_written_anew_is_no_evidence_in_any_policy(family):
    found = evaluating.evaluate_version(family.top, family.tasks, only=["colours"], device="cpu")
    assert decide(family.top, STRICT).result == "promoted"
    place = mlflow.get_run(found.run_id).info.artifact_uri
    content = json.loads(mlflow.artifacts.load_text(f"{place}/evaluation.json"))
    content["tasks"][0]["dataset_digest"] = f"sha256:{'0' * 64}"  # what no metric tells
    mlflow.MlflowClient().log_dict(found.run_id, content, "evaluation.json")
    said = rule(decide(family.top, LOOSE), "accuracy/colours").sentence
    assert f"the evaluation.json of run {found.run_id} is sha256:" in said
    assert ", and was sha256:" in said


def test_an_event_of_an_earlier_release_says_what_to_do(family, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(evaluating.accuracy_records, "FILE_DIGEST", "of no release")
        evaluating.evaluate_version(family.top, family.tasks, only=["colours"], device="cpu")
    said = rule(decide(family.top, STRICT), "accuracy/colours").sentence
    assert "has no digest of its evaluation.json; evaluate again" in said
    assert decide(family.top, LOOSE).result == "promoted"


def test_what_a_merge_measured_counts_by_its_event(family, tmp_path):
    assert decide(family.merged, STRICT).result == "promoted"
    with ledger.using(f"sqlite:///{tmp_path}/another.db"):
        decision = decide(family.merged, STRICT, dry_run=True)
    assert (
        "the ledger has no event of the merge of models:/merged/1, so that its lineage.json may "
        "be anybody's"
    ) in rule(decision, "accuracy/colours").sentence


def test_denominators_need_events_too(family):
    """A source that is said to be worse than it is makes a merge look better."""
    forged = forge(family, family.sources[2])
    text = "average_normalized_accuracy: 0\nevidence: {in_ledger: true}"
    evaluating.evaluate_version(family.top, family.tasks, only=["hues"], device="cpu")
    known = gathering.gather(versions.resolve(family.top), policies.parse(text), None)
    assert [each.finetuned_accuracy for each in known.measurements] == [None]
    assert f"the ledger has no event of run {forged}" in " ".join(known.set_aside)


def test_a_champions_measurements_need_events_too(family):
    """A champion that is said to be worse than it is lets a worse version through."""
    request = flow.MergeRequest(
        base=family.base,
        sources=family.sources[:2],
        registered_model="merged",
        recipe=recipe.MergeRecipe.from_method("breadcrumbs", sources=2, alpha=0.5),
        device="cpu",
    )
    other = flow.merge(request).version.uri
    forged = forge(family, other)
    window = "freeze: [{starts: 2001-01-01, ends: 2001-01-02}]"
    assert decide(other, window).result == "promoted"
    text = "no_regression: {margin: 1.0}\nevidence: {in_ledger: true}"
    said = rule(decide(family.merged, text), "no_regression/colours").sentence
    assert said == (
        "the champion models:/merged/2 was not measured on the same images; the ledger has no "
        f"event of run {forged}, so that its evaluation.json may be anybody's; run `promote` with "
        "--tasks"
    )


def test_the_policies_of_the_package_demand_it_and_old_ones_keep_their_digest():
    for path in Path(__file__).parents[2].glob("workflows/policies/*.yaml"):
        assert policies.load(path).evidence.in_ledger, path
    old = policies.parse("average_accuracy: 0.5\nevidence: {min_images: 200}")
    assert old.digest == "sha256:26df4429c37397b9e696227e6fb692e03f94b4e6131a718d8302b9f0a01b0530"
    assert policies.parse(old.to_yaml()).digest == old.digest
    new = policies.parse("average_accuracy: 0.5\nevidence: {min_images: 200, in_ledger: true}")
    assert new.digest != old.digest
    assert policies.parse(new.to_yaml()).digest == new.digest


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1.7976931348623157e308])
def test_a_metric_that_was_typed_has_not_passed_and_one_that_is_not_finite_breaks_nothing(
    family, value
):
    """MLflow's store keeps infinity as the largest number that there is."""
    digest = versions.resolve(family.merged).recorded_digest
    with mlflow.start_run(tags={"breadcrumbs.weights_digest": digest}):
        mlflow.log_metric("f1", value)
        mlflow.log_metric("latency_ms", -value)
    decision = decide(
        family.merged,
        "metrics: {f1: {threshold: 0.9, greater_is_better: true}, "
        "latency_ms: {threshold: 30, greater_is_better: false}}",
    )
    assert decision.result == "refused"
    for name in ("metric f1", "metric latency_ms"):
        assert rule(decision, name).verdict == "unknown"
        assert "anybody may have typed into it" in rule(decision, name).sentence


def damage(family):
    """Change an approval's giver in the ledger's own database."""
    changed = rows(
        family,
        "UPDATE breadcrumbs_events SET body = replace(body, 'eve@', 'bob@') "
        "WHERE body LIKE '%\"approval\"%'",
    )
    assert changed == 1


def test_a_chain_that_does_not_hold_lets_nothing_through(family, monkeypatch, tmp_path):
    assert approve("eve", monkeypatch).exit_code == 0
    assert decide(family.merged, "approvals: 1").result == "promoted"
    damage(family)
    assert not ledger.verify().holds
    monkeypatch.setenv("LOGNAME", "zoe")
    policy = tmp_path / "policy.yaml"
    policy.write_text("approvals: 1")
    commands = (
        ("promote", "merged", "--version", 1, "--alias", "live", "--policy", policy),
        ("approve", "merged", "--version", 1),
        ("approve", "merged", "--version", 1, "--withdraw"),
        ("rollback", "merged", "--alias", "champion"),
    )
    for command in commands:
        done = run(*command)
        assert done.exit_code == 1, done.output
        assert "does not hold, so that nothing in it counts: event " in done.output
        assert "was changed: its hash is sha256:" in done.output
        assert "restore the ledger from a backup" in done.output
    assert aliases.version_at("merged", "live") is None


def test_a_tail_that_was_cut_off_brings_no_withdrawn_approval_back(family, monkeypatch):
    assert approve("eve", monkeypatch).exit_code == 0
    assert approve("eve", monkeypatch, "--withdraw").exit_code == 0
    last = ledger.head().sequence
    assert rows(family, "DELETE FROM breadcrumbs_events WHERE sequence = ?", last) == 1
    words = rf"event {last} is missing: the tail was cut off\. models:/merged/1 has the head"
    with pytest.raises(errors.LedgerError, match=words):
        decide(family.merged, "approvals: 1")
    with pytest.raises(errors.LedgerError, match=words):
        rollback.rollback("merged", "champion")
