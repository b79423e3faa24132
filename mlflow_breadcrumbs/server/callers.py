"""Who asks the server for something, and what they may."""

import dataclasses
from collections.abc import Callable

import flask

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import accounts
from mlflow_breadcrumbs.server import visibility
from mlflow_breadcrumbs.support import people

UNKNOWN = "unknown"
"""Who asks a server without accounts and doesn't say their name."""


@dataclasses.dataclass(frozen=True)
class Caller:
    """Who asks."""

    account: str | None
    """Whom the server has authenticated; `None` on a server without accounts."""
    sight: visibility.Sight
    """What they may read."""
    may_edit: Callable[[str], bool]
    """Whether a registered model of this name, as setting its aliases asks for."""

    def asking(self, said: str) -> accounts.Asking:
        """In whose name something is done: the account's, else by what they say themselves.

        Raises:
            LedgerError: the name can't be anybody's.
        """
        if self.account is not None:
            return accounts.Asking(self.account, vouched=True)
        if said and (fault := people.fault(said)):
            raise errors.LedgerError(f"the user's name {said!r} can't be taken: {fault}")
        return accounts.Asking(said or UNKNOWN, vouched=False)


def anybody() -> Caller:
    """Who asks a server without accounts, which lets everybody do everything."""
    return Caller(None, visibility.everything(), lambda name: True)


def forgery() -> tuple[int, str] | None:
    """Why a request may be another site's, sent by the browser of somebody who trusts this one.

    Browsers send forms without asking, but JSON only to their own site. Where they say from which
    site a page is (Sec-Fetch-Site), no page can make them say another, and that alone decides: a
    proxy before this server may have rewritten its host. Else the page's origin must be this host.

    Returns:
        The status and the sentence; `None` for a request that can't be forged so.
    """
    asked = flask.request
    if asked.mimetype != "application/json":
        return 415, "send JSON, with Content-Type: application/json"
    origin, site = asked.headers.get("Origin"), asked.headers.get("Sec-Fetch-Site")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = origin is None or origin.partition("://")[2] == asked.host
    return None if own else (403, f"a page of {origin or 'another site'} can't ask for this")
