"""The tables. `revisions` makes them; a test holds the two against each other.

Their names have a prefix, since a ledger may share its database with MLflow.
"""

from sqlalchemy import BigInteger, Index, MetaData, String, Table, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """What all tables belong to."""

    metadata = MetaData()


class LedgerRow(Base):
    """The one row that says which ledger this is; writers lock it."""

    __tablename__ = "breadcrumbs_ledger"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    """A random UUID; the first event follows its digest."""
    created: Mapped[str] = mapped_column(String(32))
    synced: Mapped[int | None] = mapped_column(BigInteger)
    """The newest update of a version that the index knows, in milliseconds."""


class VersionRow(Base):
    """The index: a version of the registry, as `graph.Version`."""

    __tablename__ = "breadcrumbs_versions"
    __table_args__ = (Index("breadcrumbs_versions_model_id", "model_id"),)

    uri: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str | None] = mapped_column(Text)
    number: Mapped[int | None]
    kind: Mapped[str] = mapped_column(Text)
    tasks: Mapped[str] = mapped_column(Text)
    """A JSON list."""
    weights_digest: Mapped[str | None] = mapped_column(Text)
    recipe_digest: Mapped[str | None] = mapped_column(Text)
    model_id: Mapped[str | None] = mapped_column(Text)
    run_id: Mapped[str | None] = mapped_column(Text)
    created: Mapped[int] = mapped_column(BigInteger)
    updated: Mapped[int] = mapped_column(BigInteger)


class EdgeRow(Base):
    """The index: what a version was made from, as `graph.Edge`."""

    __tablename__ = "breadcrumbs_edges"
    __table_args__ = (
        Index("breadcrumbs_edges_parent", "parent"),
        Index("breadcrumbs_edges_model_id", "model_id"),
    )

    child: Mapped[str] = mapped_column(Text, primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    model_id: Mapped[str | None] = mapped_column(Text)


class EventRow(Base):
    """The history: never changed. `body` is what is hashed; the other columns are for searching."""

    __tablename__ = "breadcrumbs_events"
    __table_args__ = (
        Index("breadcrumbs_events_name", "name"),
        Index("breadcrumbs_events_subject", "subject"),
    )

    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    previous: Mapped[str] = mapped_column(String(71), unique=True)
    """The hash of the event before; unique, so that two writers can't fork the chain."""
    hash: Mapped[str] = mapped_column(String(71))
    name: Mapped[str] = mapped_column(Text)
    subject: Mapped[str | None] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)


class OpenIntentRow(Base):
    """The intents without an outcome: an index, so that they are found without a scan."""

    __tablename__ = "breadcrumbs_open_intents"

    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


class AliasRow(Base):
    """Where each alias pointed when an event last said so; see `alias_state`."""

    __tablename__ = "breadcrumbs_aliases"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    alias: Mapped[str] = mapped_column(Text, primary_key=True)
    version: Mapped[str | None] = mapped_column(Text)
    """None where it was removed."""
    since: Mapped[str] = mapped_column(String(32))
    sequence: Mapped[int] = mapped_column(BigInteger)
    """Of the event that said so."""


class LookRow(Base):
    """When the aliases of a registered model, or of all, were last held against the registry."""

    __tablename__ = "breadcrumbs_looks"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    time: Mapped[str] = mapped_column(String(32))


class ReceiptRow(Base):
    """A webhook that was received: each is taken once."""

    __tablename__ = "breadcrumbs_receipts"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    """The delivery's, which the sender chose."""
    received: Mapped[str] = mapped_column(String(32))
    event: Mapped[int | None] = mapped_column(BigInteger)
    """The event that tells the same change: another delivery needs another event."""


class OutboxRow(Base):
    """How far the events were delivered to a receiver outside."""

    __tablename__ = "breadcrumbs_outbox"

    receiver: Mapped[str] = mapped_column(String(71), primary_key=True)
    """The digest of its URL, which may hold a secret."""
    sequence: Mapped[int] = mapped_column(BigInteger)
    """Of the last event that it took, or that is none of its kinds."""
    attempts: Mapped[int]
    """In vain, at the event after that."""
    due: Mapped[str] = mapped_column(String(32))
    """When the next attempt may be made."""
    claimed: Mapped[str] = mapped_column(String(32))
    """Until when a process has it to itself."""
    error: Mapped[str | None] = mapped_column(Text)
    """Why the last attempt was in vain."""


def table(entity: type[Base]) -> Table:
    """The table of a class."""
    found = entity.__table__
    assert isinstance(found, Table)
    return found
