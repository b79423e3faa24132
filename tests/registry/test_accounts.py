"""Who somebody is: by the server's account, else by this machine."""

import getpass

import mlflow
import pytest
import zoos

from mlflow_breadcrumbs.registry import accounts


@pytest.fixture
def asking(monkeypatch):
    """Take a registry, with what names a user in the environment."""
    previous = mlflow.get_tracking_uri()

    def take(uri, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        zoos.use(uri)

    yield take
    zoos.use(previous)


def test_a_database_has_no_accounts(store, asking):
    asking(store, MLFLOW_TRACKING_USERNAME="ann")
    assert accounts.account() is None
    assert accounts.user() == getpass.getuser()


def test_a_server_without_accounts_takes_the_name_that_is_sent(server, asking):
    asking(server)
    assert accounts.user() == getpass.getuser()
    asking(server, MLFLOW_TRACKING_USERNAME="ann", MLFLOW_TRACKING_PASSWORD="secret")
    assert accounts.user() == "ann"


def test_a_server_that_does_not_answer_is_no_reason_to_forget_the_name(asking):
    asking("http://eve:secret@127.0.0.1:1")
    assert accounts.user() == "eve"
