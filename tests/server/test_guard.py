"""The guard: nothing that is asked of MLflow moves a pinned alias, and all else is as it was."""

import itertools
import re
from collections.abc import Iterator

import ledgers
import mlflow
import pytest
import requests
import zoos
from mlflow.exceptions import MlflowException, RestException
from mlflow.server import handlers

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.server import guard, pinning

TIMEOUT = 60
OTHER = "another version"
"""In a body: that of the fixture `other`."""
SET = {"name": "merged", "alias": "champion", "version": OTHER}


@pytest.fixture(scope="module")
def client(guarded) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(guarded.uri, guarded.uri)


@pytest.fixture(scope="module")
def other(client) -> Iterator[str]:
    """A second version of `merged`, where its alias could go."""
    made = client.copy_model_version("models:/top/1", "merged")
    yield made.version
    client.delete_model_version("merged", made.version)


def filled(body, other):
    """A body with the number of the other version."""
    return {key: other if value == OTHER else value for key, value in body.items()}


def addresses(handler):
    """Every address and method of a handler of MLflow's."""
    return [
        (method, path)
        for path, found, methods in handlers.get_endpoints(lambda request: request)
        if getattr(found, "DESCRIPTOR", None) is not None and found.DESCRIPTOR.name == handler
        for method in methods
    ]


def everywhere(**requests_by_handler):
    """A case for each address of each handler."""
    return [
        pytest.param(method, path, body, id=f"{method} {path}")
        for handler, body in requests_by_handler.items()
        for method, path in addresses(handler)
    ]


REFUSED = everywhere(
    SetRegisteredModelAlias=SET,
    DeleteRegisteredModelAlias={"name": "merged", "alias": "champion"},
    DeleteModelVersion={"name": "merged", "version": "1"},
    DeleteRegisteredModel={"name": "merged"},
    RenameRegisteredModel={"name": "merged", "new_name": "elsewhere"},
    SetModelVersionTag=SET | {"version": "1", "key": "breadcrumbs.task", "value": "cars"},
    DeleteModelVersionTag={"name": "merged", "version": "1", "key": "breadcrumbs.weights_digest"},
)


def test_there_are_addresses_to_try():
    assert len(REFUSED) >= 14


@pytest.mark.parametrize(("method", "path", "body"), REFUSED)
def test_every_address_of_mlflow_says_no(guarded, client, other, method, path, body):
    body = filled(body, other)
    before = client.get_registered_model("merged"), client.get_model_version("merged", "1")
    answer = requests.request(method, f"{guarded.uri}{path}", json=body, timeout=TIMEOUT)
    assert answer.status_code == 403
    assert answer.json()["error_code"] == "PERMISSION_DENIED"
    # Other tests of this server may have given the version a second pinned alias.
    said = re.search(r"merged@(champion|approved) is guarded by a pol", answer.json()["message"])
    assert said, answer.text
    assert "mlflow-breadcrumbs promote merged" in answer.json()["message"]
    after = client.get_registered_model("merged"), client.get_model_version("merged", "1")
    assert [dict(each) for each in after] == [dict(each) for each in before]


def test_an_alias_that_is_not_there_yet_is_guarded_too(client):
    with pytest.raises(RestException, match="many@pinned is guarded"):
        client.set_registered_model_alias("many", "pinned", "3")
    with pytest.raises(RestException, match="many@pinned is guarded"):
        client.delete_registered_model_alias("many", "pinned")


def test_a_model_is_not_renamed_under_a_pin(client):
    client.copy_model_version("models:/top/1", "outside")
    client.set_registered_model_alias("outside", "champion", "1")
    with pytest.raises(RestException, match="can't be renamed to 'merged'"):
        client.rename_registered_model("outside", "merged")
    client.rename_registered_model("outside", "outside2")
    client.delete_registered_model("outside2")


def test_a_copy_of_a_version_brings_no_alias(client):
    made = client.copy_model_version("models:/top/1", "merged")
    try:
        assert client.get_model_version_by_alias("merged", "champion").version == "1"
        with pytest.raises(RestException, match="merged@champion is guarded"):
            client.set_registered_model_alias("merged", "champion", made.version)
    finally:
        client.delete_model_version("merged", made.version)


def test_a_stage_moves_no_alias(client):
    for stage, archive in (("Production", True), ("None", False)):
        with pytest.warns(FutureWarning):
            client.transition_model_version_stage("merged", "1", stage, archive)
    assert client.get_registered_model("merged").aliases["champion"] == "1"


def test_what_is_not_pinned_goes_as_before(client):
    client.set_registered_model_alias("merged", "candidate", "1")
    client.set_model_version_tag("merged", "1", "note", "mine")
    client.set_model_version_tag("merged", "1", "breadcrumbs.promoted/candidate", "now")
    client.delete_model_version_tag("merged", "1", "breadcrumbs.promoted/candidate")
    client.delete_registered_model_alias("merged", "candidate")
    client.update_model_version("merged", "1", "of all")
    client.set_registered_model_tag("merged", "breadcrumbs.note", "of the model")
    client.set_model_version_tag("top", "1", "breadcrumbs.task", "cars")
    client.delete_model_version_tag("top", "1", "breadcrumbs.task")


def test_what_others_measured_can_be_told_and_not_changed(client):
    key, text = ledgers.letter("models:/merged/1", "evaluate")
    client.set_model_version_tag("merged", "1", key, text)
    with pytest.raises(RestException, match="stays as it is"):
        client.set_model_version_tag("merged", "1", key, "{ }")
    with pytest.raises(RestException, match="stays as it is"):
        client.delete_model_version_tag("merged", "1", key)


def test_what_is_not_there_is_said_by_mlflow(client):
    for call in (
        lambda: client.delete_model_version("merged", "99"),
        lambda: client.delete_registered_model("absent"),
        lambda: client.rename_registered_model("absent", "merged2"),
        lambda: client.set_model_version_tag("merged", "99", "breadcrumbs.task", "cars"),
        lambda: client.delete_model_version_tag("absent", "1", "breadcrumbs.task"),
    ):
        with pytest.raises(RestException) as caught:
            call()
        assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"


PATH = "/api/2.0/mlflow/registered-models/alias"
ODD = (
    PATH + "/",
    PATH.replace("/mlflow", "//mlflow"),
    "//" + PATH.lstrip("/"),
    PATH.replace("alias", "%61lias"),
    PATH.replace("alias", "Alias"),
    PATH.replace("/api", "/API"),
    PATH.replace("/api", "/x/../api"),
    PATH.replace("/api", "/breadcrumbs/..;/api"),
    PATH + ";x=1",
    PATH + "?name=merged&alias=champion&version=7",
    PATH.replace("2.0", "3.0"),
    PATH.replace("/api", "/ajax-api"),
    "/graphql",
)
METHODS = ("POST", "PUT", "PATCH", "DELETE", "GET")
OVERRIDES = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")


@pytest.mark.parametrize("path", ODD)
def test_no_way_to_write_the_address_leads_past(guarded, client, other, path):
    """The alias is deleted or moved by none of them, whatever they answer."""
    move = filled(SET, other)
    bodies = (
        {"json": move},
        {"json": {"name": "merged", "alias": "champion"}},
        {"json": {"query": 'mutation { setRegisteredModelAlias(name: "merged") { name } }'}},
        {"data": move},
        {"json": [move]},
    )
    for method, body in itertools.product(METHODS, bodies):
        headers = dict.fromkeys(OVERRIDES, "DELETE")
        answer = requests.request(
            method, f"{guarded.uri}{path}", headers=headers, timeout=TIMEOUT, **body
        )
        assert answer.status_code >= 400 or method == "GET" or path == "/graphql"
    assert client.get_registered_model("merged").aliases["champion"] == "1"


def test_a_registry_that_compares_names_otherwise_is_not_guarded(monkeypatch, tmp_path):
    monkeypatch.setattr(handlers, "_model_registry_store", object())
    (tmp_path / "policy.yaml").write_text("approvals: 1\n")
    (tmp_path / "server.yaml").write_text("aliases: {a@b: policy.yaml}\n")
    with pytest.raises(errors.GuardError, match="keep it in SQLite or PostgreSQL"):
        guard.stand(pinning.load(tmp_path / "server.yaml"))
    guard.stand(pinning.Pins())


def test_the_message_is_what_a_client_shows(client, other):
    with pytest.raises(MlflowException) as caught:
        client.set_registered_model_alias("merged", "champion", other)
    assert f"mlflow-breadcrumbs promote merged --version {other} --alias champion" in str(
        caught.value
    )


def test_a_second_server_without_the_app_is_seen_and_shown(guarded, client, other, tmp_path):
    place = ("--backend-store-uri", f"sqlite:///{guarded.folder}/mlflow.db")
    with zoos.serving(tmp_path, guarded.folder / "mlflow.db", *place) as uri:
        past = mlflow.MlflowClient(uri, uri)
        past.set_registered_model_alias("merged", "champion", other)
        try:
            page = guarded.ask("/breadcrumbs/models/merged", as_json=True).json
            kinds = [each["kind"] for each in page["attention"] if each["version"] == other]
            assert kinds == ["direct"]
            shown = guarded.ask("/breadcrumbs/models/merged/aliases").text
            assert "past the gates" in shown.lower()  # a look may have told it meanwhile
        finally:
            past.set_registered_model_alias("merged", "champion", "1")
