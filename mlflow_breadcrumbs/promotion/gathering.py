"""The facts about a version, gathered from MLflow and the ledger.

The ledger's part comes out of a chain that was walked first, and holds. Which measurements count
is for `witnesses`.
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator

from mlflow.entities import Run

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.audit import verify
from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.promotion import approvals, facts, policies, recalls, witnesses
from mlflow_breadcrumbs.registry import accounts, uris, versions
from mlflow_breadcrumbs.support import people

_logger = logging.getLogger(__name__)


def gather(
    resolved: versions.ResolvedVersion, rules: policies.Policy, champion: str | None
) -> facts.Facts:
    """What a policy asks about a version; what no rule asks for is left out.

    Args:
        resolved: the version.
        rules: the policy.
        champion: number of the version that has the alias.

    Raises:
        RegistryError: the version can't be read, or the tracking server does not answer.
        CheckpointError: its weights are no checkpoint any more.
        LedgerError: the ledger can't be read, or its chain does not hold.
    """
    digest = contents.digest_of(resolved)
    stated = contents.lineage_of(resolved)
    live = _live(resolved, champion)
    made_from = (digest, *_made_from(resolved, stated))
    known = [*made_from, *([live.weights_digest] if live and live.weights_digest else [])]
    books = _books(resolved, rules, known)
    measured = witnesses.Measured()
    if rules.looks_at_accuracy or rules.metrics:
        measured = witnesses.measurements(resolved, digest, stated, books)
    if rules.needs_normalized and isinstance(stated, statement.Statement):
        measured = witnesses.with_denominators(measured, stated, books)
    if live is not None:
        live = _compared(live, rules, books)
    name, history = resolved.name or "", books.history
    by_people = rules.approvals or rules.four_eyes
    return facts.Facts(
        uri=resolved.uri,
        weights_digest=digest,
        recorded_digest=resolved.recorded_digest,
        tasks=_tasks(resolved, stated),
        measurements=measured.found,
        set_aside=measured.set_aside,
        champion=live,
        verification=_verification(resolved.uri) if rules.verified else None,
        licences=tuple(_licences(resolved, stated)) if rules.licences else (),
        approvals=approvals.standing(name, digest, history, vouched=accounts.is_vouched())
        if by_people
        else (),
        makers=approvals.makers(resolved, digest, history) if by_people else (),
        promoter=people.normal(accounts.user()) if rules.four_eyes else "",
        metrics=_metrics(resolved, witnesses.runs_about(digest)) if rules.metrics else {},
        recalled=recalls.counting(history, made_from),
    )


def _made_from(
    resolved: versions.ResolvedVersion, stated: statement.Statement | errors.BreadcrumbsError
) -> tuple[str, ...]:
    """The digests of all weights that a version descends from, by its lineage and by the tags."""
    stated_inputs = stated.inputs if isinstance(stated, statement.Statement) else ()
    listed = [entry.weights_digest for entry in stated_inputs]
    return tuple(dict.fromkeys([*listed, *recalls.ancestry(resolved.uri)]))


def _tasks(
    resolved: versions.ResolvedVersion, stated: statement.Statement | errors.BreadcrumbsError
) -> tuple[str, ...]:
    """The tasks of a version: those of its tag, and of its lineage, which can't be edited away."""
    merged = stated.sources if isinstance(stated, statement.Statement) else ()
    listed = (*resolved.tasks, *(task for source in merged for task in source.tasks))
    return tuple(dict.fromkeys(listed))


def measured(
    resolved: versions.ResolvedVersion, rules: policies.Policy, weights_digest: str
) -> witnesses.Measured:
    """Every measurement of a version's weights, whether or not a rule asks for any.

    Raises:
        RegistryError: the tracking server does not answer.
        LedgerError: the ledger can't be read, or its chain does not hold.
    """
    stated = contents.lineage_of(resolved)
    books = _books(resolved, rules, _with_sources(weights_digest, stated))
    return witnesses.measurements(resolved, weights_digest, stated, books)


def denominators(
    resolved: versions.ResolvedVersion, rules: policies.Policy, known: facts.Facts
) -> dict[tuple[str, facts.Basis], witnesses.Denominator]:
    """What is recorded of the sources, by task and basis of the measurement; nothing without any.

    Raises:
        RegistryError: the tracking server does not answer.
        LedgerError: the ledger can't be read, or its chain does not hold.
    """
    stated = contents.lineage_of(resolved)
    if not isinstance(stated, statement.Statement):
        return {}
    books = _books(resolved, rules, _with_sources(known.weights_digest, stated))
    found, _ = witnesses.denominators(witnesses.Measured(known.measurements), stated, books)
    return found


def _with_sources(
    weights_digest: str, stated: statement.Statement | errors.BreadcrumbsError
) -> list[str]:
    """The digests of a version and of its sources."""
    sources = stated.sources if isinstance(stated, statement.Statement) else ()
    return [weights_digest, *(source.weights_digest for source in sources)]


def _books(
    resolved: versions.ResolvedVersion, rules: policies.Policy, digests: Iterable[str]
) -> witnesses.Books:
    """What the ledger has about a version's registered model, and about some weights."""
    history = ledger.proven(resolved.name or "", frozenset(digests))
    return witnesses.Books(history, required=rules.evidence.in_ledger)


def _live(resolved: versions.ResolvedVersion, number: str | None) -> facts.Champion | None:
    """The version that has the alias."""
    if number is None:
        return None
    uri = uris.of_version(str(resolved.name), number)
    try:
        live = versions.resolve(uri)
    except errors.UnreachableError:
        raise
    except errors.RegistryError as error:
        _logger.warning("%s has the alias, and can't be read: %s", uri, error)
        return facts.Champion(uri, None, ())
    return facts.Champion(uri, live.recorded_digest, live.tasks)


def _compared(
    champion: facts.Champion, rules: policies.Policy, books: witnesses.Books
) -> facts.Champion:
    """The version that has the alias, with what the rules compare with."""
    digest = champion.weights_digest
    if digest is None:
        return champion
    live = versions.resolve(champion.uri)
    measured = witnesses.Measured()
    if rules.needs_champion:
        measured = witnesses.measurements(live, digest, contents.lineage_of(live), books)
    return dataclasses.replace(champion, measurements=measured.found, set_aside=measured.set_aside)


def _verification(uri: str) -> facts.Verification:
    report = verify.verify(uri)
    return facts.Verification(
        failures=tuple(f"{entry.name}: {entry.detail}" for entry in report.failures),
        right=report.counts["ok"],
        unknown=report.counts["unknown"],
    )


def _licences(
    resolved: versions.ResolvedVersion, stated: statement.Statement | errors.BreadcrumbsError
) -> Iterator[facts.Licence]:
    """The licences of the base and of each source; of the version itself where none is known.

    A source that is a merge and has no licence of its own counts by what it was made from. Where a
    tag changed since the merge, both licences are given.
    """
    if not isinstance(stated, statement.Statement):
        yield facts.Licence(resolved.uri, "version", versions.licence_of(resolved))
        return
    for entry in stated.inputs:
        now: str | None = None
        inner: statement.Statement | errors.BreadcrumbsError | None = None
        try:
            source = versions.resolve(entry.uri)
            now = versions.licence_of(source)
            if now is None and entry.licence is None:
                inner = contents.lineage_of(source)
        except errors.UnreachableError:
            raise
        except errors.RegistryError:
            pass  # deleted since: what the lineage recorded stands
        if isinstance(inner, statement.Statement):
            yield from _licences(source, inner)
            continue
        names = {name: None for name in (entry.licence, now) if name is not None}
        for name in names or (None,):
            yield facts.Licence(entry.uri, entry.role, name)


def _metrics(resolved: versions.ResolvedVersion, runs: Iterable[Run]) -> dict[str, facts.Metric]:
    """The metrics of the run that made a version and of the runs about its weights, newest last."""
    made = contents.run_of(resolved)
    everything = [*([made] if made else []), *reversed(list(runs))]
    return {
        name: facts.Metric(value, run.info.run_id)
        for run in everything
        for name, value in run.data.metrics.items()
    }
