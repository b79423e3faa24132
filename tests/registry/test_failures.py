"""A store that is full or can't be written: one message, the right disk, and no SQL."""

import errno
import os
import sqlite3
import tempfile
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.registry import failures


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def refusing(zoo, monkeypatch):
    """Make every connection to MLflow's database refuse what a full or read-only disk does."""
    import sqlalchemy

    mlflow.MlflowClient().search_experiments()

    def begin(pragma):
        def connected(connection, _):
            if isinstance(connection, sqlite3.Connection):
                file = connection.execute("PRAGMA database_list").fetchone()[2]
                if not file.endswith("own.db"):  # the ledger's
                    connection.execute(pragma)

        sqlalchemy.event.listen(
            sqlalchemy.Engine,
            "checkout",
            checkout := (lambda connection, record, proxy: connected(connection, record)),
        )
        used.append(checkout)

    used = []
    yield begin
    for checkout in used:
        sqlalchemy.event.remove(sqlalchemy.Engine, "checkout", checkout)


def imports(zoo):
    path = zoo.folder / "colours.safetensors"
    arguments = ("--architecture", zoo.architecture, "--registered-model", "more")
    return run("import", path, *arguments, "--ledger-uri", f"sqlite:///{Path.cwd()}/own.db")


def test_a_database_that_can_not_be_written(zoo, refusing):
    refusing("PRAGMA query_only = ON")
    result = imports(zoo)
    assert result.exit_code == 1, result.output
    assert "MLflow's database sqlite:///" in result.output
    assert "says: attempt to write a readonly database; let this user write to it" in result.output
    for word in ("[SQL", "INSERT", "parameters", "Traceback", "TMPDIR"):
        assert word not in result.output


def test_a_database_that_is_full(zoo, refusing):
    refusing("PRAGMA max_page_count = 1")  # SQLite takes the pages that there are for the least
    result = imports(zoo)
    for _ in range(50):
        if result.exit_code:
            break
        result = imports(zoo)  # the last pages had some room left
    assert result.exit_code == 1, result.output
    assert "says: database or disk is full; make room on its disk, then run" in result.output
    for word in ("[SQL", "INSERT", "parameters", "Traceback", "TMPDIR"):
        assert word not in result.output


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/store/artifacts/x", "make room there, then"),
        (
            os.path.join(tempfile.gettempdir(), "a", "x"),
            "another place for temporary files (TMPDIR)",
        ),
        (None, "make room where MLflow keeps its artifacts, then"),
    ],
)
def test_the_right_disk_is_named(store, path, words):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    said = str(failures.explain(error, "cannot log"))
    assert words in said
    assert ("TMPDIR" in said) == ("TMPDIR" in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(sqlite3.OperationalError) database or disk is full", "make room on its disk"),
        ("(sqlite3.OperationalError) disk I/O error", "see that it runs and can be written"),
        ("(psycopg.errors.DiskFull) could not extend file: No space left", "make room on its disk"),
    ],
)
def test_a_databases_words_without_its_statement(store, text, words):
    whole = (
        f"{text}\n[SQL: INSERT INTO runs VALUES (?)]\n[parameters: ('hunter2',)]\n(Background …)"
    )
    said = str(failures.explain(mlflow.MlflowException(whole), "cannot start a run"))
    assert said.startswith("cannot start a run: MLflow's database sqlite:///")
    assert words in said
    assert "hunter2" not in said
    assert "INSERT" not in said


def test_what_mlflow_raises_where_nobody_expects_it_is_one_message(store, monkeypatch):
    def raises(*_):
        raise mlflow.MlflowException("(x.Error) it broke\n[SQL: SELECT 1]")

    monkeypatch.setattr("mlflow_breadcrumbs.ledger.history", raises)
    result = run("history", "m")
    assert result.exit_code == 1
    assert result.output.startswith("Error: the command stopped: MLflow's database sqlite:///")
    assert "SELECT" not in result.output
