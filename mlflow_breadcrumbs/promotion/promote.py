"""A version gets an alias, if its policy lets it and nobody was faster.

Read `promote` from top to bottom; everything below it is one of its steps. Facts and verdict come
first and change nothing. Then the decision is written, as a run in MLflow and as an event in the
ledger, and only then is the alias moved, if it is still where it was when the decision began.
"""

import dataclasses
import datetime
import logging
from typing import Any, Literal

import mlflow
import requests
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.evaluation import evaluator_files
from mlflow_breadcrumbs.ledger import alias_moves, journal
from mlflow_breadcrumbs.promotion import (
    decisions,
    facts,
    gates,
    gathering,
    guards,
    measuring,
    policies,
    predecessors,
    verdicts,
)
from mlflow_breadcrumbs.registry import aliases, projects, runs, versions
from mlflow_breadcrumbs.support import defaults, progress

Result = Literal["promoted", "refused", "lost"]

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PromotionRequest:
    """What a user asks for."""

    uri: str
    """Of the version, `models:/NAME/VERSION` or by an alias."""
    alias: str
    rules: policies.Policy
    tasks: str | None = None
    """A task file, to measure what is missing or too old; without it nothing is measured."""
    evaluator: evaluator_files.UserEvaluator | None = None
    """The user's own means of measuring that, in place of a task file."""
    expected: str | alias_moves.Anywhere | None = alias_moves.ANYWHERE
    """The version that must have the alias now; `None`: none must. Left out: the one that has it
    when the decision begins."""
    experiment: str = decisions.EXPERIMENT
    dry_run: bool = False
    """Measure, write and move nothing; say what would be measured."""
    device: str = "auto"
    batch_size: int = defaults.BATCH_SIZE
    cache: bool = True
    """Take what was measured before: evidence that is on record, accuracies of the user's cache."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What came of it."""

    name: str
    alias: str
    version: str
    result: Result
    """`lost`: the policy let it through, and the alias was moved by somebody else meanwhile."""
    before: str | None
    """The version that had the alias when the decision began."""
    verdict: verdicts.Verdict
    policy_digest: str
    weights_digest: str
    sentence: str
    run_id: str | None
    """The MLflow run of the decision; `None` of a dry run."""
    would_measure: tuple[measuring.Wanted, ...] = ()
    """Of a dry run: what would be evaluated before the verdict that counts."""
    recorded: tuple[measuring.Recorded, ...] = ()
    """What needed no evaluation beside what did: it was on record."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "verdict"
        }
        fields["would_measure"] = [
            {"uri": each.uri, "tasks": list(each.tasks)} for each in self.would_measure
        ]
        fields["recorded"] = [dataclasses.asdict(each) for each in self.recorded]
        return fields | {"rules": self.verdict.rows()}


def promote(
    request: PromotionRequest,
    *,
    now: datetime.datetime | None = None,
    show: progress.Progress = progress.silent,
) -> Decision:
    """Decide whether a version may have an alias, record that, and move the alias.

    Where the registry's server guards the alias, it decides, by its own policy; what a task file or
    an evaluator can measure for that is measured here before.

    However a call is stopped, the alias is at one version, and the next call writes into the
    history what became of it.

    Args:
        request: what is asked for.
        now: the time of the decision, with its time zone; by the clock when left out.
        show: is told about what is measured.

    Raises:
        RegistryError: the version can't be read, or MLflow refused something.
        PolicyError: the server's policy for this alias is another one.
        PromotionError: another process is moving the alias, and does not come to an end.
        LedgerError: the ledger can't be written; nothing was moved.
        BreadcrumbsError: another of its kinds; the alias was not moved.
    """
    aliases.check_alias(request.alias)
    resolved = _resolve(request.uri)
    offer = guards.offered(str(resolved.name), request.alias)
    if offer is not None:
        return _ask(offer, request, resolved, now, show)
    ledger.check()
    seen = aliases.version_at(str(resolved.name), request.alias)
    expected = seen if isinstance(request.expected, alias_moves.Anywhere) else request.expected
    title = f"promote {resolved.uri} to {request.alias}"
    with projects.resumed(title):
        known, verdict, plan = _judge(request, resolved, seen, now, show)
        if request.dry_run:
            result, sentence = _foresee(verdict, resolved, request.alias, seen, expected)
            run_id = None
        else:
            result, sentence, run_id = _decide(request, title, resolved, expected, known, verdict)
            projects.point(title, sentence, version=resolved.uri, run_id=run_id)
    return Decision(
        name=str(resolved.name),
        alias=request.alias,
        version=str(resolved.version),
        result=result,
        before=seen,
        verdict=verdict,
        policy_digest=request.rules.digest,
        weights_digest=known.weights_digest,
        sentence=sentence,
        run_id=run_id,
        would_measure=plan.wanted if request.dry_run else (),
        recorded=plan.recorded,
    )


def _ask(
    offer: guards.Offer,
    request: PromotionRequest,
    resolved: versions.ResolvedVersion,
    now: datetime.datetime | None,
    show: progress.Progress,
) -> Decision:
    """Measure what the server's judgement could lack, and have it judge."""
    name, alias = str(resolved.name), request.alias
    if offer.rules is None or offer.rules.digest != request.rules.digest:
        raise errors.PolicyError(
            f"{name}@{alias} moves by the policy of the server, and the policy that was given is "
            f"another one ({request.rules.digest}); leave it out"
        )
    if request.experiment != decisions.EXPERIMENT:
        raise errors.PromotionError(
            f"the server that guards {name}@{alias} keeps its decisions in "
            f"{decisions.EXPERIMENT!r}; leave the experiment out"
        )
    fields: dict[str, Any] = {"version": str(resolved.version)}
    if not isinstance(request.expected, alias_moves.Anywhere):
        fields["expected"] = request.expected
    title = f"promote {resolved.uri} to {alias}"
    plan = measuring.Plan()
    with projects.resumed(title):
        if request.tasks or request.evaluator:
            seen = aliases.version_at(name, alias)
            _, _, plan = _judge(request, resolved, seen, now, show)
        said = offer.take("promote", fields | {"dry_run": request.dry_run})
        if said["run_id"] is not None:
            run_id = str(said["run_id"])
            projects.point(title, said["sentence"], version=resolved.uri, run_id=run_id)
    rules = tuple(guards.record(verdicts.Rule, row) for row in said["rules"])
    return guards.record(
        Decision,
        said,
        verdict=verdicts.Verdict(rules),
        would_measure=plan.wanted if request.dry_run else (),
        recorded=plan.recorded,
    )


def _resolve(uri: str) -> versions.ResolvedVersion:
    """The version, pinned: what its alias does meanwhile changes nothing."""
    resolved = versions.resolve(uri)
    if resolved.name is None:
        raise errors.PromotionError(
            f"{resolved.uri} is not registered, and only a version can have an alias; register it"
        )
    return resolved


def _judge(
    request: PromotionRequest,
    resolved: versions.ResolvedVersion,
    champion: str | None,
    now: datetime.datetime | None,
    show: progress.Progress,
) -> tuple[facts.Facts, verdicts.Verdict, measuring.Plan]:
    """The facts and the verdict; where a measurement could change it, measured and judged again.

    The third is what was measured, or would be, were this no dry run.
    """
    rules, file, own = request.rules, request.tasks, request.evaluator
    by = own.description if own else file
    known = gathering.gather(resolved, rules, champion)
    verdict = gates.judge(rules, known, now or _now(), tasks=by)
    whole = known.recorded_digest in (None, known.weights_digest)
    wanted = verdict.wants_measurements or (own is not None and verdict.wants_metrics)
    if by is None or not whole or not wanted:
        return known, verdict, measuring.Plan()
    since = (now or _now()) if request.cache else None
    how = measuring.MeasuringSettings(request.device, request.batch_size, request.cache, own)
    plan = measuring.plan(how, file, resolved, rules, known, since)
    if plan.wanted and not request.dry_run:
        measuring.measure(how, file, plan.wanted, rules, show)
        known = gathering.gather(resolved, rules, champion)
        verdict = gates.judge(rules, known, now or _now(), tasks=by)
    return known, verdict, plan


def _decide(
    request: PromotionRequest,
    title: str,
    resolved: versions.ResolvedVersion,
    expected: str | None,
    known: facts.Facts,
    verdict: verdicts.Verdict,
) -> tuple[Result, str, str]:
    """Write the decision, act on it, write what came of it; result, sentence and run."""
    name = str(resolved.name)
    said = {
        "alias": request.alias,
        "version": resolved.version,
        "policy_digest": request.rules.digest,
        "weights_digest": known.weights_digest,
    }
    experiment = runs.experiment_named(request.experiment)
    with (
        runs.run(title, "promotion", nested=True, experiment=experiment) as run_id,
        ledger.recording(
            "promotion", name, run_id=run_id, subject=resolved.uri, details=said
        ) as job,
    ):
        _log(run_id, request, resolved, expected, known, verdict)
        if verdict.passed:
            result, sentence = _move(request, resolved, expected, run_id, job)
        else:
            result, sentence = "refused", _refusal(resolved, request.alias, expected, verdict)
        job.add(**said, verdict=result, decision=run_id)
        _say(run_id, result)
        decisions.tell(run_id, resolved, sentence, verdict)
    return result, sentence, run_id


def _say(run_id: str, result: Result) -> None:
    """Tag the run with what came of the decision. It is done: that this fails is logged."""
    try:
        mlflow.MlflowClient().set_tag(run_id, decisions.TAG_DECISION, result)
    except (MlflowException, requests.RequestException) as error:
        _logger.warning("the run %s has no tag %s: %s", run_id, decisions.TAG_DECISION, error)


def _move(
    request: PromotionRequest,
    resolved: versions.ResolvedVersion,
    expected: str | None,
    run_id: str,
    job: journal.Recording,
) -> tuple[Result, str]:
    """Move the alias, if it is where it is expected."""
    name, version, alias = str(resolved.name), str(resolved.version), request.alias
    if aliases.version_at(name, alias) == version and (
        expected == version or predecessors.was_last(name, alias, expected, version, "promote")
    ):
        if predecessors.tag(alias) not in resolved.tags:  # a promotion was stopped before its end
            predecessors.mark(name, alias, version, run_id)
        return "promoted", f"{resolved.uri} is {alias} already"
    try:
        with job.deciding():
            before = ledger.move(
                name,
                alias,
                version,
                because="promote",
                expected=expected,
                details={
                    "decision": run_id,
                    "policy_digest": request.rules.digest,
                    "cause": job.intent,
                },
                run_id=run_id,
            )
    except errors.RaceError as error:
        return "lost", f"{resolved.uri} passed, but came too late: {error}"
    predecessors.mark(name, alias, version, run_id)
    instead = "" if before is None else f", in place of version {before}"
    return "promoted", f"{resolved.uri} is {alias} now{instead}"


def _foresee(
    verdict: verdicts.Verdict,
    resolved: versions.ResolvedVersion,
    alias: str,
    seen: str | None,
    expected: str | None,
) -> tuple[Result, str]:
    """What would come of it, if it were meant."""
    if not verdict.passed:
        return "refused", _refusal(resolved, alias, seen, verdict)
    if seen != expected:
        found, wanted = (f"version {at}" if at else "no version" for at in (seen, expected))
        return "lost", f"{alias} is at {found}, and was expected at {wanted}"
    return "promoted", f"{resolved.uri} would become {alias}"


def _refusal(
    resolved: versions.ResolvedVersion, alias: str, live: str | None, verdict: verdicts.Verdict
) -> str:
    names = ", ".join(rule.name for rule in verdict.objections)
    what = f"is {alias} already, and" if live == resolved.version else f"does not become {alias}:"
    return (
        f"{resolved.uri} {what} {len(verdict.objections)} of "
        f"{len(verdict.rules)} rules have not passed ({names})"
    )


def _log(
    run_id: str,
    request: PromotionRequest,
    resolved: versions.ResolvedVersion,
    expected: str | None,
    known: facts.Facts,
    verdict: verdicts.Verdict,
) -> None:
    """The decision, for people with MLflow alone, before anything is moved."""
    values = {
        "name": resolved.name,
        "version": resolved.version,
        "alias": request.alias,
        "expected": expected or "none",
        "policy_digest": request.rules.digest,
        "weights_digest": known.weights_digest,
    }
    counts = {
        f"rules_{kind}": float(sum(rule.verdict == kind for rule in verdict.rules))
        for kind in ("passed", "failed", "unknown")
    }
    numbers = {
        rule.name: float(rule.value)
        for rule in verdict.rules
        if isinstance(rule.value, int | float)
    }
    decisions.log(
        run_id,
        resolved,
        request.alias,
        request.rules,
        verdict,
        params=values,
        metrics=counts | numbers,
        tags={decisions.TAG_POLICY: request.rules.digest},
        facts={"facts": known.to_dict()},
    )
    if resolved.model_id is not None:
        models = [LoggedModelInput(resolved.model_id)]
        mlflow.MlflowClient().log_inputs(run_id, models=models)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
