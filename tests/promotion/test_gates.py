"""The judgement of a policy: each rule passed, failed and unknown, by facts that a test makes."""

import dataclasses
import datetime
import math
from pathlib import Path

import pytest

from mlflow_breadcrumbs.promotion import facts, gates, policies
from mlflow_breadcrumbs.support import intervals, scales

NOW = datetime.datetime(2026, 3, 3, 14, tzinfo=datetime.UTC)  # a Tuesday
DIGEST, OTHER = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
IMAGES, ELSE = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


def measured(task="cars", correct=90, total=100, **changes):
    fields = {
        "split": "test",
        "dataset_digest": IMAGES,
        "measured": NOW - datetime.timedelta(hours=1),
        "origin": "run r",
        "finetuned_accuracy": 0.95,
    }
    return facts.Measurement(task, correct=correct, total=total, **(fields | changes))


def champion(*measurements, **changes):
    fields = {"uri": "models:/m/1", "weights_digest": OTHER, "tasks": ("cars",)}
    return facts.Champion(**(fields | changes), measurements=measurements)


def known(*measurements, **changes):
    fields = {
        "uri": "models:/m/2",
        "weights_digest": DIGEST,
        "recorded_digest": DIGEST,
        "tasks": ("cars",),
    }
    return facts.Facts(**(fields | changes), measurements=measurements)


def judge(text, found, now=NOW):
    return gates.judge(policies.parse(text), found, now)


def rule(text, found, name, now=NOW):
    """The rule of that name; there must be one."""
    (one,) = [rule for rule in judge(text, found, now).rules if rule.name == name]
    return one


@pytest.mark.parametrize(
    ("recorded", "verdict"), [(DIGEST, "passed"), (OTHER, "failed"), (None, "unknown")]
)
def test_no_policy_leaves_out_the_weights(recorded, verdict):
    found = known(
        recorded_digest=recorded, approvals=(facts.Approval("ann", "", "", 1),), makers=("bob",)
    )
    verdict_of_all = judge("approvals: 1", found)
    assert [r.verdict for r in verdict_of_all.rules] == [verdict, "passed"]
    assert verdict_of_all.passed is (verdict == "passed")


def test_averages_over_the_versions_tasks():
    both = known(measured(), measured("signs", 50), tasks=("cars", "signs"))
    found = rule("average_accuracy: 0.7", both, "average_accuracy")
    assert (found.value, found.limit, found.verdict) == (pytest.approx(0.7), 0.7, "passed")
    text = "average_normalized_accuracy: 0.9"
    found = rule(text, both, "average_normalized_accuracy")
    assert found.verdict == "failed"
    assert found.value == pytest.approx((0.9 / 0.95 + 0.5 / 0.95) / 2)
    assert found.sentence == "the mean of 2 tasks: below 0.9"


def test_an_average_needs_every_task_and_its_denominator():
    found = rule(
        "average_accuracy: 0.1", known(measured(), tasks=("cars", "signs")), "average_accuracy"
    )
    assert (found.verdict, found.value) == ("unknown", None)
    assert "not measured on signs; run `promote` with --tasks" in found.sentence
    text = "average_normalized_accuracy: 0.1"
    lacking = known(measured(finetuned_accuracy=None))
    found = rule(text, lacking, "average_normalized_accuracy")
    assert found.verdict == "unknown"
    assert "the sources were not measured on the same images of cars" in found.sentence
    found = rule("average_accuracy: 0.1", known(tasks=()), "average_accuracy")
    assert (found.verdict, found.sentence.split(";")[0]) == ("unknown", "no task was measured")


@pytest.mark.parametrize(
    ("floor", "name", "verdict"),
    [
        ("accuracy: 0.9", "accuracy", "passed"),
        ("accuracy: 0.91", "accuracy", "failed"),
        ("accuracy_low: 0.82", "accuracy_low", "passed"),
        ("accuracy_low: 0.83", "accuracy_low", "failed"),  # 90 of 100: 0.8256 to 0.9448
        ("normalized_accuracy: 0.94", "normalized_accuracy", "passed"),
        ("normalized_accuracy: 0.95", "normalized_accuracy", "failed"),
    ],
)
@pytest.mark.parametrize("task", ["cars", '"*"'])
def test_floors(floor, name, verdict, task):
    found = rule(f"tasks: {{{task}: {{{floor}}}}}", known(measured()), f"{name}/cars")
    assert found.verdict == verdict


def test_a_task_that_the_policy_names_must_have_been_measured():
    found = rule("tasks: {signs: {accuracy: 0.1}}", known(measured()), "accuracy/signs")
    assert (found.verdict, found.value) == ("unknown", None)
    assert found.sentence.startswith("these weights were not measured on signs; ")


def test_a_measurement_that_was_set_aside_is_named():
    aside = ("run r says that accuracy/cars is 1", "accuracy/signs is 1", "run q can't be read")
    found = rule("tasks: {cars: {accuracy: 0.1}}", known(set_aside=aside), "accuracy/cars")
    assert found.sentence.split("; ")[1:-1] == [aside[0], aside[2]]


def test_a_split_that_was_not_asked_for_does_not_count():
    other = known(measured(split="validation"))
    found = rule("average_accuracy: 0.1", other, "average_accuracy")
    assert found.verdict == "unknown"
    text = "{tasks: {cars: {accuracy: 0.1}}, evidence: {split: validation}}"
    assert rule(text, other, "accuracy/cars").verdict == "passed"


def test_the_newest_measurement_counts():
    old = measured(correct=99, measured=NOW - datetime.timedelta(days=9))
    new = measured(correct=10)
    for order in ((old, new), (new, old)):
        assert rule("average_accuracy: 0.5", known(*order), "average_accuracy").value == 0.1


NONE = "no_regression: {margin: 0.02}"
STRICT = "no_regression: {margin: 0.02, test: non_inferiority}"


def test_no_champion_and_the_same_weights_are_no_regression():
    assert rule(NONE, known(measured()), "no_regression").verdict == "passed"
    same = known(measured(), champion=champion(weights_digest=DIGEST))
    assert rule(NONE, same, "no_regression").sentence == "the champion has the same weights"


@pytest.mark.parametrize(
    ("text", "ours", "theirs", "verdict"),
    [
        # 0.90 against 0.95 of 10,000: the difference is -0.0573 to -0.0427
        (NONE, (9000, 10000), (9500, 10000), "failed"),
        (STRICT, (9000, 10000), (9500, 10000), "failed"),
        # 0.90 against 0.95 of 100: -0.130 to +0.026, so neither is shown
        (NONE, (90, 100), (95, 100), "passed"),
        (STRICT, (90, 100), (95, 100), "unknown"),
        # 0.949 against 0.95 of 10,000: -0.0071 to +0.0051
        (NONE, (9490, 10000), (9500, 10000), "passed"),
        (STRICT, (9490, 10000), (9500, 10000), "passed"),
    ],
)
def test_a_regression_is_judged_by_the_interval_of_the_difference(text, ours, theirs, verdict):
    found = known(measured("cars", *ours), champion=champion(measured("cars", *theirs)))
    judged = rule(text, found, "no_regression/cars")
    assert judged.verdict == verdict
    assert judged.limit == -0.02
    assert judged.value == pytest.approx(ours[0] / ours[1] - theirs[0] / theirs[1])
    low, high = intervals.newcombe(ours, theirs)
    assert f"{low:+.3f} to {high:+.3f} (95% interval)" in judged.sentence


def test_newcombes_own_example():
    """Newcombe (1998), table II, contrast (a), method 10: 56/70 − 48/80 is 0.0524 to 0.3339."""
    low, high = intervals.newcombe((56, 70), (48, 80))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)
    assert intervals.newcombe((48, 80), (56, 70)) == pytest.approx((-high, -low))


def test_a_champion_must_have_been_measured_on_the_same_images():
    other = champion(measured(dataset_digest=ELSE))
    judged = rule(NONE, known(measured(), champion=other), "no_regression/cars")
    assert judged.verdict == "unknown"
    assert "the champion models:/m/1 was not measured on the same images" in judged.sentence


def test_a_task_that_only_the_champion_can_do_is_unknown():
    judged = rule(
        NONE,
        known(measured("signs"), tasks=("signs",), champion=champion(measured())),
        ("no_regression/cars"),
    )
    assert judged.verdict == "unknown"


@pytest.mark.parametrize(
    ("age", "verdict", "value"),
    [
        (datetime.timedelta(days=29), "passed", "29.0 days"),
        (datetime.timedelta(days=31), "failed", "31.0 days"),
        (datetime.timedelta(minutes=5), "passed", "5 minutes"),
        (-datetime.timedelta(minutes=1), "passed", "0 minutes"),
        (-datetime.timedelta(hours=1), "unknown", None),
    ],
)
def test_evidence_has_an_age(age, verdict, value):
    found = rule(
        "evidence: {max_age: 30 days}", known(measured(measured=NOW - age)), "evidence/cars"
    )
    assert (found.verdict, found.value, found.limit) == (verdict, value, "30 days")
    if verdict == "unknown":
        assert "check the clocks" in found.sentence


def test_evidence_rests_on_the_images_asked_for_and_on_enough_of_them():
    text = f"evidence: {{min_images: 100, data: {{cars: {{digest: '{IMAGES}'}}}}}}"
    assert judge(text, known(measured())).passed
    assert rule(text, known(measured(total=99)), "images/cars").verdict == "failed"
    found = rule(text, known(measured(dataset_digest=ELSE)), "evidence/cars")
    assert found.verdict == "unknown"
    assert f"cars was measured on other images ({ELSE}) than {IMAGES}" in found.sentence


@pytest.mark.parametrize(("day", "verdict"), [("2026-02-01", "passed"), ("2025-02-01", "failed")])
def test_images_have_an_age_too(day, verdict):
    text = f"evidence: {{data: {{cars: {{collected: {day}, max_age: 52 weeks}}}}}}"
    assert rule(text, known(measured()), "data_age/cars").verdict == verdict


def test_a_verification():
    assert rule("verified: true", known(), "verified").verdict == "unknown"
    right = facts.Verification((), 12, 1)
    assert rule("verified: true", known(verification=right), "verified").verdict == "passed"
    wrong = facts.Verification(("weights: a, but b",), 11, 1)
    found = rule("verified: true", known(verification=wrong), "verified")
    assert (found.verdict, found.sentence) == ("failed", "weights: a, but b")


def test_licences():
    text = "licences: [Apache-2.0, MIT]"
    entries = (
        facts.Licence("models:/base/1", "base", "apache-2.0"),
        facts.Licence("models:/a/1", "source", "CC-BY-NC-4.0"),
        facts.Licence("models:/b/1", "source", None),
    )
    found = known(licences=entries)
    assert rule(text, found, "licence of base models:/base/1").verdict == "passed"
    assert rule(text, found, "licence of source models:/a/1").verdict == "failed"
    assert rule(text, found, "licence of source models:/b/1").verdict == "unknown"
    assert rule(text, known(), "licences").verdict == "unknown"


def approvals(*people):
    return tuple(facts.Approval(person, "", "", 1) for person in people)


@pytest.mark.parametrize(
    ("people", "makers", "verdict", "value"),
    [
        (("ann", "ben"), ("cy",), "passed", 2),
        (("ann", "ann"), ("cy",), "failed", 1),
        (("ann", "cy"), ("cy",), "failed", 1),
        ((), ("cy",), "failed", 0),
        (("ann", "ben"), (), "unknown", 2),
    ],
)
def test_approvals_are_of_distinct_people_who_did_not_make_it(people, makers, verdict, value):
    found = rule("approvals: 2", known(approvals=approvals(*people), makers=makers), "approvals")
    assert (found.verdict, found.value, found.limit) == (verdict, value, 2)


@pytest.mark.parametrize(
    ("people", "makers", "promoter", "verdict"),
    [
        (("ann",), ("cy",), "ben", "passed"),
        (("ann", "ben"), ("cy",), "ben", "passed"),
        (("ben",), ("cy",), "ben", "failed"),
        (("BEN@example.org",), ("cy",), "ben", "failed"),
        (("ann",), ("ben",), "ben", "failed"),
        (("ann",), ("Ben",), "DOMAIN\\ben", "failed"),
        (("cy",), ("cy",), "ben", "failed"),
        ((), ("cy",), "ben", "failed"),
        (("ann",), (), "ben", "unknown"),
        (("ann",), ("cy",), "", "unknown"),
    ],
)
def test_four_eyes_are_of_three_people(people, makers, promoter, verdict):
    found = known(approvals=approvals(*people), makers=makers, promoter=promoter)
    assert rule("four_eyes: true", found, "four_eyes").verdict == verdict
    assert "four_eyes" not in {each.name for each in judge("approvals: 1", found).rules}


def test_freezes():
    text = "freeze: [{days: [tue], reason: patch day}, {starts: 2026-12-20, ends: 2026-12-31}]"
    found = rule(text, known(), "freeze")
    assert (found.verdict, found.limit) == ("failed", "tue")
    assert found.sentence == "nothing is promoted now: patch day"
    found = rule(text, known(), "freeze", NOW + datetime.timedelta(days=1))
    assert (found.verdict, found.limit) == ("passed", "tue, 2026-12-20 to 2026-12-31")


def graded(value, *, greater=False, task="cars", metric="latency", **changes):
    """What an evaluator said, that this package recorded."""
    scale = scales.Scale(metric, greater, 0.0, math.inf)
    fields = {"value": value, "scale": scale, "evaluator": OTHER, "finetuned_accuracy": None}
    return measured(task, None, None, **(fields | changes))


@pytest.mark.parametrize(
    ("asked", "ours", "theirs", "verdict"),
    [
        ("{threshold: 30, greater_is_better: false}", 30.0, None, "passed"),
        ("{threshold: 30, greater_is_better: false}", 31.0, None, "failed"),
        ("{threshold: 30, greater_is_better: true}", 31.0, None, "passed"),
        ("{threshold: 30, greater_is_better: false}", None, None, "unknown"),
        ("{min_absolute_change: 1, greater_is_better: false}", 20.0, 21.0, "passed"),
        ("{min_absolute_change: 1, greater_is_better: false}", 20.5, 21.0, "failed"),
        ("{min_relative_change: 0.1, greater_is_better: true}", 22.0, 20.0, "passed"),
        ("{min_relative_change: 0.1, greater_is_better: true}", 21.0, 20.0, "failed"),
        ("{min_relative_change: 0.1, greater_is_better: true}", 21.0, None, "passed"),
    ],
)
def test_metrics_by_mlflows_own_thresholds(asked, ours, theirs, verdict):
    greater = "true" in asked
    before = champion(graded(theirs, greater=greater)) if theirs is not None else None
    found = known(*([] if ours is None else [graded(ours, greater=greater)]), champion=before)
    for name in ("latency", "latency/cars", "average_latency"):
        verdict_of = rule(f"metrics: {{{name}: {asked}}}", found, f"metric {name}")
        assert verdict_of.verdict == verdict, verdict_of


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_no_measurement_has_a_value_outside_its_range(value):
    with pytest.raises(ValueError, match="latency of cars is "):
        graded(value)


def test_a_change_asked_for_passes_without_a_champion_and_is_unknown_without_its_metric():
    text = "metrics: {latency: {min_absolute_change: 1, greater_is_better: false}}"
    mine = known(graded(20.0))
    assert rule(text, mine, "metric latency").verdict == "passed"
    for theirs in ((), (graded(30.0, evaluator=DIGEST),), (graded(30.0, dataset_digest=ELSE),)):
        before = champion(*theirs)
        found = rule(text, dataclasses.replace(mine, champion=before), "metric latency")
        assert found.verdict == "unknown"
        assert "was not measured by latency on the same data; run `evaluate`" in found.sentence
        assert found.limit == "1 below the champion"


def test_a_number_that_was_typed_into_a_run_does_not_count():
    text = "metrics: {latency: {threshold: 30, greater_is_better: false}}"
    typed = known(metrics={"latency": facts.Metric(1.0, "r")})
    found = rule(text, typed, "metric latency")
    assert (found.verdict, found.value) == ("unknown", None)
    assert found.sentence == (
        "the run r has 1, which anybody may have typed into it, so that it does not count; run "
        "`evaluate` or `promote` with --evaluator, which measures latency and records by what"
    )
    both = dataclasses.replace(typed, measurements=(graded(31.0),))
    assert rule(text, both, "metric latency").verdict == "failed"


def test_a_metric_of_several_tasks_has_their_names():
    text = "metrics: {latency: {threshold: 30, greater_is_better: false}}"
    two = known(graded(20.0), graded(40.0, task="signs"))
    found = rule(text, two, "metric latency")
    assert (found.verdict, found.sentence) == (
        "unknown",
        "several tasks have a latency; name one of latency/cars, latency/signs or average_latency",
    )
    text = text.replace("latency", "average_latency")
    assert rule(text, two, "metric average_latency").value == 30


def test_a_policy_and_an_evaluator_that_differ_on_what_is_better():
    text = "metrics: {latency: {threshold: 30, greater_is_better: true}}"
    found = rule(text, known(graded(20.0)), "metric latency")
    assert found.verdict == "unknown"
    assert "the policy takes more for better, and whoever measured it less" in found.sentence


def test_what_is_kept_on_average_is_a_metric_where_all_sources_are_known():
    text = "metrics: {average_normalized_accuracy: {threshold: 0.9, greater_is_better: true}}"
    key = "metric average_normalized_accuracy"
    two = (measured(), graded(2.0, task="signs", finetuned_accuracy=1.8))
    found = rule(text, known(*two), key)
    assert found.value == pytest.approx((0.9 / 0.95 + 0.9) / 2)
    assert rule(text, known(measured(), graded(2.0, task="signs")), key).verdict == "unknown"


def test_accuracies_that_images_gave_are_metrics_too():
    text = "metrics: {accuracy_low/cars: {threshold: 0.9, greater_is_better: true}}"
    found = rule(text, known(measured()), "metric accuracy_low/cars")
    assert (found.verdict, found.value) == ("failed", pytest.approx(0.8256, abs=1e-4))


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("tasks: {cars: {accuracy: 0.1}}", "accuracy/cars", "was measured by latency, 20; ask for"),
        ("average_accuracy: 0.1", "average_accuracy", "another metric than the accuracy"),
        (
            "no_regression: {test: non_inferiority}",
            "no_regression/cars",
            "does not say how many examples were right, so that there is no interval",
        ),
        ("evidence: {min_images: 3}", "images/cars", "does not say on how many examples"),
    ],
)
def test_rules_that_a_metric_without_counts_can_not_be_held_against(text, name, words):
    found = known(graded(20.0), champion=champion(graded(20.0)))
    said = rule(text, found, name)
    assert said.verdict == "unknown"
    assert words in said.sentence


def test_an_accuracy_without_counts_has_no_interval():
    plain = known(measured(correct=None, total=None, value=0.9, evaluator=OTHER))
    assert rule("tasks: {cars: {accuracy: 0.9}}", plain, "accuracy/cars").verdict == "passed"
    found = rule("tasks: {cars: {accuracy_low: 0.1}}", plain, "accuracy_low/cars")
    assert found.verdict == "unknown"


@pytest.mark.parametrize(
    ("ours", "theirs", "greater", "verdict"),
    [
        (20.0, 19.5, False, "passed"),
        (20.0, 18.9, False, "failed"),
        (18.9, 20.0, True, "failed"),
        (19.5, 20.0, True, "passed"),
        (25.0, 20.0, True, "passed"),
    ],
)
def test_no_regression_by_the_numbers_where_there_is_no_interval(ours, theirs, greater, verdict):
    """The margin is in the metric's own unit."""
    before = champion(graded(theirs, greater=greater))
    found = known(graded(ours, greater=greater), champion=before)
    said = rule("no_regression: {margin: 1}", found, "no_regression/cars")
    assert said.verdict == verdict
    assert said.value == pytest.approx(ours - theirs if greater else theirs - ours)


def test_what_is_kept_of_a_loss_is_the_source_by_the_value():
    found = rule(
        "tasks: {cars: {normalized_accuracy: 0.8}}",
        known(graded(2.0, finetuned_accuracy=1.8)),
        "normalized_accuracy/cars",
    )
    assert (found.verdict, found.value) == ("passed", pytest.approx(0.9))


def test_the_accuracy_counts_where_a_task_was_measured_by_several_metrics():
    later = graded(20.0, measured=NOW)
    found = known(measured(), later)
    assert rule("tasks: {cars: {accuracy: 0.9}}", found, "accuracy/cars").verdict == "passed"
    text = "metrics: {latency: {threshold: 30, greater_is_better: false}}"
    assert rule(text, found, "metric latency").verdict == "passed"


def test_a_verdict_as_a_table():
    verdict = judge("tasks: {cars: {accuracy: 0.95}}", known(measured()))
    assert [rule.name for rule in verdict.objections] == ["accuracy/cars"]
    assert verdict.to_dict()["passed"] is False
    assert "| accuracy/cars | 0.9 | 0.95 | failed | 90 of 100 images: below 0.95 |" in (
        verdict.to_markdown()
    )


def test_a_policy_that_does_not_look_at_accuracy_needs_no_measurement():
    found = known(approvals=approvals("ann"), makers=("ben",))
    assert judge("approvals: 1", found).passed


def test_the_example_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs/promotion.md").read_text(encoding="utf-8")
    example = text.partition("## An example")[2].partition("## One winner")[0]
    rules = example.partition("```yaml\n")[2].partition("```")[0]
    week = {"measured": NOW - datetime.timedelta(days=7), "origin": "lineage.json"}
    ours = (
        measured("cars", 5564, 8041, finetuned_accuracy=0.760, **week),
        measured("signs", 9649, 12630, finetuned_accuracy=0.912, **week),
    )
    theirs = champion(
        measured("cars", 5468, 8041), measured("signs", 10167, 12630), tasks=("cars", "signs")
    )
    found = known(
        *ours,
        tasks=("cars", "signs"),
        champion=theirs,
        approvals=approvals("ann"),
        makers=("ben",),
    )
    verdict = judge(rules, found)
    (failed,) = verdict.objections
    assert failed.name == "no_regression/signs"
    for line in verdict.to_markdown().splitlines():
        if not line.startswith("| weights"):  # whose digests the page cuts short
            assert line in example, line
