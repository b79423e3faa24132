"""The receiver of the ledger's events that the environment names, or an option in its place."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_breadcrumbs.webhooks import outbox

URL, SECRET = "BREADCRUMBS_NOTIFY_URL", "BREADCRUMBS_NOTIFY_SECRET"
KINDS = "BREADCRUMBS_NOTIFY_KINDS"
OPTION = "--notify-secret-file"
"""Of the commands, in place of `SECRET`."""


def configured(
    url: str | None = None, secret_file: str | None = None, kinds: str | None = None
) -> "outbox.Receiver | None":
    """The receiver; `None` without a URL.

    Args:
        url: Wins over the environment's; an empty one is none.
        secret_file: Holds the secret, in place of the environment's.
        kinds: Of events, separated by commas; win over the environment's.

    Raises:
        HookError: The URL, or the secret, can be none.
    """
    url = url or os.environ.get(URL)
    if not url:
        return None
    from mlflow_breadcrumbs.webhooks import outbox, signatures

    secret = signatures.read_secret(secret_file, SECRET, OPTION)
    listed = kinds or os.environ.get(KINDS, "")
    chosen = tuple(kind.strip() for kind in listed.split(",") if kind.strip())
    return outbox.Receiver(url, secret, chosen)
