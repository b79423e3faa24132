"""Does what was promoted still hold? The live version, measured anew and held against its policy.

Made for a scheduler: it measures on images that were collected since, logs how far the accuracy
has drifted, and says no where a rule does not hold any more.
"""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.evaluation import evaluator_files
from mlflow_breadcrumbs.figures import studies
from mlflow_breadcrumbs.promotion import (
    decisions,
    drift,
    facts,
    gates,
    gathering,
    measuring,
    policies,
    predecessors,
    rollback,
    verdicts,
)
from mlflow_breadcrumbs.registry import aliases, projects, run_files, runs, uris, versions
from mlflow_breadcrumbs.support import defaults, progress, tables

KIND = "recheck"
HELD, BROKEN = "held", "broken"


@dataclasses.dataclass(frozen=True)
class RecheckRequest:
    """What a user asks for."""

    name: str
    alias: str
    tasks: str | None = None
    """A task file with the images to measure on."""
    rules: policies.Policy | None = None
    """The policy that the version was promoted by when left out."""
    roll_back: bool = False
    """Go back to the version before, if a rule has failed."""
    experiment: str = decisions.EXPERIMENT
    device: str = "auto"
    batch_size: int = defaults.BATCH_SIZE
    evaluator: evaluator_files.UserEvaluator | None = None
    """The user's own means of measuring, in place of a task file."""

    @property
    def measured_by(self) -> str | None:
        """The task file, or the evaluator's name."""
        return self.evaluator.description if self.evaluator else self.tasks


@dataclasses.dataclass(frozen=True)
class Recheck:
    """What came of it."""

    uri: str
    """Of the version that had the alias, pinned."""
    alias: str
    verdict: verdicts.Verdict
    drifts: tuple[drift.Drift, ...]
    run_id: str
    rollback: rollback.Rollback | None
    """What the rollback did, where one was due."""
    sentence: str

    @property
    def held(self) -> bool:
        """Whether every rule holds."""
        return self.verdict.passed

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "uri": self.uri,
            "alias": self.alias,
            "held": self.held,
            "sentence": self.sentence,
            "run_id": self.run_id,
            "rules": self.verdict.rows(),
            "drift": [entry.to_dict() for entry in self.drifts],
            "rollback": self.rollback.to_dict() if self.rollback else None,
        }


def recheck(request: RecheckRequest, *, show: progress.Progress = progress.silent) -> Recheck:
    """Measure the version that has an alias, judge it by the fresh measurements, and act on that.

    Raises:
        PromotionError: no version has the alias, or nothing says by which policy it got it.
        TaskError: the task file, or its images, are unusable.
        LedgerError: the ledger can't be written; nothing was measured.
        BreadcrumbsError: another of its kinds.
    """
    aliases.check_alias(request.alias)
    number = aliases.version_at(request.name, request.alias)
    if number is None:
        raise errors.PromotionError(
            f"no version of {request.name!r} has the alias {request.alias!r}, so there is nothing "
            "to recheck; see `mlflow-breadcrumbs history` for what it was"
        )
    resolved = versions.resolve(uris.of_version(request.name, number))
    ledger.check()
    promoted = predecessors.promoted(resolved, request.alias)
    rules = lasting(request.rules or _policy_of(resolved, request.alias, promoted))
    experiment = runs.experiment_named(request.experiment)
    said = {"alias": request.alias, "version": number, "policy_digest": rules.digest}
    title = f"recheck {resolved.uri}"
    with (
        projects.resumed(title) as project,
        runs.run(title, KIND, nested=True, experiment=experiment) as run_id,
        ledger.recording(
            KIND, request.name, run_id=run_id, subject=resolved.uri, details=said
        ) as job,
    ):
        known, fresh = _measure(request, resolved, rules, number, show)
        now = datetime.datetime.now(datetime.UTC)
        verdict = gates.judge(rules, fresh, now, tasks=request.measured_by)
        same = [e for e in known.measurements if e.split == rules.evidence.split]
        since = promoted.time if promoted else None
        found = tuple(drift.drifts(same, fresh.measurements, since))
        times = _promotions(request, number, since)
        _log(run_id, request, resolved, rules, fresh, verdict, found, same, times)
        sentence = _sentence(resolved, request.alias, verdict)
        decisions.tell(run_id, resolved, sentence, verdict)
        job.add(
            **said,
            weights_digest=known.weights_digest,
            verdict=HELD if verdict.passed else BROKEN,
            metrics={f"{e.scale.metric}/{e.task}": e.accuracy for e in fresh.measurements},
        )
    back = None
    if request.roll_back and any(rule.verdict == "failed" for rule in verdict.rules):
        back = rollback.rollback(request.name, request.alias, expected=number)
    if back is not None:
        sentence += f"; {back.sentence}"
    projects.point(title, sentence, version=resolved.uri, run_id=run_id, origin=project)
    return Recheck(resolved.uri, request.alias, verdict, found, run_id, back, sentence)


def lasting(rules: policies.Policy) -> policies.Policy:
    """The rules of a policy that a live version must go on to keep.

    Left out are those about the promotion itself (`freeze`, `four_eyes`), about the version that
    had the alias before (`no_regression`), and the digests of the images: fresh ones are others.
    """
    evidence = rules.evidence.model_copy(update={"data": {}})
    left_out = {"freeze": (), "four_eyes": False, "no_regression": None}
    return rules.model_copy(update=left_out | {"evidence": evidence})


def _policy_of(
    resolved: versions.ResolvedVersion, alias: str, promoted: predecessors.Promoted | None
) -> policies.Policy:
    """The policy that a version got its alias by."""
    text = run_files.read_text(promoted.decision, "policy.yaml") if promoted else None
    if text is None:
        raise errors.PromotionError(
            f"nothing says by which policy {resolved.uri} became {alias!r}: it was not promoted "
            "by this package, or the run of the decision is gone; give --policy FILE"
        )
    return policies.parse(text, f"the policy of {resolved.uri}'s promotion")


def _measure(
    request: RecheckRequest,
    resolved: versions.ResolvedVersion,
    rules: policies.Policy,
    number: str,
    show: progress.Progress,
) -> tuple[facts.Facts, facts.Facts]:
    """All facts, and the facts with the fresh measurements alone."""
    how = measuring.MeasuringSettings(
        request.device, request.batch_size, cache=False, evaluator=request.evaluator
    )
    known = gathering.gather(resolved, rules.on_accuracy(), number)
    plan = measuring.plan(how, request.tasks, resolved, rules, known, None)
    own, *_ = measuring.measure(how, request.tasks, plan.wanted, rules, show)
    known = gathering.gather(resolved, rules, number)
    if not rules.looks_at_accuracy:  # the drift is shown all the same
        measured = gathering.measured(resolved, rules, known.weights_digest)
        known = dataclasses.replace(
            known, measurements=measured.found, set_aside=measured.set_aside
        )
    fresh = tuple(entry for entry in known.measurements if entry.origin == f"run {own}")
    return known, dataclasses.replace(known, measurements=fresh)


def _sentence(resolved: versions.ResolvedVersion, alias: str, verdict: verdicts.Verdict) -> str:
    if verdict.passed:
        return f"{resolved.uri} keeps every rule that it became {alias} by"
    names = ", ".join(rule.name for rule in verdict.objections)
    return (
        f"{resolved.uri} is {alias}, and {len(verdict.objections)} of {len(verdict.rules)} rules "
        f"do not hold ({names})"
    )


def _log(
    run_id: str,
    request: RecheckRequest,
    resolved: versions.ResolvedVersion,
    rules: policies.Policy,
    fresh: facts.Facts,
    verdict: verdicts.Verdict,
    found: Sequence[drift.Drift],
    everything: Sequence[facts.Measurement],
    promotions: Sequence[datetime.datetime],
) -> None:
    """Metrics per task, the rules, the drift as a table, and all measurements as a picture."""
    rows = [entry.to_dict() for entry in found]
    measured = fresh.measurements
    limits = {entry.task: _limit(rules, entry) for entry in measured if drift.is_drawn(entry)}
    metrics = {f"{entry.scale.metric}/{entry.task}": entry.accuracy for entry in measured}
    metrics |= {f"drift/{entry.task}": entry.change for entry in found}
    files = {"drift.csv": tables.to_csv(rows).encode()}
    if picture := studies.over_time(drift.points(everything), limits, promotions):
        files["drift.png"] = picture
    decisions.log(
        run_id,
        resolved,
        request.alias,
        rules,
        verdict,
        params={"name": request.name, "alias": request.alias, "policy_digest": rules.digest},
        metrics=metrics,
        tags={decisions.TAG_DECISION: HELD if verdict.passed else BROKEN},
        facts={"drift": rows},
        files=files,
    )


def _limit(rules: policies.Policy, measured: facts.Measurement) -> float | None:
    """The accuracy below which a task breaks a rule about it; `None` where there is none."""
    floor = rules.floor(measured.task)
    if floor is None:
        return None
    limits = [floor.accuracy, floor.accuracy_low] if measured.scale.is_accuracy else []
    if floor.normalized_accuracy is not None and measured.finetuned_accuracy is not None:
        limits.append(floor.normalized_accuracy * measured.finetuned_accuracy)
    return max((limit for limit in limits if limit is not None), default=None)


def _promotions(
    request: RecheckRequest, number: str, tagged: datetime.datetime | None
) -> list[datetime.datetime]:
    """When the version got the alias: as the ledger has it, or else as its tag says."""
    moves = ledger.alias_changes(request.name, request.alias)
    known = [datetime.datetime.fromisoformat(move.latest) for move in moves if move.after == number]
    return known or ([tagged] if tagged else [])
