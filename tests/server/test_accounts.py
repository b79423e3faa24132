"""Who may not read a model sees nothing of it, on any page."""

import apps
import mlflow
import pytest
import server_accounts

MERGED = apps.version("merged", 1)


def ask(accounts, path, name="bob", **options):
    return accounts.ask(path, account=name, password=server_accounts.password(name), **options)


def test_nobody_is_asked_who_they_are(accounts):
    assert accounts.ask("/breadcrumbs/").status == 401
    assert accounts.ask(MERGED, account="bob", password="wrong").status == 401


def test_the_pages_agree_with_mlflow(accounts, monkeypatch):
    """Bob's list of models is the one that MLflow's own API gives him."""
    server_accounts.sign_in(monkeypatch, "bob")
    client = mlflow.MlflowClient(accounts.uri, accounts.uri)
    theirs = {model.name for model in client.search_registered_models()}
    ours = {model["name"] for model in ask(accounts, "/breadcrumbs/", as_json=True).json["models"]}
    assert ours == theirs
    assert "secret" not in ours


PATHS = (
    "/breadcrumbs/",
    "/breadcrumbs/models/merged",
    "/breadcrumbs/models/merged/aliases",
    MERGED,
    f"{MERGED}/lineage",
    f"{MERGED}/exports/slsa",
    apps.version("grandchild", 1),
    apps.version("grandchild", 1, "/lineage"),
    apps.version("tiny", 1, "/lineage"),
    "/breadcrumbs/compare?one=merged/1&other=top/1",
    "/breadcrumbs/compare?one=grandchild/1&other=top/1",
)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_hidden_names_are_nowhere(accounts, path, as_json):
    seen = ask(accounts, path, as_json=as_json)
    assert "secret" not in seen.text
    assert "tiny-colours" not in seen.text


def test_the_graph_has_them_without_a_name(accounts):
    found = ask(accounts, apps.version("grandchild", 1, "/lineage"), as_json=True).json
    hidden = [node for node in found["nodes"] if not node["visible"]]
    assert {node["uri"] for node in hidden} == {"not visible to you"}
    assert len(hidden) == 2  # secret, and the first source behind it
    everything = ask(
        accounts, apps.version("grandchild", 1, "/lineage"), "admin", as_json=True
    ).json
    assert "models:/secret/1" in {node["uri"] for node in everything["nodes"]}


def test_hidden_is_as_if_it_were_not_there(accounts):
    for path in (
        "/breadcrumbs/models/{}",
        "/breadcrumbs/models/{}/aliases",
        "/breadcrumbs/models/{}/versions/1",
        "/breadcrumbs/models/{}/versions/1/lineage",
        "/breadcrumbs/models/{}/versions/1/exports/slsa",
        "/breadcrumbs/compare?one={}/1&other=top/1",
    ):
        hidden = ask(accounts, path.format("secret"))
        absent = ask(accounts, path.format("absent"))
        assert (hidden.status, absent.status) == (404, 404)
        assert hidden.text.replace("secret", "absent") == absent.text


def test_exports_that_would_name_them_are_not_given(accounts):
    assert ask(accounts, f"{MERGED}/exports/slsa").status == 404
    assert ask(accounts, MERGED, as_json=True).json["exports"] == []
    assert ask(accounts, f"{MERGED}/exports/slsa", "admin").status == 200


def test_decisions_in_hidden_runs_are_withheld(accounts):
    path = f"{MERGED}"
    assert ask(accounts, path, as_json=True).json["decisions"][0]["rules"]
    with server_accounts.admin(accounts.uri) as client:
        found = mlflow.MlflowClient(accounts.uri, accounts.uri).get_experiment_by_name(
            "breadcrumbs-promotions"
        )
        client.grant_user_permission("bob", "experiment", found.experiment_id, "DENY")
        try:
            decision = ask(accounts, path, as_json=True).json["decisions"][0]
            assert (decision["rules"], decision["run_id"]) == ([], None)
        finally:
            client.revoke_user_permission("bob", "experiment", found.experiment_id)
