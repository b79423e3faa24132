"""One at a time, over all processes that use a ledger: reading, judging and moving is one step.

On PostgreSQL a lock of the database's own, per registered model, which ends with its connection;
beside a SQLite ledger a file, for all models.
"""

import contextlib
from collections.abc import Collection, Iterator

import filelock
import sqlalchemy as sql
from sqlalchemy import exc

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import stores
from mlflow_breadcrumbs.support import canonical

SUFFIX = ".lock"
PATIENCE = 120
"""Seconds to wait for those before."""


@contextlib.contextmanager
def held(*names: str, within: int | None = None) -> Iterator[None]:
    """Be the only one who decides about some registered models.

    Args:
        names: Of the models.
        within: Seconds to wait for those before; `PATIENCE` when left out.

    Raises:
        PromotionError: others do, and don't come to an end.
        LedgerError: The ledger can't be used.
    """
    seconds = PATIENCE if within is None else within
    with stores.opened() as ledger, contextlib.ExitStack() as stack:
        try:
            if ledger.file is not None:
                stack.enter_context(filelock.FileLock(f"{ledger.file}{SUFFIX}", seconds))
            else:
                _lock(stack.enter_context(ledger.reading()), names, seconds)
        except (filelock.Timeout, exc.OperationalError) as error:
            listed = " and ".join(map(repr, names))
            raise errors.PromotionError(
                f"others decide about {listed}, and there is no end to it; try again when they are "
                "done"
            ) from error
        yield


def _lock(connection: sql.Connection, names: Collection[str], seconds: int) -> None:
    """Take PostgreSQL's advisory locks until the transaction ends, everybody in one order."""
    digests = (canonical.digest({"decides": name}) for name in set(names))
    numbers = sorted(int(digest.removeprefix("sha256:")[:15], 16) for digest in digests)
    connection.execute(sql.text(f"SET LOCAL lock_timeout = '{seconds}s'"))
    for number in numbers:
        connection.execute(sql.text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
