"""The judgement: facts and a policy in, one verdict per rule out. Nothing is read or written here.

Each examiner looks at one kind of rule and gives a `Rule` per thing that was to be held. A rule is
passed, failed, or unknown: there is nothing that it could be held against. Only a verdict whose
rules have all passed lets a version through.
"""

import dataclasses
import datetime
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from mlflow_breadcrumbs.promotion import facts, fields, policies, thresholds, verdicts
from mlflow_breadcrumbs.support import intervals, people, wording

CLOCKS = datetime.timedelta(minutes=5)
"""By how much the clocks of two machines may differ."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What the examiners look at."""

    rules: policies.Policy
    known: facts.Facts
    now: datetime.datetime
    chosen: Mapping[str, facts.Measurement | None]
    """The measurement that counts, by each task that must have one."""
    how: str
    """What to do about a measurement that is lacking."""


def judge(
    rules: policies.Policy,
    known: facts.Facts,
    now: datetime.datetime,
    *,
    tasks: str | None = None,
) -> verdicts.Verdict:
    """Hold a version against a policy.

    Args:
        rules: the policy.
        known: about the version, and about the one that has the alias.
        now: with its time zone.
        tasks: the task file to measure by, where one was given: then giving one is no advice.
    """
    how = _HOW if tasks is None else _GIVEN.format(tasks)
    case = Case(rules, known, now, choose(rules, known), how)
    return verdicts.Verdict(tuple(rule for examine in EXAMINERS for rule in examine(case)))


def choose(rules: policies.Policy, known: facts.Facts) -> dict[str, facts.Measurement | None]:
    """The measurement that counts for each task: the newest on the split and images asked for.

    The tasks are those that the version was made for and those that the policy names; where
    neither names any, those that were measured.
    """
    if not rules.looks_at_accuracy:
        return {}
    names = dict.fromkeys((*known.tasks, *rules.named_tasks))
    measured = {entry.task: None for entry in known.measurements}
    return {task: _newest(rules, known.measurements, task) for task in names or measured}


def is_recent(rules: policies.Policy, entry: facts.Measurement, now: datetime.datetime) -> bool:
    """Whether a measurement is as young as the policy asks for, at a time with its time zone."""
    limit = rules.evidence.max_age
    return limit is None or -CLOCKS <= now - entry.measured <= limit


def _newest(
    rules: policies.Policy, measurements: Sequence[facts.Measurement], task: str
) -> facts.Measurement | None:
    asked = rules.evidence.data.get(task)
    fitting = [
        entry
        for entry in measurements
        if entry.task == task
        and entry.split == rules.evidence.split
        and (asked is None or asked.digest in (None, entry.dataset_digest))
    ]
    return max(fitting, key=lambda entry: entry.measured, default=None)


def examine_weights(case: Case) -> Iterator[verdicts.Rule]:
    """The bytes are those that were registered; no policy can leave this out."""
    found, recorded = case.known.weights_digest, case.known.recorded_digest
    if recorded is None:
        verdict: verdicts.Outcome = "unknown"
        sentence = f"{case.known.uri} has no recorded digest; register it with this package"
    elif found == recorded:
        verdict, sentence = "passed", "the weights are those that were registered"
    else:
        verdict, sentence = "failed", "the weights were changed after they were registered"
    yield verdicts.Rule("weights", found, recorded, verdict, sentence)


def examine_averages(case: Case) -> Iterator[verdicts.Rule]:
    """The means over the tasks; every task must have been measured."""
    lacking = [task for task, found in case.chosen.items() if found is None]
    found = [entry for entry in case.chosen.values() if entry is not None]
    for name, limit, values in (
        (
            "average_accuracy",
            case.rules.average_accuracy,
            [entry.accuracy for entry in found],
        ),
        (
            "average_normalized_accuracy",
            case.rules.average_normalized_accuracy,
            [entry.normalized for entry in found],
        ),
    ):
        if limit is None:
            continue
        undivided = [
            entry.task for entry, value in zip(found, values, strict=True) if value is None
        ]
        if lacking or undivided or not values:
            why = f"not measured on {', '.join(lacking)}" if lacking else "no task was measured"
            if undivided:
                why = f"the sources were not measured on the same images of {', '.join(undivided)}"
            yield verdicts.Rule(name, None, limit, "unknown", f"{why}; {case.how}")
        else:
            mean = math.fsum(value for value in values if value is not None) / len(values)
            yield _at_least(
                name, mean, limit, f"the mean of {wording.counted(len(values), 'tasks')}"
            )


def examine_floors(case: Case) -> Iterator[verdicts.Rule]:
    """What each task must reach by itself."""
    for task, found in case.chosen.items():
        floor = case.rules.floor(task)
        if floor is None:
            continue
        limits = floor.model_dump(exclude_none=True)
        for name, limit in limits.items():
            key = f"{name}/{task}"
            if found is None:
                yield verdicts.Rule(key, None, limit, "unknown", _why_not_measured(case, task))
            elif name == "accuracy":
                what = f"{found.correct} of {wording.counted(found.total, 'images')}"
                yield _at_least(key, found.accuracy, limit, what)
            elif name == "accuracy_low":
                low, high = intervals.wilson(found.correct, found.total)
                yield _at_least(key, low, limit, f"95% interval {low:.3f} to {high:.3f}")
            elif found.normalized is None:
                why = f"the source was not measured on the same images; {case.how}"
                yield verdicts.Rule(key, None, limit, "unknown", why)
            else:
                what = f"{found.accuracy:.3f} of the source's {found.finetuned_accuracy:.3f}"
                yield _at_least(key, found.normalized, limit, what)


def examine_regressions(case: Case) -> Iterator[verdicts.Rule]:
    """Each task of the champion: has the accuracy fallen by more than the margin?

    The difference candidate − champion has a Newcombe interval. `regression` refuses where its
    upper end is below −margin: a loss beyond the margin is shown. `non_inferiority` lets through
    only where its lower end is at least −margin: a loss beyond the margin is ruled out.
    """
    asked, champion = case.rules.no_regression, case.known.champion
    if asked is None:
        return
    if champion is None:
        yield verdicts.Rule("no_regression", None, None, "passed", "no version has the alias yet")
        return
    if champion.weights_digest == case.known.weights_digest:
        yield verdicts.Rule(
            "no_regression", None, None, "passed", "the champion has the same weights"
        )
        return
    tasks = dict.fromkeys((*champion.tasks, *(() if champion.tasks else case.chosen)))
    if not tasks:
        yield verdicts.Rule(
            "no_regression", None, None, "unknown", f"no task was measured; {case.how}"
        )
    for task in tasks:
        yield _regression(case, asked, champion, task)


def _regression(
    case: Case, asked: policies.NoRegression, champion: facts.Champion, task: str
) -> verdicts.Rule:
    name, limit = f"no_regression/{task}", -asked.margin + 0.0
    ours = case.chosen.get(task) or _newest(case.rules, case.known.measurements, task)
    if ours is None:
        return verdicts.Rule(name, None, limit, "unknown", _why_not_measured(case, task))
    same = [
        entry
        for entry in champion.measurements
        if entry.task == task and entry.dataset_digest == ours.dataset_digest
    ]
    if not same:
        why = f"the champion {champion.uri} was not measured on the same images"
        why = "; ".join([why, *_about(task, champion.set_aside), case.how])
        return verdicts.Rule(name, None, limit, "unknown", why)
    theirs = max(same, key=lambda entry: entry.measured)
    low, high = intervals.newcombe(
        (ours.correct, ours.total), (theirs.correct, theirs.total), asked.confidence
    )
    said = (
        f"{ours.accuracy:.3f}, the champion {theirs.accuracy:.3f}: a difference of "
        f"{low:+.3f} to {high:+.3f} ({asked.confidence:.0%} interval)"
    )
    verdict: verdicts.Outcome = "passed"
    if high < limit:
        verdict, said = "failed", f"{said} is a loss beyond the margin"
    elif asked.test == "non_inferiority" and low < limit:
        verdict, said = "unknown", f"{said} does not rule a loss out; measure on more images"
    return verdicts.Rule(name, ours.accuracy - theirs.accuracy, limit, verdict, said)


def examine_evidence(case: Case) -> Iterator[verdicts.Rule]:
    """How old the measurements are, on how many and on which images."""
    asked = case.rules.evidence
    for task, found in case.chosen.items():
        if found is None:
            if asked.max_age or asked.min_images or task in asked.data:
                why = _why_not_measured(case, task)
                yield verdicts.Rule(f"evidence/{task}", None, None, "unknown", why)
            continue
        if asked.max_age is not None:
            what = f"measured at {wording.moment(found.measured)}, {found.origin}"
            age = case.now - found.measured
            yield _age(f"evidence/{task}", age, asked.max_age, what, case.how)
        if asked.min_images is not None:
            what = f"measured on {wording.counted(found.total, 'images')}"
            yield _at_least(f"images/{task}", found.total, asked.min_images, what)
        data = asked.data.get(task)
        if data is not None and data.digest is not None:
            what = "these are the images asked for"
            yield verdicts.Rule(f"data/{task}", found.dataset_digest, data.digest, "passed", what)
        if data is not None and data.collected is not None and data.max_age is not None:
            taken = datetime.datetime.combine(data.collected, datetime.time(), datetime.UTC)
            what = f"the images were collected on {data.collected}"
            yield _age(f"data_age/{task}", case.now - taken, data.max_age, what, case.how)


def examine_verification(case: Case) -> Iterator[verdicts.Rule]:
    """All that is recorded of the version agrees."""
    if not case.rules.verified:
        return
    found = case.known.verification
    if found is None:
        yield verdicts.Rule("verified", None, "ok", "unknown", "nobody has verified it")
    elif found.failures:
        listed = "; ".join(found.failures)
        yield verdicts.Rule("verified", "failed", "ok", "failed", listed)
    else:
        said = f"{found.right} checks are right, {found.unknown} had nothing to be held against"
        yield verdicts.Rule("verified", "ok", "ok", "passed", said)


def examine_licences(case: Case) -> Iterator[verdicts.Rule]:
    """The licences of what the version was made from."""
    if case.rules.licences is None:
        return
    allowed = {name.casefold() for name in case.rules.licences}
    limit = ", ".join(case.rules.licences)
    for entry in case.known.licences:
        name = f"licence of {entry.role} {entry.uri}"
        if entry.licence is None:
            why = "it has no tag `license`; set one on the version or on its registered model"
            yield verdicts.Rule(name, None, limit, "unknown", why)
        elif entry.licence.casefold() in allowed:
            yield verdicts.Rule(name, entry.licence, limit, "passed", "it is allowed")
        else:
            yield verdicts.Rule(name, entry.licence, limit, "failed", "it is not allowed")
    if not case.known.licences:
        yield verdicts.Rule(
            "licences", None, limit, "unknown", "nothing says what it was made from"
        )


def examine_approvals(case: Case) -> Iterator[verdicts.Rule]:
    """Enough people have approved these weights, other than those who made them."""
    needed = case.rules.approvals
    if not needed:
        return
    makers = {people.normal(maker) for maker in case.known.makers}
    approving = {people.normal(entry.person) for entry in case.known.approvals} - {""}
    counted, own = sorted(approving - makers), sorted(approving & makers)
    said = f"approved by {', '.join(counted)}" if counted else "nobody has approved these weights"
    if own:
        said += f"; {', '.join(own)} made them, and doesn't count"
    if not makers:
        said += "; nothing says who made them"
    enough = len(counted) >= needed
    verdict: verdicts.Outcome = "failed" if not enough else "passed" if makers else "unknown"
    yield verdicts.Rule("approvals", len(counted), needed, verdict, said)


def examine_freezes(case: Case) -> Iterator[verdicts.Rule]:
    """No window in which nothing is promoted is open."""
    if not case.rules.freeze:
        return
    now = wording.moment(case.now)
    open_now = [window for window in case.rules.freeze if window.covers(case.now)]
    for window in open_now:
        local = f" ({window.time_zone})" if window.time_zone != "UTC" else ""
        said = f"nothing is promoted now{local}" + (f": {window.reason}" if window.reason else "")
        yield verdicts.Rule("freeze", now, window.text(), "failed", said)
    if not open_now:
        windows = ", ".join(window.text() for window in case.rules.freeze)
        yield verdicts.Rule("freeze", now, windows, "passed", "no window is open")


def examine_metrics(case: Case) -> Iterator[verdicts.Rule]:
    """Metrics that the runs about these weights carry."""
    champion = case.known.champion
    for name, asked in case.rules.metrics.items():
        key, limit = f"metric {name}", asked.text()
        found = case.known.metrics.get(name)
        if found is None:
            why = f"no run about these weights has the metric {name}"
            yield verdicts.Rule(key, None, limit, "unknown", why)
            continue
        if not found.is_number:
            why = f"the run {found.run_id} has {found.value}, which is no finite number"
            yield verdicts.Rule(key, str(found.value), limit, "unknown", why)
            continue
        theirs = champion.metrics.get(name) if champion else None
        if champion and asked.compares and (theirs is None or not theirs.is_number):
            why = f"the champion {champion.uri} has no such metric to be held against"
            yield verdicts.Rule(key, found.value, limit, "unknown", why)
            continue
        fault = thresholds.fault(name, asked, found.value, theirs.value if theirs else None)
        said = fault or f"of the run {found.run_id}"
        yield verdicts.Rule(key, found.value, limit, "failed" if fault else "passed", said)


EXAMINERS: tuple[Callable[[Case], Iterator[verdicts.Rule]], ...] = (
    examine_weights,
    examine_averages,
    examine_floors,
    examine_regressions,
    examine_evidence,
    examine_verification,
    examine_licences,
    examine_approvals,
    examine_freezes,
    examine_metrics,
)
"""Every kind of rule; a further one is a function more."""

_HOW = "run `promote` with --tasks"
_GIVEN = "it takes a measurement on the tasks and images of {}"


def _why_not_measured(case: Case, task: str) -> str:
    """Why a task has no measurement that counts, and what to do."""
    asked = case.rules.evidence
    split, data = asked.split, asked.data.get(task)
    others = [entry for entry in case.known.measurements if entry.task == task]
    if not others:
        why = f"these weights were not measured on {task}"
    elif any(entry.split == split for entry in others) and data is not None:
        seen = ", ".join(sorted({entry.dataset_digest for entry in others}))
        why = f"{task} was measured on other images ({seen}) than {data.digest}"
    else:
        why = f"{task} was not measured on the {split} split"
    return "; ".join([why, *_about(task, case.known.set_aside), case.how])


def _about(task: str, set_aside: Sequence[str]) -> list[str]:
    """Why measurements were set aside; those about another task's accuracy are that task's."""
    return [text for text in set_aside if f"accuracy/{task} " in text or "accuracy/" not in text]


def _at_least(name: str, value: float, limit: float, what: str) -> verdicts.Rule:
    if not math.isfinite(value):
        return verdicts.Rule(name, str(value), limit, "unknown", f"{what}: not a number")
    if value >= limit:
        return verdicts.Rule(name, value, limit, "passed", what)
    return verdicts.Rule(name, value, limit, "failed", f"{what}: below {limit:g}")


def _age(
    name: str, age: datetime.timedelta, limit: datetime.timedelta, what: str, how: str
) -> verdicts.Rule:
    asked = fields.duration_text(limit)
    if age < -CLOCKS:
        return verdicts.Rule(
            name, None, asked, "unknown", f"{what}: that is to come; check the clocks"
        )
    shown = _duration(max(age, datetime.timedelta()))
    if age <= limit:
        return verdicts.Rule(name, shown, asked, "passed", what)
    return verdicts.Rule(name, shown, asked, "failed", f"{what}: older than {asked}; {how}")


def _duration(age: datetime.timedelta) -> str:
    """An age for people, in the largest unit of which there are two."""
    seconds = age.total_seconds()
    for unit in ("day", "hour"):
        if seconds >= 2 * fields.UNITS[unit]:
            return f"{seconds / fields.UNITS[unit]:.1f} {unit}s"
    return f"{seconds / 60:.0f} minutes"
