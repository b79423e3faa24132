"""Ledgers of releases before Alembic are taken over, once, with the same answers."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys

import ledgers
import mlflow.db
import postgres
import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from together import run_together

from mlflow_breadcrumbs import cli, errors, ledger
from mlflow_breadcrumbs.ledger import chain, migrations, schema, stores

RELEASES = (1, 2)


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def open_at_once(uri, gate):
    """What each process of the tests does."""
    gate.wait()
    with stores.opened(uri) as opened, opened.reading() as connection:
        assert chain.verify(connection).problem is None


def differences(connection):
    """What Alembic would have to change to get from the tables to the schema."""
    settings = {"version_table": migrations.VERSION_TABLE, "compare_type": True}
    ours = {"include_name": lambda name, kind, _: kind != "table" or name != "migrations"}
    context = MigrationContext.configure(connection, opts=settings | ours)
    return compare_metadata(context, schema.Base.metadata)


def only_in_the_wording(difference):
    """What SQLite does alike, however it was declared.

    A key without NOT NULL; and UNIQUE beside a VARCHAR, which SQLAlchemy does not find in the text.
    """
    if not isinstance(difference, list):
        return difference[0] == "add_constraint" and difference[1].columns.keys() == ["previous"]
    what, _, table, column, *_ = difference[0]
    return (
        what == "modify_nullable"
        and column in schema.Base.metadata.tables[table].primary_key.columns
    )


@pytest.fixture
def registry(store):
    """The versions that the ledgers of before are about, in a registry of now."""
    client = mlflow.MlflowClient()
    for version in ledgers.described()["versions"]:
        client.create_registered_model(version["name"])
        client.create_model_version(version["name"], "nowhere", tags=version["tags"])
        for alias in version["aliases"]:
            client.set_registered_model_alias(version["name"], alias, "1")
    return store


@pytest.mark.parametrize("release", RELEASES)
def test_every_command_that_reads_a_ledger_answers_as_before(registry, ledger_uri, release):
    ledgers.place(release, ledger_uri)
    for question in ledgers.described()["answers"]:
        result = run(*question["command"])
        assert result.exit_code == 0, (question["command"], result.output)
        assert json.loads(result.stdout) == question["answer"], question["command"]
    # Nothing is noticed that the old release had not seen: its table of aliases came along.
    synced = json.loads(run("ledger", "sync", "--full", "--json").stdout)
    assert (synced["read"], synced["added"], synced["removed"]) == (6, 0, 0)
    assert synced["noticed"] == []
    assert run("watch", "--once").exit_code == 0
    ledger.set_alias("merged", "champion", "1")
    assert run("ledger", "verify").exit_code == 0


@pytest.mark.parametrize("release", RELEASES)
def test_the_tables_become_those_that_the_schema_declares(ledger_uri, release):
    ledgers.place(release, ledger_uri)
    with stores.opened() as opened, opened.reading() as connection:
        found = differences(connection)
        if connection.dialect.name == "sqlite":
            found = [each for each in found if not only_in_the_wording(each)]
        assert found == []
        left = set(sql.inspect(connection).get_table_names()) - set(schema.Base.metadata.tables)
        assert left == {migrations.VERSION_TABLE, "migrations"}
    columns = "name, subject, body, hash, previous"
    with (
        pytest.raises(errors.LedgerError, match=r"(?i)unique"),
        stores.opened() as opened,
        opened.writing() as connection,
    ):
        connection.execute(
            sql.text(
                f"INSERT INTO breadcrumbs_events (sequence, {columns}) "
                f"SELECT 99, {columns} FROM breadcrumbs_events WHERE sequence = 1"
            )
        )


def test_a_new_ledger_has_no_table_without_our_prefix(ledger_uri):
    with stores.opened() as opened, opened.reading() as connection:
        assert differences(connection) == []
        names = sql.inspect(connection).get_table_names()
        assert all(name.startswith(migrations.PREFIX) for name in names)


def test_the_known_revisions_are_the_files():
    folder = str(migrations.FOLDER)
    scripts = ScriptDirectory(folder, version_locations=[folder])
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == (
        migrations.REVISIONS
    )


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("release", RELEASES)
def test_processes_at_once_take_it_over_once(ledger_uri, release, empty):
    ledgers.place(release, ledger_uri, empty=empty)
    run_together(open_at_once, (ledger_uri,), 4)
    with stores.opened() as opened, opened.reading() as connection:
        rows = connection.execute(sql.text(f"SELECT * FROM {migrations.VERSION_TABLE}")).all()
        assert rows == [(migrations.REVISIONS[-1],)]
        assert len(connection.scalars(sql.select(schema.LedgerRow.id)).all()) == 1


@pytest.mark.parametrize("release", RELEASES)
def test_a_take_over_between_two_questions_is_no_newer_release(
    postgres_server, release, monkeypatch
):
    """Where readers see each commit, the next answer may be of after another's take-over."""
    uri = postgres.schema(postgres_server, f"between_{release}")
    monkeypatch.setenv(stores.VARIABLE, uri)
    ledgers.place(release, uri)
    ask = migrations._numbers_before

    def meanwhile(connection):
        monkeypatch.setattr(migrations, "_numbers_before", ask)
        ledger.check()
        return ask(connection)

    monkeypatch.setattr(migrations, "_numbers_before", meanwhile)
    ledger.check()
    assert ledger.verify(in_mlflow=False).holds


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_before_leaves_a_ledger_alone_that_was_taken_over(ledger_uri, release):
    """It counts the rows of `migrations`, and knows two."""
    ledgers.place(release, ledger_uri)
    ledger.check()
    with stores.opened() as opened, opened.reading() as connection:
        assert connection.scalar(sql.text("SELECT max(number) FROM migrations")) == 3


@pytest.mark.parametrize("release", RELEASES)
def test_a_take_over_that_fails_leaves_everything_as_it_was(ledger_uri, release, monkeypatch):
    ledgers.place(release, ledger_uri)
    with monkeypatch.context() as patch:
        lock = migrations.lock

        def then_break(connection):
            lock(connection)
            connection.execute(sql.text("CREATE TABLE breadcrumbs_outbox (id INTEGER)"))

        patch.setattr(migrations, "lock", then_break)
        with pytest.raises(errors.LedgerError, match="can't be used"), stores.opened():
            pass
    engine = stores._engine(ledger_uri)
    with engine.connect() as connection:
        names = set(sql.inspect(connection).get_table_names())
    engine.dispose()
    assert not [name for name in names if name.startswith(migrations.PREFIX)]
    with stores.opened() as opened, opened.reading() as connection:
        assert chain.verify(connection).problem is None


def test_tables_of_other_programs_are_left_alone(ledger_uri):
    """A `migrations` and an `events` that are not ours, and Alembic's own table of MLflow."""
    theirs = {
        "alembic_version": "version_num VARCHAR(32)",
        "migrations": "number INTEGER, name TEXT, applied TEXT",
        "events": "id INTEGER",
    }
    engine = stores._engine(ledger_uri)
    with engine.connect() as connection:
        connection = connection.execution_options(writing=True)
        with connection.begin():
            for name, columns in theirs.items():
                connection.execute(sql.text(f"CREATE TABLE {name} ({columns})"))
            connection.execute(sql.text("INSERT INTO alembic_version VALUES ('theirs')"))
            connection.execute(sql.text("INSERT INTO migrations VALUES (99, 'theirs', 'then')"))
    engine.dispose()
    ledger.check()
    with stores.opened() as opened, opened.reading() as connection:
        assert connection.execute(sql.text("SELECT * FROM alembic_version")).all() == [("theirs",)]
        assert connection.execute(sql.text("SELECT * FROM migrations")).all() == [
            (99, "theirs", "then")
        ]
        assert set(sql.inspect(connection).get_table_names()) >= set(theirs)


def test_a_ledger_in_mlflows_own_database(store, monkeypatch):
    monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", store)
    file = store.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        before = connection.execute("SELECT * FROM alembic_version").fetchall()
    ledger.set_alias(_registered(), "champion", "1")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT * FROM alembic_version").fetchall() == before
    # MLflow still upgrades and opens it.
    done = CliRunner().invoke(mlflow.db.commands, ["upgrade", store], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert ledger.verify().holds


def _registered():
    mlflow.MlflowClient().create_registered_model("m")
    mlflow.MlflowClient().create_model_version("m", "nowhere")
    return "m"


def test_a_ledger_that_is_up_to_date_is_opened_without_alembic(tmp_path):
    uri = f"sqlite:///{tmp_path}/ledger.db"
    shutil.copy(ledgers.ARTIFACTS / "ledger-2.db", tmp_path / "ledger.db")
    with ledger.using(uri):
        ledger.check()
    code = (
        "import sys\n"
        "from mlflow_breadcrumbs.ledger import stores\n"
        f"with stores.opened({uri!r}) as opened, opened.writing():\n"
        "    print('alembic.operations' in sys.modules, 'alembic.script' in sys.modules)\n"
    )
    # MLflow's own store imports Alembic; here it is not touched.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
