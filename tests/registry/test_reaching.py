"""A server or a database that nobody listens at, and accounts that may not: said at once."""

import mlflow
import pytest
import server_accounts
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.registry import database, permissions, reaching

NOWHERE = "http://127.0.0.1:9"


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Use a store for the length of a test."""
    previous = mlflow.get_tracking_uri()
    monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", f"sqlite:///{tmp_path}/ledger.db")
    yield zoos.use
    zoos.use(previous)


@pytest.mark.parametrize(
    "arguments",
    [
        ("lineage", "models:/m/1"),
        ("impact", "models:/m/1"),
        ("verify", "--all"),
        ("watch", "--once", "m"),
        ("rollback", "m", "--alias", "live"),
        ("approve", "m", "--version", "1"),
        ("ledger", "sync"),
        ("ledger", "verify"),
        ("hooks", "register", "--url", "http://h/"),
        ("merge", "--base", "models:/m/1", "--source", "models:/m/2", "--registered-model", "n"),
    ],
)
def test_a_server_that_is_gone_is_not_asked_again_and_again(use, monkeypatch, arguments):
    monkeypatch.setenv("BREADCRUMBS_WEBHOOK_SECRET", "a secret of some length")
    use(NOWHERE)
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    said = f"Error: the tracking server {NOWHERE} does not answer: Connection refused. Check"
    assert result.stderr.splitlines()[-1].startswith(said)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://nowhere.invalid", "the tracking server http://nowhere.invalid does not answer"),
        ("postgresql://127.0.0.1:9/x", "the database postgresql://127.0.0.1:9/x does not answer"),
        ("postgresql+psycopg://u:hunter2@127.0.0.1:9/x", "://u:***@127.0.0.1:9/x does not answer"),
    ],
)
def test_a_host_or_a_database_that_is_not_there(use, uri, words):
    use(uri)
    with pytest.raises(errors.UnreachableError) as caught:
        database.prepare()
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["sqlite:///x.db", "databricks", "postgresql:///x", "postgresql://a,b:1,c/x", "./mlruns"]
)
def test_what_names_no_host_is_left_to_mlflow(uri):
    reaching.check_listening(uri)


def test_a_server_behind_a_proxy_is_left_to_mlflow(monkeypatch):
    monkeypatch.setenv("http_proxy", NOWHERE)
    reaching.check_listening("http://nowhere.invalid")


@pytest.mark.slow
def test_accounts_that_may_not_are_told_before_anything_is_read(
    tmp_path, empty_database, monkeypatch, use
):
    with server_accounts.administered(tmp_path, empty_database, monkeypatch, ("eve",)):
        mlflow.set_experiment("merges")
        mlflow.MlflowClient().create_registered_model("ours")
        permissions.check("ours")
        assert mlflow.get_experiment_by_name("merges").tags == {}
        given = ("merge", "--base", "models:/m/1", "--source", "models:/m/2")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "eve")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "eve's password")
        result = run(*given, "--registered-model", "ours")
        assert "start a run in the experiment 'merges', which needs" in result.stderr
        assert "answered 403: the account in MLFLOW_TRACKING_USERNAME may not" in result.stderr
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "eves")
        zoos.use(mlflow.get_tracking_uri())
        result = run(*given, "--registered-model", "ours")
        assert "cannot make a version of 'ours', which needs the permission EDIT" in result.stderr
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another password")
        result = run("lineage", "models:/m/1")
        assert "answered 401: it does not take the account 'eve' with this" in result.stderr
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        result = run("lineage", "models:/m/1")
        assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or" in result.stderr
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
        result = run("lineage", "models:/m/1")
        assert "it does not take the token in MLFLOW_TRACKING_TOKEN" in result.stderr
        assert "hunter2" not in result.stderr
