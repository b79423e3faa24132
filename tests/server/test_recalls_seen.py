"""A recall counts for clients with a ledger of their own, which can't see the server's."""

import json

import mlflow
import pytest
import zoos

from mlflow_breadcrumbs.ledger import letters
from mlflow_breadcrumbs.registry import notices, tag_keys

SOURCE = {"name": "tiny-colours", "version": "1"}
REASON = "test images"
POLICY = "freeze: [{starts: 2001-01-01, ends: 2001-01-02}]\n"


def verdicts(said):
    return [rule["verdict"] for rule in json.loads(said)["rules"] if rule["name"] == "recalled"]


def untold(client):
    """Take all that tells of it from the version, as whoever may edit the model can."""
    tags = client.get_model_version("tiny-colours", "1").tags
    for key in tags:
        if key == tag_keys.RECALLED or key.startswith(letters.PREFIX):
            client.delete_model_version_tag("tiny-colours", "1", key)


@pytest.fixture
def live(guarded, run, tmp_path, grown):
    """`top` has an alias that nobody guards, and had it before; it is a merge of a merge."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    client = mlflow.MlflowClient(guarded.uri, guarded.uri)
    number = client.copy_model_version("models:/top/1", "top").version
    for version in ("1", number):
        run("promote", f"top/{version}", "--alias", "live", "--policy", "policy.yaml")
    yield number
    client.delete_registered_model_alias("top", "live")
    client.delete_model_version("top", number)


def test_the_servers_word_counts_where_nothing_else_tells(guarded, run, live, grown, monkeypatch):
    client = mlflow.MlflowClient(guarded.uri, guarded.uri)
    promote = ("promote", "top/1", "--alias", "new", "--policy", "policy.yaml", "--json")
    merge = ("merge", "--base", grown.base, "--source", "top/1", "--registered-model", "again")
    merge += ("--method", "ties", "--dry-run")
    assert verdicts(run(*promote, "--dry-run")) == []
    run(*merge)
    assert guarded.request("recall", SOURCE | {"reason": REASON}).status == 200
    try:
        untold(client)
        monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", "sqlite:///fresh.db")
        assert verdicts(run(*promote, code=3)) == ["failed"]
        said = run(*merge, code=1)
        assert (
            "the source models:/top/1 is, or was made from, models:/tiny-colours/1, whose weights"
            in said
        )
        assert REASON in said
        back = run("rollback", "top", "--alias", "live", code=3)
        assert "models:/top/1 is skipped: models:/tiny-colours/1 was recalled by" in back
    finally:
        assert guarded.request("recall", SOURCE | {"withdraw": True}).status == 200
    run(*merge)
    assert notices.standing() == ()


def test_a_tag_counts_where_no_server_takes_recalls(shown_app, run, tmp_path, grown):
    (tmp_path / "policy.yaml").write_text(POLICY)
    zoos.use(shown_app.uri)
    client = mlflow.MlflowClient(shown_app.uri, shown_app.uri)
    promote = ("promote", "top/1", "--alias", "new", "--policy", "policy.yaml", "--json")
    client.set_model_version_tag("tiny-colours", "1", tag_keys.RECALLED, REASON)
    try:
        assert verdicts(run(*promote, "--dry-run", code=3)) == ["failed"]
        merge = ("merge", "--base", grown.base, "--source", "top/1", "--registered-model", "again")
        assert "somebody recalled: test images" in run(*merge, "--dry-run", code=1)
    finally:
        client.delete_model_version_tag("tiny-colours", "1", tag_keys.RECALLED)
    assert verdicts(run(*promote, "--dry-run")) == []
