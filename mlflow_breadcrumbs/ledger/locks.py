"""One at a time, over all processes that use a ledger: reading, judging and moving is one step.

On PostgreSQL a lock of the database's own, per registered model, which ends with its connection;
beside a SQLite ledger a file, for all models.
"""

import contextlib
from collections.abc import Iterator

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
def held(name: str) -> Iterator[None]:
    """Be the only one who decides about a registered model.

    Raises:
        PromotionError: others do, and don't come to an end.
        LedgerError: The ledger can't be used.
    """
    with stores.opened() as ledger, contextlib.ExitStack() as stack:
        try:
            if ledger.file is not None:
                stack.enter_context(filelock.FileLock(f"{ledger.file}{SUFFIX}", PATIENCE))
            else:
                _lock(stack.enter_context(ledger.reading()), name)
        except (filelock.Timeout, exc.OperationalError) as error:
            raise errors.PromotionError(
                f"others decide about {name!r}, and there is no end to it; try again when they are "
                "done"
            ) from error
        yield


def _lock(connection: sql.Connection, name: str) -> None:
    """Take PostgreSQL's advisory lock until the transaction ends."""
    number = int(canonical.digest({"decides": name}).removeprefix("sha256:")[:15], 16)
    connection.execute(sql.text(f"SET LOCAL lock_timeout = '{PATIENCE}s'"))
    connection.execute(sql.text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
