"""Policies: what they may say, one digest, and a line number for every fault."""

import datetime
import re
import zoneinfo
from pathlib import Path

import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.promotion import policies, windows

FULL = """\
description: everything at once
average_accuracy: 0.6
average_normalized_accuracy: 0.9
tasks:
  "*": {normalized_accuracy: 0.85}
  cars: {accuracy: 0.7, accuracy_low: 0.68}
no_regression: {margin: 0.01, confidence: 0.9, test: non_inferiority}
evidence:
  max_age: 30 days
  min_images: 500
  split: validation
  data:
    cars: {digest: "sha256:%s", collected: 2026-06-01, max_age: 52 weeks}
verified: true
licences: [MIT]
approvals: 2
freeze:
  - {days: [fri], start: 18:00, end: "08:00", time_zone: Europe/Berlin, reason: late}
  - {starts: 2026-12-20, ends: 2027-01-04 12:30}
metrics:
  latency_ms: {threshold: 30, greater_is_better: false}
""" % ("0" * 64)


def refusal(text):
    with pytest.raises(errors.PolicyError) as caught:
        policies.parse(text)
    return str(caught.value)


def test_everything_at_once_is_read():
    read = policies.parse(FULL)
    assert read.evidence.max_age == datetime.timedelta(days=30)
    assert read.evidence.data["cars"].max_age == datetime.timedelta(days=364)
    assert (read.freeze[0].start, read.freeze[0].end) == (18 * 60, 8 * 60)
    assert read.freeze[1].starts == datetime.date(2026, 12, 20)
    assert read.freeze[1].ends == datetime.datetime(2027, 1, 4, 12, 30)
    assert read.floor("cars").accuracy == 0.7
    assert read.floor("signs").normalized_accuracy == 0.85
    assert read.named_tasks == ("cars",)
    assert read.looks_at_accuracy
    assert read.needs_normalized


def test_the_digest_is_of_the_content_and_survives_being_written():
    read = policies.parse(FULL)
    assert policies.parse(read.to_yaml()) == read
    assert policies.parse(read.to_yaml()).digest == read.digest
    assert policies.parse("# a comment\n" + FULL).digest == read.digest
    assert policies.parse(FULL.replace("30 days", "720 hours")).digest == read.digest
    assert policies.parse(FULL.replace("30 days", "31 days")).digest != read.digest


def test_four_eyes_are_a_rule_and_change_no_other_policys_digest():
    assert policies.parse("four_eyes: true").four_eyes
    plain = policies.parse("approvals: 1")
    assert policies.parse("approvals: 1\nfour_eyes: false").digest == plain.digest
    assert policies.parse("approvals: 1\nfour_eyes: true").digest != plain.digest
    assert policies.parse(plain.to_yaml()).digest == plain.digest


def test_a_default_that_is_written_out_is_the_same_policy():
    plain = policies.parse("approvals: 1\n")
    assert policies.parse("approvals: 1\nverified: false\nevidence: {split: test}").digest == (
        plain.digest
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("approvals: 1\naproval: 2\n", "line 2: aproval: there is no such field; did you mean app"),
        (
            "tasks:\n  cars:\n    accuracy: 0.5\n    accurcy_low: 0.4\n",
            "line 4: tasks.cars.accurcy_low: there is no such field; did you mean accuracy_low? "
            "It has accuracy, accuracy_low, normalized_accuracy",
        ),
        (
            "freeze:\n  - {days: [sat]}\n  - {day: [sun]}\n",
            "line 3: freeze[1].day: there is no such field; did you mean days?",
        ),
        ("tasks:\n  cars: {accuracy: 1.5}\n", "line 2: tasks.cars.accuracy: it is 1.5, and mu"),
        ("average_accuracy: .nan\n", "line 1: average_accuracy: it is nan, and must be a finite"),
        ("average_accuracy: high\n", "line 1: average_accuracy: it is 'high', and must be a"),
        ("average_accuracy: true\n", "line 1: average_accuracy: it is true, and must be a num"),
        ("tasks:\n  cars: {}\n", "line 2: tasks.cars: give accuracy, accuracy_low or normalized"),
        ("evidence:\n  max_age: soon\n", "line 2: evidence.max_age: 'soon' is not a duration"),
        ("evidence:\n  max_age: 9999999999 days\n", "is not a duration; write 90 minutes"),
        (
            "evidence:\n  data:\n    cars: {max_age: 1 day}\n",
            "line 3: evidence.data.cars: max_age needs collected",
        ),
        (
            "evidence:\n  data:\n    cars: {digest: abc}\n",
            "line 3: evidence.data.cars.digest: 'abc' is not a digest; write sha256",
        ),
        ("verified: 'no'\n", "line 1: verified: it is 'no', and must be true or false"),
        ("approvals: -1\n", "line 1: approvals: it is -1, and must be at least 0"),
        ("licences: []\n", "line 1: licences: "),
        (
            "metrics:\n  latency: {threshold: 3}\n",
            "line 2: metrics.latency.greater_is_better: it is missing",
        ),
        (
            "metrics:\n  latency: {greater_is_better: true}\n",
            "line 2: metrics.latency: give threshold, min_absolute_change or min_relative_change",
        ),
        ("freeze: [{start: '18:00'}]\n", "line 1: freeze[0]: give days (with start and end), or"),
        ("freeze: [{starts: 2026-01-01}]\n", "freeze[0]: give days (with start and end), or both"),
        (
            "freeze: [{starts: 2026-01-02, ends: 2026-01-01}]\n",
            "line 1: freeze[0]: ends must be after starts",
        ),
        (
            "freeze: [{days: [someday]}]\n",
            "line 1: freeze[0].days[0]: it is 'someday', and must be 'mon', 'tue'",
        ),
        ("freeze: [{days: [mon], start: noon}]\n", "'noon' is not a time of day; write '18:00'"),
        ("freeze: [{days: [mon], time_zone: Mars}]\n", "'Mars' is no time zone"),
        (
            "freeze: [{starts: 2026-01-01T00:00:00Z, ends: 2026-01-02}]\n",
            "has a UTC offset; the window's time_zone says which it is",
        ),
        ("freeze: [{starts: Christmas, ends: 2026-01-02}]\n", "'Christmas' is not a date"),
        ("approvals: 1\napprovals: 2\n", "line 2: approvals is given twice"),
        ("tasks:\n  a: {accuracy: 0}\n  a: {accuracy: 1}\n", "line 3: a is given twice"),
        ("description: nothing\n", "line 1: the policy: it has no rule, so that everything would"),
        ("approvals: 0\nevidence: {split: train}\n", "it has no rule"),
        ("- approvals: 1\n", "the policy is not a mapping of rules, as `approvals: 2`"),
        ("", "the policy is not a mapping of rules"),
        ("approvals: [\n", "the policy is not YAML"),
    ],
)
def test_a_fault_is_named_with_its_line(text, words):
    assert words in refusal(text)


def test_every_fault_is_named_at_once():
    said = refusal("aproval: 2\nverified: 3\n")
    assert "line 1: aproval" in said
    assert "line 2: verified" in said


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(errors.PolicyError, match=r"the policy .*none.yaml can't be read: No such"):
        policies.load(tmp_path / "none.yaml")
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(errors.PolicyError, match="is not text in UTF-8"):
        policies.load(path)


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def at(day, hour, minute=0, zone=BERLIN):
    return datetime.datetime(2026, 3, day, hour, minute, tzinfo=zone)


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        (at(6, 17, 59), False),  # 6 March 2026 is a Friday
        (at(6, 18), True),
        (at(7, 7, 59), True),  # the window began on Friday
        (at(7, 8), False),
        (at(7, 19), False),
        (at(6, 17, 30, datetime.UTC), True),  # 18:30 in Berlin
    ],
)
def test_a_weekly_window_over_midnight(moment, inside):
    window = windows.Freeze(days=("fri",), start="18:00", end="08:00", time_zone="Europe/Berlin")
    assert window.covers(moment) is inside
    assert window.text() == "fri 18:00 to 08:00"


@pytest.mark.parametrize(
    ("moment", "inside"), [(at(6, 23, 59), False), (at(7, 0), True), (at(8, 23, 59), True)]
)
def test_a_weekend_without_times_is_whole_days(moment, inside):
    window = windows.Freeze(days=("sat", "sun"), time_zone="Europe/Berlin")
    assert window.covers(moment) is inside


def test_a_window_between_dates_has_its_last_day():
    window = windows.Freeze(starts="2026-03-06", ends="2026-03-07", time_zone="Europe/Berlin")
    assert not window.covers(at(5, 23, 59))
    assert window.covers(at(6, 0))
    assert window.covers(at(7, 23, 59))
    assert not window.covers(at(8, 0))


def test_a_window_follows_the_clocks_of_its_zone_when_they_change():
    """On 29 March 2026 Berlin's clocks go from 02:00 to 03:00."""
    window = windows.Freeze(days=("sun",), start="03:00", end="04:00", time_zone="Europe/Berlin")
    assert window.covers(datetime.datetime(2026, 3, 29, 1, 0, tzinfo=datetime.UTC))
    assert not window.covers(datetime.datetime(2026, 3, 29, 2, 0, tzinfo=datetime.UTC))


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("workflows/policies/*.yaml")), ids=lambda p: p.name
)
def test_the_policies_to_start_from_are_policies(path):
    read = policies.load(path)
    assert read.description
    assert read.looks_at_accuracy


def test_the_policy_for_the_papers_eight_tasks_names_all_eight():
    read = policies.load(ROOT / "workflows/policies/clip-eight-tasks.yaml")
    tasks = {"cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn"}
    assert set(read.named_tasks) == tasks
    assert all(read.floor(task) for task in tasks)


def test_every_field_is_in_the_documentation():
    text = (ROOT / "docs/promotion.md").read_text(encoding="utf-8")
    kinds = (
        policies.Policy,
        policies.Floor,
        policies.NoRegression,
        policies.EvidenceRules,
        policies.DataSet,
    )
    kinds += (policies.Threshold, windows.Freeze)
    for kind in kinds:
        for name in kind.model_fields:
            assert re.search(rf"[`.{{ ]{name}[`:. ]", text), name
