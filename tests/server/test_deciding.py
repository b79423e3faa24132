"""Promotions, rollbacks and approvals by the server: the same commands, by its own policy."""

import getpass
import json

import mlflow
import pytest
import zoos
from click import testing

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.ledger import stores
from mlflow_breadcrumbs.promotion import decisions, guards
from mlflow_breadcrumbs.registry import tag_keys

GIVEN = {"name": "merged", "alias": "champion"}
OWN = "the server's own"
"""Stands for its address, which is known when it runs."""


def test_promoted_and_rolled_back_by_commands(guarded, run, second):
    said = run("promote", f"merged/{second}", "--alias", "champion", user="dora")
    assert f"models:/merged/{second} is champion now, in place of version 1" in said
    assert guarded.champion == second
    last = guarded.moves[0]
    assert (last["before"], last["after"], last["cause"]) == ("1", second, "promote")
    assert last["actor"].startswith("dora@")
    said = run("rollback", "merged", "--alias", "champion", "--json", user="dora")
    done = json.loads(said)
    assert (done["before"], done["after"], done["moved"]) == (second, "1", True)
    assert guarded.champion == "1"


def test_the_decision_is_kept_as_ever(guarded, run, second):
    said = json.loads(run("promote", f"merged/{second}", "--alias", "champion", "--json"))
    assert (said["result"], said["before"], said["version"]) == ("promoted", "1", second)
    run_of = mlflow.get_run(said["run_id"])
    assert run_of.data.tags[decisions.TAG_DECISION] == "promoted"
    names = {entry.path for entry in mlflow.MlflowClient().list_artifacts(said["run_id"])}
    assert names == {"policy.yaml", "verdict.json", "verdict.md"}


def test_refused_by_the_servers_policy(guarded, run):
    said = run("promote", "merged/1", "--alias", "pinned", code=3)
    assert "models:/merged/1 does not become pinned" in said
    assert "pinned" not in mlflow.MlflowClient().get_registered_model("merged").aliases


def test_nobody_brings_a_policy_of_their_own(guarded, run, second, tmp_path):
    (tmp_path / "weak.yaml").write_text("licences: [MIT]\n")
    (tmp_path / "same.yaml").write_text("average_accuracy: 0\n")
    to = ("promote", f"merged/{second}", "--alias", "champion", "--policy")
    assert "moves by the policy of the server" in run(*to, "weak.yaml", code=1)
    assert guarded.champion == "1"
    run(*to, "same.yaml")
    assert guarded.champion == second
    asked = GIVEN | {"version": "1", "policy": "licences: [MIT]"}
    assert guarded.request("promote", asked).status == 400


def test_a_lost_race(guarded, run, second):
    to = ("promote", f"merged/{second}", "--alias", "champion", "--expect-current")
    assert "came too late" in run(*to, "7", code=3)
    assert "came too late" in run(*to, "none", code=3)
    assert guarded.champion == "1"
    run(*to, "1")


def test_a_dry_run_moves_nothing(guarded, run, second):
    said = run("promote", f"merged/{second}", "--alias", "champion", "--dry-run")
    assert f"models:/merged/{second} would become champion" in said
    assert guarded.champion == "1"


def test_what_is_lacking_is_measured_before(guarded, run, grown, filled):
    client = mlflow.MlflowClient(guarded.uri, guarded.uri)
    number = client.copy_model_version("models:/top/1", "merged").version
    to = ("promote", f"merged/{number}", "--alias", "champion")
    assert "does not become champion" in run(*to, code=3)
    said = run(*to, "--tasks", grown.tasks, "--dry-run", code=3)
    assert f"would measure models:/merged/{number}" in said
    run(*to, "--tasks", grown.tasks)
    assert guarded.champion == number
    run("rollback", "merged", "--alias", "champion", "--to", "1")
    client.delete_model_version("merged", number)


def test_approvals_are_the_servers(guarded, run):
    to = ("promote", "merged/1", "--alias", "approved")
    run(*to, code=3)
    said = run("approve", "merged/1", "--comment", "looked at it", user="Dora")
    assert "given by dora" in said
    assert "given by dora" in run("approve", "merged/1", user="DORA@example.org")
    done = json.loads(run("approve", "merged/1", "--json", user="dora"))
    assert [each["person"] for each in done["standing"]].count("dora") == 1
    run(*to)
    assert "withdrawn by dora" in run("approve", "merged/1", "--withdraw", user="dora")
    assert "nothing to withdraw" in run("approve", "merged/1", "--withdraw", user="dora", code=1)


@pytest.fixture
def recalled(guarded):
    """Recall a version; it may be used again afterwards."""
    asked = []

    def tell(name):
        asked.append({"name": name, "version": "1"})
        run = testing.CliRunner().invoke(
            cli.main, ["recall", f"{name}/1", "--reason", "test images", "--json"]
        )
        assert run.exit_code == 0, run.output
        return json.loads(run.stdout)

    yield tell
    for each in asked:
        guarded.request("recall", each | {"withdraw": True})


@pytest.mark.parametrize("name", ["merged", "tiny-colours"])
def test_a_recall_is_the_servers(guarded, run, second, recalled, name, tmp_path, monkeypatch):
    """Of the live version itself, and of a source whose own model no pattern fits."""
    run("promote", f"merged/{second}", "--alias", "champion", "--dry-run")
    said = recalled(name)
    assert "models:/merged/1" in [said["uri"], *(each["uri"] for each in said["affected"])]
    assert "merged@champion" in said["live"]
    tags = mlflow.MlflowClient().get_model_version(name, "1").tags
    assert tags[tag_keys.RECALLED] == "test images"
    refused = run("promote", f"merged/{second}", "--alias", "champion", "--json", code=3)
    assert [r["verdict"] for r in json.loads(refused)["rules"] if r["name"] == "recalled"] == [
        "failed"
    ]
    page = guarded.ask("/breadcrumbs/models/merged", as_json=True).json
    assert "recalled" in [each["kind"] for each in page["attention"]]
    monkeypatch.setenv(stores.VARIABLE, f"sqlite:///{tmp_path}/another.db")
    assert "test images" in run("history", name)
    assert "is no longer recalled" in run("recall", f"{name}/1", "--withdraw", user="dora")
    assert tag_keys.RECALLED not in mlflow.MlflowClient().get_model_version(name, "1").tags
    assert "nothing to withdraw" in run("recall", f"{name}/1", "--withdraw", code=1)
    run("promote", f"merged/{second}", "--alias", "champion", "--dry-run")


def test_a_recall_is_as_elsewhere_where_nothing_is_guarded(shown_app, run, guarded):
    zoos.use(shown_app.uri)
    assert guards.for_recalls("merged") is None
    answer = shown_app.request("recall", {"name": "merged", "version": "1", "reason": "bad"})
    assert (answer.status, "guards no alias" in answer.json["error"]) == (404, True)


def test_nobody_approves_their_own_merge(run):
    own = getpass.getuser()
    for spelling in (own, own.upper(), f"{own}@example.org", f"DOMAIN\\{own}", f" {own} "):
        said = run("approve", "merged/1", user=spelling, code=1)
        assert "made the weights" in said


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "multipart/form-data"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": ""},
        {"Sec_Fetch_Site": "cross-site", "Origin": OWN},
    ],
)
@pytest.mark.parametrize("what", ["promote", "rollback", "approve", "recall"])
def test_no_other_site_asks_for_its_visitors(guarded, what, headers):
    headers = {name: guarded.uri if text == OWN else text for name, text in headers.items()}
    answer = guarded.request(what, GIVEN | {"version": "1"}, **headers)
    assert answer.status in (403, 415)
    assert answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": OWN, "Sec_Fetch_Site": "same-origin"},
        {"Origin": OWN},
        # A proxy made the host another one than the browser asked for.
        {"Origin": "https://models.example", "Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},
    ],
)
def test_a_page_of_the_servers_own_may_ask(guarded, headers):
    headers = {name: guarded.uri if text == OWN else text for name, text in headers.items()}
    answer = guarded.request("rollback", GIVEN, **headers)
    assert answer.status == 200


@pytest.mark.parametrize(
    ("what", "fields", "status", "said"),
    [
        ("promote", b"", 400, "the request"),
        ("promote", b"[]", 400, "a mapping"),
        ("promote", b"{", 400, "JSON"),
        ("promote", b'{"name": "merged", "name": "top"}', 400, "given twice"),
        ("promote", b" " * 200_000, 413, "bytes"),
        ("promote", GIVEN, 400, "version is missing"),
        ("promote", GIVEN | {"version": "1", "force": True}, 400, "force is no field"),
        ("promote", GIVEN | {"version": "01"}, 400, "version"),
        ("promote", GIVEN | {"version": 1}, 400, "version"),
        ("promote", GIVEN | {"version": "99"}, 400, "99"),
        ("promote", GIVEN | {"version": "1", "user": "a\u0000b"}, 400, "can't be taken"),
        ("promote", GIVEN | {"version": "1", "alias": "candidate"}, 404, "does not guard"),
        ("promote", GIVEN | {"version": "1", "name": "absent"}, 404, "does not guard"),
        ("rollback", GIVEN | {"alias": "candidate"}, 404, "does not guard"),
        ("recall", {"name": "merged", "version": "1"}, 400, "0 characters"),
        ("recall", {"name": "merged", "version": "1", "withdraw": True}, 400, "not recalled"),
        ("recall", {"name": "merged", "version": "1", "reason": "x" * 1001}, 400, "1001"),
        ("rollback", GIVEN | {"to": "99"}, 400, "never was champion"),
    ],
)
def test_what_is_asked_wrongly(guarded, what, fields, status, said):
    answer = guarded.request(what, fields)
    assert answer.status == status, answer.text
    assert said in answer.json["error"]
    assert answer.json["kind"]


def test_there_is_nothing_to_get_where_something_is_asked_for(guarded):
    for what in ("promote", "rollback", "approve", "recall"):
        assert guarded.ask(f"/breadcrumbs/{what}").status == 405


def test_what_the_server_offers(guarded, run, shown_app):
    offer = guards.offered("merged", "champion")
    assert (offer.rules.average_accuracy, offer.accounts) == (0, False)
    assert guards.offered("merged").rules is None
    assert guards.offered("merged", "candidate") is None
    zoos.use(shown_app.uri)
    assert guards.offered("merged", "champion") is None
    assert "no server guards this alias" in run(
        "promote", "merged/1", "--alias", "champion", code=2
    )
