"""The ledger held against MLflow: heads that versions carry, and one version's events."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import sqlalchemy as sql

from mlflow_breadcrumbs.ledger import anchors, chain, events, sharing, stores
from mlflow_breadcrumbs.registry import catalog, uris, versions
from mlflow_breadcrumbs.support import progress, wording

MAKING = ("import", "finetune", "merge")
"""The kinds of events that make a version."""


@dataclasses.dataclass(frozen=True)
class LedgerCheck:
    """One thing that was checked about a version."""

    what: str
    """`ledger event`, `event chain` or `ledger head`."""
    status: Literal["ok", "changed", "missing", "unknown"]
    message: str


def verify(
    expected: str | None = None,
    *,
    in_mlflow: bool = True,
    show: progress.Progress = progress.silent,
) -> chain.ChainVerdict:
    """Walk the chain, and hold it against the heads that are kept elsewhere.

    Args:
        expected: A head that was kept outside, `SEQUENCE:HASH`.
        in_mlflow: Read the heads that all versions in the registry carry.
        show: Told about the versions that are read.

    Raises:
        LedgerError: The ledger can't be read, or `expected` is no head.
    """
    kept = {"the expected head": str(events.ChainHead.parse(expected))} if expected else {}
    mail = sharing.Mail()
    # First the heads, then the chain: what is added meanwhile makes the chain longer, not wrong.
    if in_mlflow:
        kept |= _heads_in_mlflow(mail, show)
    with stores.opened() as ledger, ledger.reading() as connection:
        verdict = chain.verify(connection, kept)
        problem = verdict.problem or sharing.fault(connection, mail)
    return dataclasses.replace(verdict, problem=problem)


def _heads_in_mlflow(mail: sharing.Mail, show: progress.Progress) -> dict[str, str]:
    """The head that each version in the registry carries, by the version's URI.

    Args:
        mail: Gets what the versions' tags say of events.
        show: Told about each page.

    Raises:
        RegistryError: The registry can't be read.
    """
    found: dict[str, str] = {}
    with show("read heads from MLflow", total=None, unit="versions") as advance:
        for page in catalog.tags():
            mail.add(page)
            for uri, tags in page:
                if text := tags.get(anchors.TAG_HEAD):
                    found[uri] = text
            advance(len(page))
    return found


def check_version(
    uri: str, weights_digest: str, verdict: chain.ChainVerdict | None = None
) -> tuple[LedgerCheck, ...]:
    """Hold one version against the ledger.

    Args:
        uri: Pinned, `models:/NAME/VERSION`.
        weights_digest: Of the weights as they are now.
        verdict: Of `verify`, where many versions are checked; without it the chain is walked.

    Returns:
        The checks of the event that made the version, of the chain, and of the head in its tags.
    """
    resolved = versions.resolve(uri)
    tags = resolved.tags
    sharing.look(resolved.name or uri)
    with stores.opened() as ledger, ledger.reading() as connection:
        about = _about(connection, uri)
        walked = verdict or chain.verify(connection)
        tag = tags.get(anchors.TAG_HEAD)
        against = chain.held(connection, {uri: tag}) if tag else None
    seen = against is not None and not against.foreign
    # Nothing is lost from a chain that holds up to the head that the version carries.
    lost = seen and bool(walked.problem or (against and against.problem))
    return (
        _check_event(uri, weights_digest, about, lost=lost),
        LedgerCheck("event chain", "changed", walked.problem)
        if walked.problem
        else LedgerCheck(
            "event chain",
            "ok",
            f"{wording.counted(walked.head.sequence, 'events')}, each follows the last",
        ),
        _check_head(uri, tag, against),
    )


def is_made(uri: str) -> bool:
    """Whether an event says that a version was made: imported, fine-tuned or merged."""
    if named := uris.registered(uri):
        sharing.look(named[0])
    with stores.opened() as ledger, ledger.reading() as connection:
        return bool(_making(events.of_version(connection, uri)))


def _about(connection: sql.Connection, uri: str) -> list[events.Event]:
    """A version's events, each with the actor who began the job."""
    named = uris.registered(uri)
    history = events.of_name(connection, named[0] if named else uri)
    return [event for event in events.credited(history) if event.subject == uri]


def _making(about: Sequence[events.Event]) -> list[events.Event]:
    """Of a version's events those that say that it was made."""
    return [event for event in about if event.kind in MAKING and event.phase == events.DONE]


def _check_event(
    uri: str, weights_digest: str, about: Sequence[events.Event], *, lost: bool
) -> LedgerCheck:
    """The event that made a version; `lost`: the ledger knew the version, and lacks events."""
    made = _making(about)
    if not made:
        return LedgerCheck(
            "ledger event",
            "missing" if lost else "unknown",
            f"no event says that {uri} was made"
            + ("" if lost else "; it may have been made elsewhere, or with another ledger"),
        )
    event = made[-1]
    recorded = event.details.get("weights_digest")
    when = wording.moment(event.time)
    what = f"event {event.sequence}, {event.kind} by {event.actor} at {when}"
    if recorded is None:
        return LedgerCheck("ledger event", "unknown", f"{what}, has no weights digest")
    if recorded != weights_digest:
        return LedgerCheck(
            "ledger event",
            "changed",
            f"{what}, has the weights {recorded}; they are now {weights_digest}",
        )
    return LedgerCheck("ledger event", "ok", what)


def _check_head(uri: str, tag: str | None, against: chain.ChainVerdict | None) -> LedgerCheck:
    if tag is None or against is None:
        return LedgerCheck("ledger head", "unknown", f"{uri} has no tag {anchors.TAG_HEAD}")
    if against.foreign:
        return LedgerCheck("ledger head", "unknown", f"{tag} is the head of another ledger")
    if against.problem:
        return LedgerCheck("ledger head", "changed", against.problem)
    return LedgerCheck("ledger head", "ok", f"{tag} is in the chain")
