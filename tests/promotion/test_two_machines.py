"""One registry, three people on machines of their own, no database that they share.

In their containers all of them are `root`; the server knows them apart.
"""

import contextlib
import json

import mlflow
import pairs
import pytest
import server_accounts
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.registry import accounts, aliases

pytestmark = pytest.mark.slow

POLICY = """\
average_normalized_accuracy: 0
evidence: {in_ledger: true, max_age: 1 day}
verified: true
approvals: 1
"""


@pytest.fixture
def on(tmp_path, empty_database, light, monkeypatch):
    """Be on the machine of `ann`, `ben` or `cleo`: a home, a ledger and an account of its own."""
    monkeypatch.chdir(tmp_path)
    previous = mlflow.get_tracking_uri()

    @contextlib.contextmanager
    def machine(person):
        with monkeypatch.context() as patch:
            patch.setenv("HOME", str(tmp_path / person))
            patch.setenv("XDG_DATA_HOME", str(tmp_path / person / "data"))
            patch.setenv("LOGNAME", "root")
            server_accounts.sign_in(patch, person)
            zoos.use(uri)
            mlflow.set_experiment(f"of {person}")
            yield

    names = ("ann", "ben", "cleo")
    with server_accounts.serving(tmp_path / "server", empty_database, names=names) as uri:
        yield machine
        zoos.use(previous)


def allow(person):
    """Let somebody edit the model, and write about the models that `ann` has logged."""
    experiment = mlflow.get_experiment_by_name("of ann").experiment_id
    with server_accounts.admin(mlflow.get_tracking_uri()) as client:
        client.grant_user_permission(person, "registered_model", "merged", "EDIT")
        client.grant_user_permission(person, "experiment", experiment, "EDIT")


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_merged_approved_there_promoted_here_rolled_back_there_audited_by_a_third(on, tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    rules = ("--alias", "champion", "--policy", tmp_path / "policy.yaml")
    with on("ann"):
        assert accounts.account() == "ann"
        zoo = zoos.fill(tmp_path, mlflow.get_tracking_uri())
        for number, alpha in (("1", 0.3), ("2", 0.6)):
            assert pairs.merge(zoo, alpha) == f"models:/merged/{number}"
        assert "can't approve them" in run("approve", "merged", "--version", 1, code=1)
        assert "(approvals)" in run("promote", "merged", "--version", 1, *rules, code=3)
    with on("ben"):
        said = run("approve", "merged", "--version", 1, code=1)
        assert "would be seen by nobody else" in said
        assert "answered 403" in said
        allow("ben")
        run("evaluate", "models:/merged/1", "--tasks", zoo.tasks)
        for number in (1, 2):
            assert "approved by ben" in run("approve", "merged", "--version", number)
    with on("ann"):
        for number in (1, 2):
            run("promote", "merged", "--version", number, *rules)
        assert aliases.version_at("merged", "champion") == "2"
    with on("ben"):
        run("rollback", "merged", "--alias", "champion")
        assert aliases.version_at("merged", "champion") == "1"
    with on("cleo"):
        run("verify", "models:/merged/1")
        told = json.loads(run("history", "merged", "--json"))
        run("ledger", "verify")
        moves = json.loads(run("history", "merged", "--moves", "--json"))
    people = [
        (event["actor"].partition("@")[0], event["kind"], event["details"].get("verdict"))
        for event in told
        if event["kind"] in ("merge", "evaluate", "approval", "promotion", "rollback")
    ]
    assert people == [
        ("ann", "merge", None),
        ("ann", "merge", None),
        ("ann", "promotion", "refused"),
        ("ben", "evaluate", None),
        ("ben", "approval", None),
        ("ben", "approval", None),
        ("ann", "promotion", "promoted"),
        ("ann", "promotion", "promoted"),
        ("ben", "rollback", "rolled_back"),
    ]
    assert [(move["before"], move["after"], move["cause"]) for move in moves] == [
        (None, "1", "promote"),
        ("1", "2", "promote"),
        ("2", "1", "rollback"),
    ]
