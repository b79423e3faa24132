"""The judgement: facts and a policy in, one verdict per rule out. Nothing is read or written here.

Each examiner looks at one kind of rule and gives a `Rule` per thing that was to be held. A rule is
passed, failed, or unknown: there is nothing that it could be held against. Only a verdict whose
rules have all passed lets a version through.
"""

import dataclasses
import datetime
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from mlflow_breadcrumbs.promotion import (
    choosing,
    facts,
    holding,
    numbers,
    policies,
    thresholds,
    verdicts,
)
from mlflow_breadcrumbs.support import intervals, people, wording


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
    case = Case(rules, known, now, choosing.choose(rules, known), how)
    return verdicts.Verdict(tuple(rule for examine in EXAMINERS for rule in examine(case)))


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


def examine_recalls(case: Case) -> Iterator[verdicts.Rule]:
    """Neither the weights nor what they were made from was recalled; no policy can leave this out.

    Where nothing was, there is no rule.
    """
    for entry in case.known.recalled:
        own = entry.weights_digest == case.known.weights_digest
        what = "these weights were" if own else f"it was made from {entry.uri}, which was"
        said = f"{what} recalled by {entry.actor}: {entry.reason}"
        yield verdicts.Rule("recalled", entry.uri, None, "failed", said)


def examine_averages(case: Case) -> Iterator[verdicts.Rule]:
    """The means over the tasks; every task must have been measured."""
    lacking = [task for task, found in case.chosen.items() if found is None]
    found = [entry for entry in case.chosen.values() if entry is not None]
    for name, limit, values in (
        (
            "average_accuracy",
            case.rules.average_accuracy,
            [entry.accuracy if entry.scale.is_accuracy else None for entry in found],
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
            if undivided and name == "average_accuracy":
                why = f"another metric than the accuracy was measured on {', '.join(undivided)}"
            elif undivided:
                why = f"the sources were not measured on the same images of {', '.join(undivided)}"
            yield verdicts.Rule(name, None, limit, "unknown", f"{why}; {case.how}")
        else:
            mean = math.fsum(value for value in values if value is not None) / len(values)
            yield holding.at_least(
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
            elif name != "normalized_accuracy" and not found.scale.is_accuracy:
                yield verdicts.Rule(key, None, limit, "unknown", holding.other_metric(found))
            elif name == "accuracy":
                yield holding.at_least(key, found.accuracy, limit, holding.counted(found))
            elif name == "accuracy_low" and found.counts is None:
                why = holding.NO_INTERVAL.format(found.origin)
                yield verdicts.Rule(key, None, limit, "unknown", why)
            elif name == "accuracy_low" and found.counts is not None:
                low, high = intervals.wilson(*found.counts)
                yield holding.at_least(key, low, limit, f"95% interval {low:.3f} to {high:.3f}")
            elif found.normalized is None:
                why = f"the source was not measured on the same images; {case.how}"
                yield verdicts.Rule(key, None, limit, "unknown", why)
            else:
                what = f"{found.accuracy:.3f} of the source's {found.finetuned_accuracy:.3f}"
                yield holding.at_least(key, found.normalized, limit, what)


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
    ours = case.chosen.get(task) or choosing.newest(case.rules, case.known.measurements, task)
    if ours is None:
        return verdicts.Rule(name, None, limit, "unknown", _why_not_measured(case, task))
    same = [
        entry for entry in champion.measurements if entry.task == task and entry.basis == ours.basis
    ]
    if not same:
        things = "data by the same evaluator" if ours.evaluator else "images"
        why = f"the champion {champion.uri} was not measured on the same {things}"
        why = "; ".join([why, *_about(task, champion.set_aside), case.how])
        return verdicts.Rule(name, None, limit, "unknown", why)
    theirs = max(same, key=lambda entry: entry.measured)
    if ours.counts is None or theirs.counts is None:
        return holding.plain_regression(name, asked, ours, theirs)
    low, high = intervals.newcombe(ours.counts, theirs.counts, asked.confidence)
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
            yield holding.age(f"evidence/{task}", age, asked.max_age, what, case.how)
        if asked.min_images is not None:
            if found.total is None:
                why = f"{found.origin} does not say on how many examples {task} was measured"
                rule = verdicts.Rule(f"images/{task}", None, asked.min_images, "unknown", why)
                yield rule
            else:
                what = f"measured on {wording.counted(found.total, 'images')}"
                yield holding.at_least(f"images/{task}", found.total, asked.min_images, what)
        data = asked.data.get(task)
        if data is not None and data.digest is not None:
            what = "these are the images asked for"
            yield verdicts.Rule(f"data/{task}", found.dataset_digest, data.digest, "passed", what)
        if data is not None and data.collected is not None and data.max_age is not None:
            taken = datetime.datetime.combine(data.collected, datetime.time(), datetime.UTC)
            what = f"the images were collected on {data.collected}"
            yield holding.age(f"data_age/{task}", case.now - taken, data.max_age, what, case.how)


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


def examine_four_eyes(case: Case) -> Iterator[verdicts.Rule]:
    """Who made the weights, who approved them and who promotes them are three people."""
    if not case.rules.four_eyes:
        return
    promoter = people.normal(case.known.promoter)
    makers = {people.normal(maker) for maker in case.known.makers}
    others = (
        {people.normal(entry.person) for entry in case.known.approvals} - makers - {"", promoter}
    )
    verdict: verdicts.Outcome = "failed"
    if not makers or not promoter:
        verdict, said = "unknown", "nothing says who made these weights, or who promotes them"
    elif promoter in makers:
        said = f"{promoter} made these weights, and can't promote them: somebody else must"
    elif not others:
        said = f"nobody has approved these weights but who made or promotes them ({promoter})"
    else:
        verdict = "passed"
        said = f"approved by {', '.join(sorted(others))}, promoted by {promoter}"
    yield verdicts.Rule("four_eyes", len(others), 1, verdict, said)


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
    """Metrics that these weights were measured by; what was typed into a run is none."""
    champion = case.known.champion
    ours = choosing.numbers_of(case.rules, case.known.measurements)
    theirs = choosing.numbers_of(case.rules, champion.measurements) if champion else {}
    for name, asked in case.rules.metrics.items():
        key, limit, found = f"metric {name}", asked.text(), ours.get(name)
        if found is None:
            yield verdicts.Rule(key, None, limit, "unknown", _no_number(case, name, ours))
            continue
        if asked.greater_is_better != found.greater_is_better:
            why = (
                f"the policy takes {_MORE[asked.greater_is_better]} for better, and whoever "
                f"measured it {_MORE[found.greater_is_better]}; one of the two is wrong"
            )
            yield verdicts.Rule(key, found.value, limit, "unknown", why)
            continue
        other = theirs.get(name)
        if champion and asked.compares and (other is None or other.bases != found.bases):
            why = f"the champion {champion.uri} was not measured by {name} on the same data"
            yield verdicts.Rule(key, found.value, limit, "unknown", f"{why}; {_MEASURE_IT}")
            continue
        fault = thresholds.fault(name, asked, found.value, other.value if other else None)
        said = fault or f"of {found.origin}"
        yield verdicts.Rule(key, found.value, limit, "failed" if fault else "passed", said)


_MORE = {True: "more", False: "less"}
_MEASURE_IT = "run `evaluate` or `promote` with --evaluator"


def _no_number(case: Case, name: str, ours: Mapping[str, numbers.Number]) -> str:
    """Why a metric has no number that counts, and what to do."""
    longer = sorted(known for known in ours if known.startswith(f"{name}/"))
    if longer:
        return f"several tasks have a {name}; name one of {', '.join(longer)} or average_{name}"
    typed = case.known.metrics.get(name)
    if typed is not None:
        return (
            f"the run {typed.run_id} has {typed.value:g}, which anybody may have typed into it, so "
            f"that it does not count; {_MEASURE_IT}, which measures {name} and records by what"
        )
    aside = "; ".join(text for text in case.known.set_aside if f"{name} " in text)
    return f"these weights were not measured by {name}; {aside or _MEASURE_IT}"


EXAMINERS: tuple[Callable[[Case], Iterator[verdicts.Rule]], ...] = (
    examine_weights,
    examine_recalls,
    examine_averages,
    examine_floors,
    examine_regressions,
    examine_evidence,
    examine_verification,
    examine_licences,
    examine_approvals,
    examine_four_eyes,
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
    named = re.compile(r"(?:^| says that )[\w.-]+/(.+?) is ")
    found = ((text, named.search(text)) for text in set_aside)
    return [text for text, about in found if about is None or about[1] == task]
