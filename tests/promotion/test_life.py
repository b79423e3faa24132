"""The whole life of a model, over every kind of store: from the import to the rollback.

On SQLite, on PostgreSQL (MLflow and the ledger), and over a tracking server with accounts.
"""

import uuid

import mlflow
import pairs
import postgres
import pytest
import server_accounts
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors, ledger
from mlflow_breadcrumbs.promotion import policies, promote
from mlflow_breadcrumbs.registry import aliases

pytestmark = pytest.mark.slow

POLICY = """\
average_normalized_accuracy: 0
no_regression: {margin: 1.0}
evidence: {max_age: 1 day}
verified: true
approvals: 1
"""


@pytest.fixture(params=["sqlite", "postgresql", "basic-auth"])
def place(request, tmp_path, empty_database, postgres_server, monkeypatch):
    """An empty MLflow and an empty ledger; the tracking URI."""
    monkeypatch.chdir(tmp_path)
    previous = mlflow.get_tracking_uri()
    short = uuid.uuid4().hex[:12]
    if request.param == "sqlite":
        (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
        zoos.use(f"sqlite:///{tmp_path}/mlflow.db")
        yield request.param
    else:
        events = postgres.schema(postgres_server, f"life_{short}")
        monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", events)
        if request.param == "postgresql":
            zoos.use(postgres.schema(postgres_server, f"tracking_{short}"))
            yield request.param
        else:
            names = ("ann", "eve")
            with server_accounts.administered(tmp_path, empty_database, monkeypatch, names):
                yield request.param
    zoos.use(previous)


def run(*arguments):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def test_merged_refused_approved_promoted_drifted_and_rolled_back(
    place, light, tmp_path, monkeypatch
):
    mlflow.set_experiment("life")
    zoo = zoos.fill(tmp_path, mlflow.get_tracking_uri())
    (tmp_path / "policy.yaml").write_text(POLICY)
    rules = ("--alias", "champion", "--policy", tmp_path / "policy.yaml")
    for number, alpha in (("1", 0.3), ("2", 0.6)):
        assert pairs.merge(zoo, alpha) == f"models:/merged/{number}"
        refused = run("promote", "merged", "--version", number, *rules)
        assert refused.exit_code == 3, refused.output
        assert "1 of" in refused.output
        assert "rules have not passed (approvals)" in refused.output
        with monkeypatch.context() as patch:
            patch.setenv("LOGNAME", "ann")
            if place == "basic-auth":
                server_accounts.sign_in(patch, "ann")
            assert run("approve", "merged", "--version", number).exit_code == 0
        if place == "basic-auth":
            check_that_eve_may_not(number, monkeypatch)
        promoted = run("promote", "merged", "--version", number, *rules, "--tasks", zoo.tasks)
        assert promoted.exit_code == 0, promoted.output
        assert aliases.version_at("merged", "champion") == number
    again = ("recheck", "merged@champion", "--tasks", zoo.tasks)
    held = run(*again)
    assert held.exit_code == 0, held.output
    (tmp_path / "strict.yaml").write_text("tasks: {colours: {accuracy_low: 1.0}}")
    back = run(*again, "--policy", tmp_path / "strict.yaml", "--rollback")
    assert (back.exit_code, aliases.version_at("merged", "champion")) == (3, "1"), back.output

    told = [
        (event.kind, event.details.get("verdict") or event.details.get("after"))
        for event in ledger.history("merged")
        if event.phase == "done"
    ]
    one = [("merge", None), ("promotion", "refused"), ("approval", None)]
    assert told == [
        *one,
        ("alias", "1"),
        ("promotion", "promoted"),
        *one,
        ("alias", "2"),
        ("promotion", "promoted"),
        ("evaluate", None),
        ("recheck", "held"),
        ("evaluate", None),
        ("recheck", "broken"),
        ("alias", "1"),
        ("rollback", "rolled_back"),
    ]
    assert ledger.verify().holds
    decisions = mlflow.search_runs(
        experiment_names=["breadcrumbs-promotions"], output_format="list"
    )
    assert [run.data.tags["breadcrumbs.decision"] for run in decisions] == [
        "broken",
        "held",
        "promoted",
        "refused",
        "promoted",
        "refused",
    ]
    assert {run.info.status for run in decisions} == {"FINISHED"}


def check_that_eve_may_not(number, monkeypatch):
    """Who may only read is told so by the server, and nothing is moved."""
    before = aliases.version_at("merged", "champion")
    request = promote.PromotionRequest(
        f"models:/merged/{number}", "champion", policies.parse(POLICY)
    )
    with monkeypatch.context() as patch:
        server_accounts.sign_in(patch, "eve")
        with pytest.raises(errors.RegistryError, match="answered 403: the account in MLFLOW_TR"):
            promote.promote(request)
        with pytest.raises(errors.RegistryError, match="answered 403: the account in MLFLOW_TR"):
            ledger.set_alias("merged", "champion", number)
    assert aliases.version_at("merged", "champion") == before
