"""Who registered a version, as the registry's server with accounts saw it.

What a merge recorded was recorded on the merger's machine, under whatever name that has. The server
knows the account that registered the version, and writes an event of its own, vouched. It stays in
the server's ledger: a tag can't vouch for anybody, and whoever decides by it reads this ledger.
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import events, stores
from mlflow_breadcrumbs.registry import uris

KIND = "register"

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Registration:
    """A version that was made through the server, or was given its digest."""

    name: str
    """The registered model."""
    number: str
    account: str
    """Whom the server has authenticated."""
    weights_digest: str | None
    """As its tag says; `None` without one."""
    copy_of: str | None
    """The version that it is a copy of, `models:/NAME/VERSION`."""

    @property
    def uri(self) -> str:
        """Of the version."""
        return uris.of_version(self.name, self.number)


def keep(batch: Sequence[Registration]) -> None:
    """Write who registered these versions, but for accounts whose name no history can have.

    Raises:
        LedgerError: The ledger can't be used; nothing was written.
    """
    if not batch:
        return
    with stores.opened() as ledger, ledger.writing() as connection:
        for seen in batch:
            try:
                actor = events.actor_of(seen.account)
            except errors.LedgerError as error:
                _logger.warning("who registered %s is not written down: %s", seen.uri, error)
                continue
            details = {
                "weights_digest": seen.weights_digest,
                "copy_of": seen.copy_of,
                events.VOUCHED: True,
            }
            draft = events.Draft(
                actor=actor,
                kind=KIND,
                phase=events.DONE,
                name=seen.name,
                subject=seen.uri,
                details=details,
            )
            events.append(connection, draft)


def registrants(
    history: Iterable[events.Event], uri: str, weights_digest: str | None
) -> tuple[str, ...]:
    """The actors who registered a version, or others with its weights, in order.

    Who copied a version that somebody was seen to register has only copied it.

    Args:
        history: Events about the version, and about weights with this digest.
        uri: Of the version.
        weights_digest: Of its weights.
    """
    vouched = [
        event
        for event in history
        if event.kind == KIND and event.details.get(events.VOUCHED) is True
    ]
    same = [event for event in vouched if _digest(event) == weights_digest is not None]
    originals = {event.subject for event in same}
    seen = [event for event in vouched if event.subject == uri or event in same]
    own = [event.actor for event in seen if event.details.get("copy_of") not in originals]
    return tuple(dict.fromkeys(own))


def _digest(event: events.Event) -> str | None:
    found = event.details.get("weights_digest")
    return found if isinstance(found, str) else None
