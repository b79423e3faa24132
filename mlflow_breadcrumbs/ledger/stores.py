"""Where the ledger is, and how its database is opened, read and written."""

import contextlib
import contextvars
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import platformdirs
import sqlalchemy as sql
from sqlalchemy import exc

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import migrations, schema

VARIABLE = "BREADCRUMBS_LEDGER_URI"
FILE = "breadcrumbs-ledger.db"
BUSY_SECONDS = 60
"""How long a writer waits for the others."""

_served: contextvars.ContextVar[bool] = contextvars.ContextVar("ledger_served", default=False)
_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("ledger_uri", default=None)


@contextlib.contextmanager
def using(uri: str) -> Iterator[None]:
    """Take this ledger, in this context: what `--ledger-uri` does."""
    token = _chosen.set(uri)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Be the registry's server, in this context: its users can't see a ledger that is a file."""
    token = _served.set(True)
    try:
        yield
    finally:
        _served.reset(token)


def is_served() -> bool:
    """Whether this is done by the registry's server, for somebody who asked it."""
    return _served.get()


def location() -> str:
    """The ledger's URI: chosen by `using`, else the environment's, else beside the registry.

    Beside a SQLite registry it is a file in the same folder. A registry behind a server has no
    folder here: a file of its own under the user's data folder, so that a team wants PostgreSQL.
    """
    if given := _chosen.get() or os.environ.get(VARIABLE):
        return given
    registry_uri = mlflow.get_registry_uri()
    if registry_uri.startswith("sqlite:///"):
        database = sql.make_url(registry_uri).database or ""
        return f"sqlite:///{Path(database).parent / FILE}"
    short = hashlib.sha256(registry_uri.encode()).hexdigest()[:12]
    return f"sqlite:///{_data_folder(f'ledger-{short}.db') / f'ledger-{short}.db'}"


def is_file() -> bool:
    """Whether the ledger is a file: then others may have ledgers of their own."""
    return location().startswith("sqlite:")


def is_private() -> bool:
    """Whether the ledger is a file of this machine, and the registry is not, or is served from it.

    Then others who use the registry can't see the ledger, and `sharing` is needed.
    """
    here = mlflow.get_registry_uri().startswith(("sqlite:", "file:", "/", "."))
    return is_file() and (_served.get() or not here)


def _data_folder(file: str) -> Path:
    """Where this system keeps a user's data; or where `file` is already.

    Releases before put it where Linux does, on every system, and took a relative $XDG_DATA_HOME.
    """
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    before = data / "mlflow-breadcrumbs"
    if (before / file).exists():
        return before
    return platformdirs.user_data_path("mlflow-breadcrumbs", appauthor=False)


class Store:
    """An open ledger's database; every transaction has a connection of its own."""

    def __init__(self, engine: sql.Engine) -> None:
        self._engine = engine

    @property
    def place(self) -> str:
        """Where it is, without a password."""
        return self._engine.url.render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """The file that it is; `None` where it is a server's."""
        url = self._engine.url
        return Path(url.database or "") if url.get_backend_name() == "sqlite" else None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        """A transaction that reads."""
        with self._explained(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sql.Connection]:
        """A transaction that writes; there is one at a time, in all processes together."""
        with self.writing_unlocked() as connection:
            connection.execute(sql.select(schema.LedgerRow.id).with_for_update())
            yield connection

    @contextlib.contextmanager
    def writing_unlocked(self) -> Iterator[sql.Connection]:
        """A transaction that writes, before there is a row to lock."""
        with self._explained(), self._engine.connect() as connection:
            connection = connection.execution_options(writing=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except exc.SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise errors.LedgerError(
                f"the ledger {self.place} can't be used: {cause}. Check --ledger-uri or "
                f"{VARIABLE}, and that the database runs and this user may write to it"
            ) from error


@contextlib.contextmanager
def opened(uri: str | None = None) -> Iterator[Store]:
    """Open the ledger, made or brought up to date where it must be.

    Raises:
        LedgerError: It can't be reached or written, or a newer release made it.
    """
    engine = _engine(uri or location())
    try:
        store = Store(engine)
        with store.reading() as connection:
            pending = migrations.is_pending(connection)
        if pending:
            with store.writing_unlocked() as connection:
                migrations.apply(connection)
        yield store
    finally:
        engine.dispose()


def _engine(uri: str) -> sql.Engine:
    try:
        url = sql.make_url(uri)
    except exc.ArgumentError as error:
        shown = f"***@{uri.rpartition('@')[2]}" if "@" in uri else uri
        raise errors.LedgerError(
            f"{shown!r} is no ledger's URI; write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from error
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise errors.LedgerError(
            f"a ledger can't be kept in {url.get_backend_name()!r}; write sqlite:///FILE or "
            "postgresql://USER@HOST/DATABASE"
        )
    try:
        return sql.create_engine(
            url.set(drivername="postgresql+psycopg"),
            poolclass=sql.NullPool,
            connect_args={"connect_timeout": 10, "client_encoding": "utf8"},
        )
    except ModuleNotFoundError as error:
        raise errors.LedgerError(
            "a ledger in PostgreSQL requires the 'postgres' extra. Install it with "
            "`pip install 'mlflow-breadcrumbs[postgres]'`"
        ) from error


def _sqlite(url: sql.URL) -> sql.Engine:
    if not url.database or url.database == ":memory:":
        raise errors.LedgerError("a ledger must outlive its process; write sqlite:///FILE")
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.LedgerError(
            f"the folder of the ledger {url.database} can't be made: {error.strerror}. "
            f"Set {VARIABLE} to a place that this user may write to"
        ) from error
    engine = sql.create_engine(url, poolclass=sql.NullPool, connect_args={"timeout": BUSY_SECONDS})

    @sql.event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        # The driver's own transactions begin late and leave out CREATE TABLE; ours are explicit.
        connection.isolation_level = None

    @sql.event.listens_for(engine, "begin")
    def _(connection: sql.Connection) -> None:
        writing = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine
