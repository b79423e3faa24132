"""What is known of aliases, and what came in and went out by webhook."""

import sqlalchemy as sql
from alembic.operations import Operations

from mlflow_breadcrumbs.ledger import alias_state, migrations

revision = "0002"
down_revision = "0001"

INDEXES = {
    "breadcrumbs_aliases": (),
    "breadcrumbs_looks": (),
    "breadcrumbs_receipts": (),
    "breadcrumbs_outbox": (),
}


def upgrade(op: Operations) -> None:
    """Make the tables and fill that of the aliases from the events, or take them over."""
    if migrations.take_over(op, 2, INDEXES):
        return
    op.create_table(
        "breadcrumbs_aliases",
        sql.Column("name", sql.Text, primary_key=True),
        sql.Column("alias", sql.Text, primary_key=True),
        sql.Column("version", sql.Text),
        sql.Column("since", sql.String(32), nullable=False),
        sql.Column("sequence", sql.BigInteger, nullable=False),
    )
    op.create_table(
        "breadcrumbs_looks",
        sql.Column("name", sql.Text, primary_key=True),
        sql.Column("time", sql.String(32), nullable=False),
    )
    op.create_table(
        "breadcrumbs_receipts",
        sql.Column("id", sql.Text, primary_key=True),
        sql.Column("received", sql.String(32), nullable=False),
        sql.Column("event", sql.BigInteger),
    )
    op.create_table(
        "breadcrumbs_outbox",
        sql.Column("receiver", sql.String(71), primary_key=True),
        sql.Column("sequence", sql.BigInteger, nullable=False),
        sql.Column("attempts", sql.Integer, nullable=False),
        sql.Column("due", sql.String(32), nullable=False),
        sql.Column("claimed", sql.String(32), nullable=False),
        sql.Column("error", sql.Text),
    )
    alias_state.fill(op.get_bind())
