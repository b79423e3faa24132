"""Ledgers as releases before Alembic left them; see `artifacts/README.md`. Events by anybody."""

import contextlib
import json
import sqlite3
import uuid
from pathlib import Path

import postgres
import sqlalchemy as sql

from mlflow_breadcrumbs.ledger import events, letters
from mlflow_breadcrumbs.support import canonical

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"


def place(release: int, uri: str, *, empty: bool = False) -> None:
    """Put a ledger in a database, with its own statements, which both kinds of database take.

    Args:
        release: 1 has only the first of the two steps, 2 has both.
        uri: SQLite or PostgreSQL, with no ledger in it.
        empty: Without versions and events, as it is before anything was done.
    """
    kept = ("ledger", "migrations")
    engine = postgres.engine(uri)
    with (
        contextlib.closing(sqlite3.connect(ARTIFACTS / f"ledger-{release}.db")) as source,
        engine.connect() as connection,
    ):
        for (statement,) in source.execute(
            "SELECT sql FROM sqlite_master WHERE sql NOT NULL ORDER BY type DESC, name"
        ):
            connection.execute(sql.text(statement))
        for (table,) in source.execute(TABLES).fetchall():
            rows = source.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in rows.description]
            target = sql.table(table, *map(sql.column, names))
            found = [dict(zip(names, row, strict=True)) for row in rows]
            if found and not (empty and table not in kept):
                connection.execute(sql.insert(target), found)
    engine.dispose()


def described() -> dict:
    """The versions that the ledgers are about, and what that release answered about them."""
    return json.loads((ARTIFACTS / "ledger.json").read_text(encoding="utf-8"))


def letter(uri: str, kind: str, actor: str = "ann@laptop", **details: object) -> tuple[str, str]:
    """The key and the text of another ledger's event about a version, which says what it likes."""
    event = {
        "actor": actor,
        "kind": kind,
        "phase": "done",
        "name": uri.split("/")[1],
        "subject": uri,
        "run_id": None,
        "intent": None,
        "details": {"comment": "", "reason": "", "vouched": True} | details,
        "sequence": 1,
        "previous": "sha256:" + "0" * 64,
        "time": events.now(),
    }
    text = canonical.dumps({"event": event, "hash": canonical.digest(event)}).decode()
    return f"{letters.PREFIX}{uuid.uuid4()}/1", text
