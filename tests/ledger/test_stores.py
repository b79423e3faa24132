"""Where the ledger is, its tables, and several writers at once, on SQLite and PostgreSQL."""

import shutil
import sqlite3
import sys
from pathlib import Path

import ledgers
import postgres
import pytest
import sqlalchemy as sql
from together import run_together

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import chain, events, migrations, schema, stores


def draft(number=0, **changes):
    fields = {"actor": "ann@here", "kind": "import", "phase": "done", "name": f"model-{number}"}
    return events.Draft(**(fields | changes))


def write(uri, count, gate):
    """What each process of the tests does."""
    gate.wait()
    for number in range(count):
        with stores.opened(uri) as opened, opened.writing() as connection:
            events.append(connection, draft(number))


def test_writers_at_once_make_one_ledger_with_one_chain(ledger_uri):
    run_together(write, (ledger_uri, 15), 4)
    with stores.opened() as opened, opened.reading() as connection:
        verdict = chain.verify(connection)
        assert connection.scalar(sql.select(sql.func.count()).select_from(schema.LedgerRow)) == 1
        rows = connection.scalars(sql.text(f"SELECT version_num FROM {migrations.VERSION_TABLE}"))
        assert rows.all() == [migrations.REVISIONS[-1]]
    assert (verdict.problem, verdict.head.sequence) == (None, 60)


def test_the_migrations_make_the_tables_that_the_schema_declares(ledger_uri, tmp_path):
    with stores.opened() as opened, opened.reading() as connection:
        made = sql.inspect(connection)
        declared = set(schema.Base.metadata.tables)
        assert set(made.get_table_names()) == declared | {migrations.VERSION_TABLE}
        for name, declared in schema.Base.metadata.tables.items():
            columns = {column["name"]: column for column in made.get_columns(name)}
            assert set(columns) == set(declared.columns.keys())
            for column in declared.columns:
                kind = columns[column.name]["type"].compile(connection.dialect)
                assert kind == column.type.compile(connection.dialect)
            keys = made.get_pk_constraint(name)["constrained_columns"]
            assert set(keys) == set(declared.primary_key.columns.keys())
            assert {index["name"] for index in made.get_indexes(name)} >= {
                index.name for index in declared.indexes
            }


def test_a_migration_that_fails_leaves_nothing_behind(ledger_uri, monkeypatch, tmp_path):
    with stores.opened():
        pass
    folder = tmp_path / "revisions"
    shutil.copytree(migrations.FOLDER, folder)
    (folder / "r0003_broken.py").write_text(BROKEN)
    monkeypatch.setattr(migrations, "FOLDER", folder)
    monkeypatch.setattr(migrations, "REVISIONS", (*migrations.REVISIONS, "0003"))
    with pytest.raises(errors.LedgerError, match="can't be used"), stores.opened():
        pass
    monkeypatch.undo()
    monkeypatch.setenv(stores.VARIABLE, ledger_uri)
    with stores.opened() as opened, opened.reading() as connection:
        assert not sql.inspect(connection).has_table("half")
        assert not migrations.is_pending(connection)


BROKEN = """
revision = "0003"
down_revision = "0002"


def upgrade(op):
    op.execute("CREATE TABLE half (id INTEGER)")
    op.execute("CREATE NONSENSE")
"""


def test_a_ledger_of_a_newer_release_is_left_alone(ledger_uri):
    with stores.opened() as opened, opened.writing() as connection:
        connection.execute(sql.text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '0099'"))
    with pytest.raises(errors.LedgerError, match=r"newer release.*migration 0099.*Upgrade"):
        ledger.check()


def test_a_ledger_of_a_newer_release_before_alembic_is_left_alone(ledger_uri):
    ledgers.place(2, ledger_uri)
    engine = postgres.engine(ledger_uri)
    with engine.connect() as connection:
        connection.execute(sql.text("INSERT INTO migrations VALUES (99, 'later', '2030-01-01')"))
    with pytest.raises(errors.LedgerError, match=r"newer release.*migration 99.*Upgrade"):
        ledger.check()


def test_it_lies_beside_a_registry_in_sqlite(zoo, monkeypatch, tmp_path):
    monkeypatch.delenv(stores.VARIABLE, raising=False)
    assert stores.location() == f"sqlite:///{tmp_path}/{stores.FILE}"
    monkeypatch.setenv(stores.VARIABLE, "sqlite:///env.db")
    assert stores.location() == "sqlite:///env.db"
    with ledger.using("sqlite:///given.db"):
        assert stores.location() == "sqlite:///given.db"


def test_behind_a_server_it_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv(stores.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("mlflow.get_registry_uri", lambda: "http://tracking:5000")
    one = stores.location()
    assert one.startswith(f"sqlite:///{tmp_path}/mlflow-breadcrumbs/ledger-")
    monkeypatch.setattr("mlflow.get_registry_uri", lambda: "http://other:5000")
    assert stores.location() != one
    ledger.check()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
def test_on_linux_it_stays_where_it_was(monkeypatch, tmp_path):
    monkeypatch.delenv(stores.VARIABLE, raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("mlflow.get_registry_uri", lambda: "http://tracking:5000")
    folder = tmp_path / ".local" / "share" / "mlflow-breadcrumbs"
    file = folder / "ledger-58f901250959.db"
    assert stores.location() == f"sqlite:///{file}"


def test_a_ledger_where_releases_before_put_it_is_found_on_every_system(monkeypatch, tmp_path):
    monkeypatch.delenv(stores.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setattr("mlflow.get_registry_uri", lambda: "http://tracking:5000")
    elsewhere = stores.location()
    before = Path("relative", "mlflow-breadcrumbs", elsewhere.rpartition("/")[2])
    before.parent.mkdir(parents=True)
    before.touch()
    assert elsewhere != stores.location() == f"sqlite:///{before}"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("nonsense", "'nonsense' is no ledger's URI; write sqlite:///FILE"),
        ("mysql://root@localhost/x", "a ledger can't be kept in 'mysql'"),
        ("sqlite://", "must outlive its process"),
        ("sqlite:////proc/none/ledger.db", r"the folder of the ledger /proc/none/ledger.db can't"),
        (
            "postgresql://ann:secret@127.0.0.1:9/x",
            r"postgresql\+psycopg://ann:\*\*\*@127.0.0.1:9/x can't be used: .*Check --ledger-uri",
        ),
    ],
)
def test_a_ledger_that_cannot_be_reached_is_explained(uri, words):
    with ledger.using(uri), pytest.raises(errors.LedgerError, match=words) as caught:
        ledger.check()
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_ledger_is_explained(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"no database at all, only text" * 100)
    with (
        ledger.using(f"sqlite:///{tmp_path}/ledger.db"),
        pytest.raises(errors.LedgerError, match="file is not a database"),
    ):
        ledger.check()


def test_the_database_itself_refuses_a_fork(tmp_path):
    uri = f"sqlite:///{tmp_path}/ledger.db"
    with stores.opened(uri) as opened, opened.writing() as connection:
        events.append(connection, draft())
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        (previous,) = connection.execute("SELECT previous FROM breadcrumbs_events").fetchone()
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(
                "INSERT INTO breadcrumbs_events (sequence, previous, hash, name, body) "
                "VALUES (2, ?, 'x', 'x', 'x')",
                (previous,),
            )
