"""Brings a ledger's tables up to date, with Alembic; the steps are in `revisions`.

A ledger may share its database with MLflow, which is Alembic's user too. So every table of ours has
a prefix, Alembic's own included. All steps that a ledger lacks run in one transaction with the row
that says so. Alembic is imported only where there is something to do.

Releases before Alembic numbered two steps in a table `migrations`, and their tables had no prefix.
Such a ledger is taken over: its tables are renamed. `migrations` stays and gets a third row, which
tells those releases to leave it alone; without it they would find no ledger, and begin another.
"""

import contextlib
import datetime
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import revisions
from mlflow_breadcrumbs.support import scratch

if TYPE_CHECKING:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

PREFIX = "breadcrumbs_"
VERSION_TABLE = f"{PREFIX}alembic_version"
REVISIONS = ("0001", "0002")
"""All that this release knows, in order; a test holds them against the files in `revisions`."""

FOLDER = Path(__file__).with_name("revisions")

_LOCK = 7_216_311_403
"""Of PostgreSQL's advisory locks, any number that is ours: there is no row to lock yet."""

_VERSION = sql.table(VERSION_TABLE, sql.column("version_num", sql.String))
_BEFORE = sql.table(
    "migrations",
    sql.column("number", sql.Integer),
    sql.column("name", sql.Text),
    sql.column("applied", sql.String),
)
"""Where the releases before Alembic wrote down their steps."""
_STEPS_BEFORE = (
    "the index, the events and the ledger's own row",
    "what is known of aliases, and what came in and went out by webhook",
)
"""What those steps did, as they named it."""


def is_pending(connection: sql.Connection) -> bool:
    """Whether the database lacks a step.

    Raises:
        LedgerError: A newer release of this package made it.
    """
    found = _revision(connection)
    if found is None:
        last = max(_numbers_before(connection), default=0)
        if last <= len(_STEPS_BEFORE):
            return True
        # Another process may have taken it over between the two questions.
        found = _revision(connection)
        if found is None:
            raise _newer(str(last), str(len(_STEPS_BEFORE)))
    if found not in REVISIONS:
        raise _newer(found, REVISIONS[-1])
    return found != REVISIONS[-1]


def apply(connection: sql.Connection) -> None:
    """Run the steps that the database lacks, in the caller's writing transaction.

    The first of several processes does it; the others wait, and find nothing to do.
    """
    lock(connection)
    if is_pending(connection):
        _upgrade(connection)


def lock(connection: sql.Connection) -> None:
    """Wait until no other process migrates; SQLite's write transaction is the lock there."""
    if connection.dialect.name == "postgresql":
        connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK)))


def take_over(op: "Operations", step: int, indexes: Mapping[str, Sequence[str]]) -> bool:
    """Rename what a step of the releases before Alembic made; whether there was any of it.

    Args:
        op: Of the revision that makes the same tables.
        step: Its number then.
        indexes: The columns with an index, by table; the tables' names are those of now.
    """
    connection = op.get_bind()
    if step not in _numbers_before(connection):
        return False
    for name, columns in indexes.items():
        before = name.removeprefix(PREFIX)
        op.rename_table(before, name)
        for column in columns:
            op.drop_index(f"{before}_{column}", table_name=name)
            op.create_index(f"{name}_{column}", name, [column])
    if step == 1:
        connection.execute(
            sql.insert(_BEFORE).values(
                number=len(_STEPS_BEFORE) + 1,
                name=f"taken over; see {VERSION_TABLE}",
                applied=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
        )
    return True


def _upgrade(connection: sql.Connection) -> None:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    with _scripts() as folder:
        scripts = ScriptDirectory(str(folder), version_locations=[str(folder)])

        def steps(heads: Any, _: "MigrationContext") -> list[Any]:
            return scripts._upgrade_revs("head", heads)

        context = MigrationContext.configure(
            connection, opts={"fn": steps, "version_table": VERSION_TABLE}
        )
        # Not through `alembic.op`, which is one for all threads: MLflow may migrate in another one.
        context.run_migrations(op=Operations(context))


@contextlib.contextmanager
def _scripts() -> Iterator[Path]:
    """The folder of the steps; a copy of it, where this package runs from a version's archive."""
    if FOLDER.is_dir():
        yield FOLDER
        return
    with scratch.folder() as folder:
        for entry in resources.files(revisions).iterdir():
            (folder / entry.name).write_bytes(entry.read_bytes())
        yield folder


def _revision(connection: sql.Connection) -> str | None:
    """The last step that ran; `None` where Alembic ran none."""
    if not sql.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(sql.select(_VERSION.c.version_num))


def _numbers_before(connection: sql.Connection) -> list[int]:
    """The steps that a release before Alembic ran; none where `migrations` is another program's."""
    inspector = sql.inspect(connection)
    if not inspector.has_table(_BEFORE.name):
        return []
    if {column["name"] for column in inspector.get_columns(_BEFORE.name)} != set(_BEFORE.c.keys()):
        return []
    rows = connection.execute(sql.select(_BEFORE.c.number, _BEFORE.c.name)).all()
    names: dict[int, str] = {row.number: row.name for row in rows}
    return sorted(names) if names.get(1) == _STEPS_BEFORE[0] else []


def _newer(found: str, known: str) -> errors.LedgerError:
    return errors.LedgerError(
        f"the ledger was made by a newer release: it has the migration {found}, this one "
        f"knows {known}. Upgrade mlflow-breadcrumbs"
    )
