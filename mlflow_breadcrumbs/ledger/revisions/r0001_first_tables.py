"""The index, the events and the ledger's own row."""

import datetime
import uuid

import sqlalchemy as sql
from alembic.operations import Operations

from mlflow_breadcrumbs.ledger import migrations

revision = "0001"
down_revision = None

INDEXES = {
    "breadcrumbs_ledger": (),
    "breadcrumbs_versions": ("model_id",),
    "breadcrumbs_edges": ("parent", "model_id"),
    "breadcrumbs_events": ("name", "subject"),
    "breadcrumbs_open_intents": (),
}


def upgrade(op: Operations) -> None:
    """Make the tables, or take them over."""
    if migrations.take_over(op, 1, INDEXES):
        return
    ledger = op.create_table(
        "breadcrumbs_ledger",
        sql.Column("id", sql.String(36), primary_key=True),
        sql.Column("created", sql.String(32), nullable=False),
        sql.Column("synced", sql.BigInteger),
    )
    op.create_table(
        "breadcrumbs_versions",
        sql.Column("uri", sql.Text, primary_key=True),
        sql.Column("name", sql.Text),
        sql.Column("number", sql.Integer),
        sql.Column("kind", sql.Text, nullable=False),
        sql.Column("tasks", sql.Text, nullable=False),
        sql.Column("weights_digest", sql.Text),
        sql.Column("recipe_digest", sql.Text),
        sql.Column("model_id", sql.Text),
        sql.Column("run_id", sql.Text),
        sql.Column("created", sql.BigInteger, nullable=False),
        sql.Column("updated", sql.BigInteger, nullable=False),
    )
    op.create_table(
        "breadcrumbs_edges",
        sql.Column("child", sql.Text, primary_key=True),
        sql.Column("position", sql.Integer, primary_key=True, autoincrement=False),
        sql.Column("parent", sql.Text, nullable=False),
        sql.Column("role", sql.Text, nullable=False),
        sql.Column("model_id", sql.Text),
    )
    op.create_table(
        "breadcrumbs_events",
        sql.Column("sequence", sql.BigInteger, primary_key=True, autoincrement=False),
        sql.Column("previous", sql.String(71), nullable=False, unique=True),
        sql.Column("hash", sql.String(71), nullable=False),
        sql.Column("name", sql.Text, nullable=False),
        sql.Column("subject", sql.Text),
        sql.Column("body", sql.Text, nullable=False),
    )
    op.create_table(
        "breadcrumbs_open_intents",
        sql.Column("sequence", sql.BigInteger, primary_key=True, autoincrement=False),
    )
    for table, columns in INDEXES.items():
        for column in columns:
            op.create_index(f"{table}_{column}", table, [column])
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    op.bulk_insert(ledger, [{"id": str(uuid.uuid4()), "created": now, "synced": None}])
