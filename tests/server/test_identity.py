"""On a server with accounts, the account is who approves, promotes and overrides, and no other."""

import json
import time

import apps
import ledgers
import mlflow
import pytest
import registered
import server_accounts
import zoos
from click import testing

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.ledger import events, stores
from mlflow_breadcrumbs.promotion import overriding, recalls
from mlflow_breadcrumbs.server import visibility

VERSION = {"name": "merged", "version": "1"}
EYES = VERSION | {"alias": "eyes"}
LOCKED = VERSION | {"alias": "locked", "reason": "the live one answers nothing"}


def ask(accounts, name, what, fields):
    return accounts.request(what, fields, account=name, password=server_accounts.password(name))


def told(accounts, *kinds):
    """What the server's ledger has of these kinds, in order."""
    place = f"sqlite:///{accounts.folder / zoos.LEDGER}"
    with stores.opened(place) as ledger, ledger.reading() as connection:
        found = events.of_name(connection, "merged")
    return [event for event in found if event.kind in kinds and event.phase == events.DONE]


def aliases(accounts):
    with pytest.MonkeyPatch.context() as patch:
        server_accounts.sign_in(patch, "admin")
        client = mlflow.MlflowClient(accounts.uri, accounts.uri)
        return client.get_registered_model("merged").aliases


@pytest.fixture
def approved(accounts):
    """Ann approved the first version; nobody has its guarded alias afterwards."""
    answer = ask(accounts, "ann", "approve", VERSION | {"comment": "looked at it"})
    assert answer.status == 200, answer.text
    yield answer.json
    assert ask(accounts, "ann", "approve", VERSION | {"withdraw": True}).status == 200


def test_nobody_asks_without_an_account(accounts):
    for what in ("promote", "rollback", "approve", "override", "recall"):
        assert accounts.request(what, EYES).status == 401
    assert accounts.ask("/breadcrumbs/guard.json?name=merged&alias=eyes").status == 401


def test_who_approves_is_the_account_whatever_the_request_says(accounts, approved):
    assert approved["person"] == "ann"
    answer = ask(accounts, "bob", "approve", VERSION | {"user": "cleo"})
    assert answer.json["person"] == "bob"
    last = told(accounts, "approval")[-1]
    assert last.actor.startswith("bob@")
    assert last.details[events.VOUCHED] is True
    ask(accounts, "bob", "approve", VERSION | {"withdraw": True})
    page = ask_page(accounts, apps.version("merged", 1))
    assert [each["person"] for each in page["approvals"] if each["vouched"]] == ["ann"]


def ask_page(accounts, path, name="admin"):
    password = server_accounts.password(name)
    return accounts.ask(path, as_json=True, account=name, password=password).json


def test_the_pages_know_who_may_edit(accounts):
    """So they offer a recall; a model that is not there is as one that may not be read."""
    for name, model, may in (
        ("ann", "merged", True),
        ("eve", "merged", False),
        ("bob", "secret", False),
        ("bob", "absent", False),
        ("admin", "merged", True),
    ):
        said = ask_page(accounts, f"/breadcrumbs/guard.json?name={model}", name)
        assert (said["may_edit"], said["recalls"], said["accounts"]) == (may, True, True)


def test_four_eyes(accounts, approved):
    refused = ask(accounts, "ann", "promote", EYES)
    assert refused.json["result"] == "refused"
    rules = {rule["name"]: rule for rule in refused.json["rules"]}
    assert rules["four_eyes"]["verdict"] == "failed"
    assert rules["approvals"]["verdict"] == "passed"
    done = ask(accounts, "bob", "promote", EYES)
    assert done.json["result"] == "promoted", done.text
    assert aliases(accounts)["eyes"] == "1"
    last = told(accounts, "promotion")[-1]
    assert (last.actor.partition("@")[0], last.details[events.VOUCHED]) == ("bob", True)


def recalled_rules(accounts, version):
    password = server_accounts.password("admin")
    asked = {"name": "merged", "version": version, "alias": "eyes", "dry_run": True}
    rules = accounts.request("promote", asked, account="admin", password=password).json["rules"]
    return [rule["verdict"] for rule in rules if rule["name"] == "recalled"]


def test_only_who_may_edit_what_was_recalled_withdraws_it(accounts):
    """Not by a version of one's own with the same weights, nor by another ledger's event there."""
    answer = ask(accounts, "ann", "recall", VERSION | {"reason": "bad", "user": "cleo"})
    assert answer.status == 200, answer.text
    last = told(accounts, "recall")[-1]
    assert (last.actor.partition("@")[0], last.details[events.VOUCHED]) == ("ann", True)
    with pytest.MonkeyPatch.context() as patch:
        server_accounts.sign_in(patch, "eve")
        client = mlflow.MlflowClient(accounts.uri, accounts.uri)
        digest = answer.json["weights_digest"]
        client.create_registered_model("eves")
        tags = {"breadcrumbs.weights_digest": digest}
        client.create_model_version("eves", "s3://nowhere/model", tags=tags)
        client.set_model_version_tag(
            "eves", "1", *ledgers.letter("models:/eves/1", recalls.WITHDRAWN, weights_digest=digest)
        )
        own = {"name": "eves", "version": "1", "withdraw": True}
        refused = ask(accounts, "eve", "recall", own)
        assert (refused.status, "another registered model" in refused.json["error"]) == (400, True)
        assert ask(accounts, "eve", "recall", VERSION | {"withdraw": True}).status == 403
        assert ask(accounts, "eve", "recall", VERSION | {"reason": "mine"}).status == 403
        assert recalled_rules(accounts, "1") == ["failed"]
        client.delete_registered_model("eves")
    assert ask(accounts, "bob", "recall", VERSION | {"withdraw": True}).status == 200
    assert recalled_rules(accounts, "1") == []


def test_a_recall_names_no_version_that_may_not_be_read(accounts):
    """Bob may neither read `secret`, which descends from this one, nor recall it."""
    password = server_accounts.password("admin")
    asked = {"name": "tiny", "version": "1", "reason": "bad"}
    whole = accounts.request("recall", asked, account="admin", password=password)
    assert "models:/secret/1" in whole.text
    with server_accounts.admin(accounts.uri) as client:
        client.grant_user_permission("bob", "registered_model", "tiny", "EDIT")
    seen = ask(accounts, "bob", "recall", asked)
    assert (seen.status, seen.json["event"]) == (200, whole.json["event"])
    assert "secret" not in seen.text
    assert "models:/grandchild/1" in [each["uri"] for each in seen.json["affected"]]
    page = ask_page(accounts, apps.version("tiny", 1), "bob")
    assert "models:/grandchild/1" in [each["uri"] for each in page["suspects"]]
    assert "secret" not in json.dumps(page)
    assert ask(accounts, "bob", "recall", asked | {"withdraw": True}).status == 200


def test_no_answer_names_what_may_not_be_read(accounts):
    """Bob may read neither the first source, which was recalled, nor what the reason names."""
    password = server_accounts.password("admin")
    bad = {"name": "tiny-colours", "version": "1", "reason": "as models:/secret/1"}
    assert accounts.request("recall", bad, account="admin", password=password).status == 200
    try:
        for alias in ("licensed", "eyes"):
            asked = VERSION | {"alias": alias, "dry_run": True}
            whole = accounts.request("promote", asked, account="admin", password=password)
            assert "models:/tiny-colours/1" in whole.text
            seen = ask(accounts, "bob", "promote", asked)
            assert "tiny-colours" not in seen.text
            assert "models:/secret" not in seen.text
            assert "models:/tiny-tints/1" in seen.text or alias == "eyes"
            rules = {rule["name"]: rule for rule in seen.json["rules"]}
            assert rules["recalled"]["value"] == visibility.HIDDEN
            assert [rule["verdict"] for rule in seen.json["rules"]] == [
                rule["verdict"] for rule in whole.json["rules"]
            ]
    finally:
        done = accounts.request(
            "recall", bad | {"withdraw": True}, account="admin", password=password
        )
        assert done.status == 200


def test_the_offer_says_nothing_of_what_may_not_be_read(accounts):
    password = server_accounts.password("bob")

    def offer(name):
        path = f"/breadcrumbs/guard.json?name={name}&alias=locked"
        return accounts.ask(path, account="bob", password=password).json

    assert offer("secret") == offer("absent")
    assert (offer("secret")["pinned"], offer("merged")["pinned"]) == (False, True)


def test_only_approvals_that_the_server_wrote_count(accounts):
    """An approval in the shape of another ledger's event, which says that it is vouched for."""
    with pytest.MonkeyPatch.context() as patch:
        server_accounts.sign_in(patch, "cleo")
        client = mlflow.MlflowClient(accounts.uri, accounts.uri)
        digest = client.get_model_version("merged", "1").tags["breadcrumbs.weights_digest"]
        copy = client.copy_model_version("models:/merged/1", "merged").version
        forged = ledgers.letter(f"models:/merged/{copy}", "approval", weights_digest=digest)
        client.set_model_version_tag("merged", copy, *forged)
        answer = ask(accounts, "bob", "promote", EYES | {"version": copy})
        assert answer.status == 200, answer.text
        rules = {rule["name"]: rule["verdict"] for rule in answer.json["rules"]}
        assert (rules["approvals"], rules["four_eyes"]) == ("failed", "failed")
        taken = told(accounts, "approval")[-1]
        assert (taken.actor, events.VOUCHED in taken.details) == ("ann@laptop", False)
        server_accounts.sign_in(patch, "admin")
        client.delete_model_version("merged", copy)


def registered_by(accounts, version):
    """Who the server saw register a version, once it has written that down."""
    for _ in range(200):
        found = ask_page(accounts, apps.version("merged", version))["registered_by"]
        if found:
            break
        time.sleep(0.05)
    return found


def test_who_registered_a_version_has_made_it_whatever_name_the_merge_recorded(accounts):
    """Ann merges under bob's name, and can then neither approve nor promote her own version."""
    with pytest.MonkeyPatch.context() as patch:
        server_accounts.sign_in(patch, "ann")
        client = mlflow.MlflowClient(accounts.uri, accounts.uri)
        own = client.copy_model_version("models:/top/1", "merged").version
        digest = client.get_model_version("merged", own).tags["breadcrumbs.weights_digest"]
        uri = f"models:/merged/{own}"
        merge = ledgers.letter(uri, "merge", "bob@laptop", weights_digest=digest)
        client.set_model_version_tag("merged", own, *merge)
        assert registered_by(accounts, own) == ["ann"]
        asked = {"name": "merged", "version": own}
        refused = ask(accounts, "ann", "approve", asked)
        assert (refused.status, "ann made the weights" in refused.json["error"]) == (400, True)
        assert ask(accounts, "cleo", "approve", asked).status == 200
        answer = ask(accounts, "ann", "promote", asked | {"alias": "eyes"})
        assert (answer.status, answer.json["result"]) == (200, "refused"), answer.text
        (rule,) = [rule for rule in answer.json["rules"] if rule["name"] == "four_eyes"]
        assert (rule["verdict"], "ann made these weights" in rule["sentence"]) == ("failed", True)
        server_accounts.sign_in(patch, "admin")
        client.delete_model_version("merged", own)


def test_who_may_not_edit_moves_nothing_and_who_may_not_read_learns_nothing(accounts):
    for what, fields in (("promote", EYES), ("rollback", EYES), ("override", LOCKED)):
        if what == "rollback":
            fields = {"name": "merged", "alias": "eyes"}
        answer = ask(accounts, "eve", what, fields)
        assert (answer.status, "EDIT" in answer.json["error"]) == (403, True)
    hidden = ask(accounts, "bob", "promote", EYES | {"name": "secret", "alias": "locked"})
    absent = ask(accounts, "bob", "promote", EYES | {"name": "absent", "alias": "locked"})
    assert (hidden.status, absent.status) == (404, 404)
    assert absent.text == hidden.text.replace("secret", "absent")
    assert ask(accounts, "bob", "approve", VERSION | {"name": "secret"}).status == 404


def test_mlflows_own_requests_are_refused_to_everybody(accounts):
    for name in ("bob", "ann", "admin"):
        with pytest.MonkeyPatch.context() as patch:
            server_accounts.sign_in(patch, name)
            client = mlflow.MlflowClient(accounts.uri, accounts.uri)
            with pytest.raises(mlflow.MlflowException, match="merged@locked is guarded"):
                client.set_registered_model_alias("merged", "locked", "1")


def test_an_override_is_for_those_who_are_named(accounts):
    for name in ("bob", "cleo", "admin"):
        answer = ask(accounts, name, "override", LOCKED | {"user": "ann"})
        assert answer.status == 403
        assert "doesn't name this account under overrides" in answer.json["error"]
    for reason in ("", "  ", None):
        assert ask(accounts, "ann", "override", LOCKED | {"reason": reason}).status == 400
    assert "locked" not in aliases(accounts)


def test_an_override_is_an_event_of_its_own_and_shown(accounts):
    lost = ask(accounts, "ann", "override", LOCKED | {"expected": "7"})
    assert (lost.status, lost.json["kind"]) == (400, "RaceError")
    done = ask(accounts, "ann", "override", LOCKED)
    assert (done.status, done.json["after"]) == (200, "1"), done.text
    assert "past its policy: the live one answers nothing" in done.json["sentence"]
    assert aliases(accounts)["locked"] == "1"
    event = told(accounts, "override")[-1]
    assert event.actor.startswith("ann@")
    assert (event.details["reason"], event.details["verdict"], event.details["vouched"]) == (
        LOCKED["reason"],
        "overridden",
        True,
    )
    for more in ({}, {"expected": None}, {"reason": "once more"}):
        again = ask(accounts, "ann", "override", LOCKED | more)
        assert (again.status, again.json["after"]) == (200, "1"), again.text
        assert again.json["sentence"] == "models:/merged/1 is locked already"
    elsewhere = ask(accounts, "ann", "override", LOCKED | {"expected": "7"})
    assert elsewhere.json["kind"] == "RaceError"
    assert told(accounts, "override")[-1] == event
    move = ask_page(accounts, "/breadcrumbs/models/merged/aliases")["moves"][0]
    assert (move["alias"], move["cause"], move["reason"]) == (
        "locked",
        "override",
        LOCKED["reason"],
    )
    attention = ask_page(accounts, "/breadcrumbs/models/merged")["attention"]
    assert [each for each in attention if LOCKED["reason"] in json.dumps(each)]


def test_an_override_by_the_command(accounts, tmp_path, monkeypatch):
    monkeypatch.setenv(stores.VARIABLE, f"sqlite:///{tmp_path}/own.db")
    server_accounts.sign_in(monkeypatch, "ann")
    before = mlflow.get_tracking_uri()
    zoos.use(accounts.uri)
    try:
        command = ["promote", "merged/1", "--alias", "locked", "--override", "by hand"]
        done = testing.CliRunner().invoke(cli.main, [*command, "--json"])
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert (said["alias"], said["after"], said["reason"]) == ("locked", "1", "by hand")
        server_accounts.sign_in(monkeypatch, "bob")
        refused = testing.CliRunner().invoke(cli.main, command)
        assert refused.exit_code == 1
        assert "doesn't name this account" in refused.output
        usage = testing.CliRunner().invoke(cli.main, [*command, "--dry-run"])
        assert usage.exit_code == 2
    finally:
        zoos.use(before)


def test_without_a_guard_there_is_nothing_to_override(store):
    registered.version("plain")
    with pytest.raises(errors.PromotionError, match="no policy to be overridden"):
        overriding.ask(overriding.Emergency("models:/plain/1", "champion", "why not"))


def test_a_server_without_accounts_takes_no_override(guarded):
    answer = guarded.request("override", LOCKED | {"alias": "pinned", "user": "ann"})
    assert answer.status == 403
    assert "this server has no accounts" in answer.json["error"]
