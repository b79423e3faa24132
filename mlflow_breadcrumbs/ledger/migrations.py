"""How the tables came to be: each step runs once, in one transaction with the row that says so.

A step that was released is never edited; a change is a new step at the end.
"""

import datetime
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import sqlalchemy as sql

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import alias_state, schema


class Step(NamedTuple):
    """One migration, in SQL that SQLite and PostgreSQL both take."""

    name: str
    statements: Sequence[str]
    fill: Callable[[sql.Connection], None] | None = None
    """Fills new tables from old ones."""


STEPS: Sequence[Step] = (
    Step(
        "the index, the events and the ledger's own row",
        (
            "CREATE TABLE ledger (id VARCHAR(36) PRIMARY KEY, created VARCHAR(32) NOT NULL, "
            "synced BIGINT)",
            "CREATE TABLE versions (uri TEXT PRIMARY KEY, name TEXT, number INTEGER, "
            "kind TEXT NOT NULL, tasks TEXT NOT NULL, weights_digest TEXT, recipe_digest TEXT, "
            "model_id TEXT, run_id TEXT, created BIGINT NOT NULL, updated BIGINT NOT NULL)",
            "CREATE INDEX versions_model_id ON versions (model_id)",
            "CREATE TABLE edges (child TEXT NOT NULL, position INTEGER NOT NULL, "
            "parent TEXT NOT NULL, role TEXT NOT NULL, model_id TEXT, "
            "PRIMARY KEY (child, position))",
            "CREATE INDEX edges_parent ON edges (parent)",
            "CREATE INDEX edges_model_id ON edges (model_id)",
            "CREATE TABLE events (sequence BIGINT PRIMARY KEY, "
            "previous VARCHAR(71) NOT NULL UNIQUE, hash VARCHAR(71) NOT NULL, "
            "name TEXT NOT NULL, subject TEXT, body TEXT NOT NULL)",
            "CREATE INDEX events_name ON events (name)",
            "CREATE INDEX events_subject ON events (subject)",
            "CREATE TABLE open_intents (sequence BIGINT PRIMARY KEY)",
        ),
    ),
    Step(
        "what is known of aliases, and what came in and went out by webhook",
        (
            "CREATE TABLE aliases (name TEXT NOT NULL, alias TEXT NOT NULL, version TEXT, "
            "since VARCHAR(32) NOT NULL, sequence BIGINT NOT NULL, PRIMARY KEY (name, alias))",
            "CREATE TABLE looks (name TEXT PRIMARY KEY, time VARCHAR(32) NOT NULL)",
            "CREATE TABLE receipts (id TEXT PRIMARY KEY, received VARCHAR(32) NOT NULL, "
            "event BIGINT)",
            "CREATE TABLE outbox (receiver VARCHAR(71) PRIMARY KEY, sequence BIGINT NOT NULL, "
            "attempts INTEGER NOT NULL, due VARCHAR(32) NOT NULL, claimed VARCHAR(32) NOT NULL, "
            "error TEXT)",
        ),
        alias_state.fill,
    ),
)

_FIRST = (
    "CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, "
    "applied VARCHAR(32) NOT NULL)"
)
_LOCK = 7_216_311_403
"""Of PostgreSQL's advisory locks, any number that is ours: there is no row to lock yet."""


def pending(connection: sql.Connection) -> int:
    """How many steps this database lacks.

    Raises:
        LedgerError: A newer release of this package made it.
    """
    if not sql.inspect(connection).has_table("migrations"):
        return len(STEPS)
    applied = connection.scalar(sql.select(sql.func.max(schema.Migration.number))) or 0
    if applied > len(STEPS):
        raise errors.LedgerError(
            f"the ledger was made by a newer release: it has the migration {applied}, this one "
            f"knows {len(STEPS)}. Upgrade mlflow-breadcrumbs"
        )
    return len(STEPS) - applied


def lock(connection: sql.Connection) -> None:
    """Wait until no other process migrates; SQLite's write transaction is the lock there."""
    if connection.dialect.name == "postgresql":
        connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK)))


def apply_next(connection: sql.Connection) -> bool:
    """Run the next step, if there is one, in the caller's transaction; whether there was."""
    lock(connection)
    connection.execute(sql.text(_FIRST))
    number = len(STEPS) - pending(connection) + 1
    if number > len(STEPS):
        return False
    step = STEPS[number - 1]
    for statement in step.statements:
        connection.execute(sql.text(statement))
    if step.fill is not None:
        step.fill(connection)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if number == 1:
        connection.execute(
            sql.insert(schema.Ledger).values(id=str(uuid.uuid4()), created=now, synced=None)
        )
    connection.execute(
        sql.insert(schema.Migration).values(number=number, name=step.name, applied=now)
    )
    return True
