"""The receiver of MLflow's webhooks over real HTTP: what it takes, and what it refuses and why."""

import contextlib
import json
import socket
import threading
import time
import uuid

import mlflow
import pytest
import registered
import requests
from mlflow.webhooks import types

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import anchors, stores
from mlflow_breadcrumbs.webhooks import receiver, signatures

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # MLflow signs with the text, not with its bytes


@contextlib.contextmanager
def running(**settings):
    """A receiver on a port of its own, in a thread; its URL."""
    listening = receiver.listen("127.0.0.1", 0)
    server = receiver.server(receiver.ReceiverSettings(SECRET, **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def url(store):
    """Of a receiver beside a model with two versions, whose ledger has looked before."""
    for _ in range(2):
        registered.version("m")
    ledger.look()
    with running() as found:
        yield found


LATELY = ledger.now()


def content(action="created", entity="model_version_alias", **data):
    data = {"name": "m", "alias": "champion", "version": "1"} | data
    if action == "deleted":
        del data["version"]
    told = {"entity": entity, "action": action, "timestamp": LATELY}
    return json.dumps(told | {"data": data}).encode()


def headers(body, *, identifier=None, age=0, secret=SECRET):
    identifier, timestamp = identifier or str(uuid.uuid4()), str(int(time.time()) - age)
    signature = signatures.sign(secret.encode(), identifier, timestamp, body)
    return {
        "Content-Type": "application/json",
        "X-MLflow-Delivery-Id": identifier,
        "X-MLflow-Timestamp": timestamp,
        "X-MLflow-Signature": signature,
    }


def post(url, body=None, **given):
    body = content() if body is None else body
    answer = requests.post(url, body, headers=headers(body, **given), timeout=60)
    return answer.status_code, answer.json()


def test_a_signed_delivery_becomes_history(url):
    mlflow.MlflowClient().set_registered_model_alias("m", "champion", "1")
    assert post(url) == (200, {"recorded": True, "event": 1})
    (move,) = ledger.alias_changes("m")
    assert (move.alias, move.before, move.after, move.how) == ("champion", None, "1", "webhook")
    assert move.latest == LATELY
    mlflow.MlflowClient().delete_registered_model_alias("m", "champion")
    assert post(url, content("deleted")) == (200, {"recorded": True, "event": 2})
    assert post(url, content("deleted")) == (200, {"recorded": False, "message": "known already"})
    assert ledger.look() == []


def test_the_head_goes_into_mlflow_when_the_receiver_ends_at_the_latest(store):
    registered.version("m")
    ledger.look()
    with running() as url:
        post(url)
    tags = mlflow.MlflowClient().get_model_version("m", "1").tags
    assert tags[anchors.TAG_HEAD] == ledger.head().tag()


def test_a_replay_is_refused_also_by_another_receiver(url):
    mlflow.MlflowClient().set_registered_model_alias("m", "champion", "1")
    assert post(url, identifier="once")[0] == 200
    again = (409, {"error": "the delivery once was taken before"})
    assert post(url, identifier="once") == again
    with running() as other:
        assert post(other, identifier="once") == again
    assert len(ledger.alias_changes("m")) == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"secret": "some other secret"}, "the signature is not the one of this content and our"),
        ({"age": 1000}, "ago, and 300 s are allowed"),
        ({"age": -1000}, "ahead, and 300 s are allowed"),
        ({"identifier": "x" * 300}, "the delivery has no usable id or timestamp"),
    ],
)
def test_a_forged_or_old_delivery_is_refused(url, changed, words):
    status, answer = post(url, **changed)
    assert (status, list(answer)) == (401, ["error"])
    assert words in answer["error"]
    assert ledger.history("m") == []


def test_a_changed_body_is_refused(url):
    signed = headers(content())
    answer = requests.post(url, content(version="2"), headers=signed, timeout=60)
    assert answer.status_code == 401


def test_an_unsigned_delivery_is_refused_with_the_remedy(url):
    given = headers(content())
    del given["X-MLflow-Signature"]
    answer = requests.post(url, content(), headers=given, timeout=60)
    assert (answer.status_code, answer.json()["error"]) == (
        401,
        "the delivery is not signed; register the webhook with a secret",
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"entity": "model_version_alias", "action": "created"}',
        content(version=7),
        content(version="one"),
        content(alias=""),
        content(name=None),
        content().replace(LATELY.encode(), b"yesterday"),
        content().replace(LATELY.encode(), b"0001-01-01T00:00:00+14:00"),
        content().replace(LATELY.encode(), b"9" * 4400),
        content().replace(f'"{LATELY}"'.encode(), b"9" * 4400),
        content(name="a\x1b[2J"),
        content(name="a\x00"),
        content(alias="\ud800"),
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 60_000,
    ],
)
def test_content_that_mlflow_does_not_send_is_refused(url, body):
    words = "the content is not what MLflow sends of an alias"
    assert post(url, body) == (400, {"error": words})


def test_a_delivery_that_is_too_long_or_of_another_kind_is_refused(url):
    body = content(name="x" * receiver.LARGEST)
    assert post(url, body) == (413, {"error": "a delivery has at most 65536 bytes"})
    given = headers(content()) | {"Content-Type": "text/html"}
    answer = requests.post(url, content(), headers=given, timeout=60)
    assert (answer.status_code, answer.json()["error"]) == (
        415,
        "a delivery is application/json, not text/html",
    )
    assert requests.get(url, timeout=60).status_code == 405
    assert requests.post(f"{url}other", timeout=60).status_code == 404


def test_what_is_not_about_an_alias_is_passed_over(url):
    body = content(entity="model_version")
    words = "not about a model's alias, or only a test"
    assert post(url, body) == (200, {"recorded": False, "message": words})


@pytest.mark.parametrize(
    ("action", "example"),
    [
        ("created", types.ModelVersionAliasCreatedPayload.example()),
        ("deleted", types.ModelVersionAliasDeletedPayload.example()),
    ],
)
def test_mlflows_test_deliveries_are_no_history(url, action, example):
    assert post(url, content(action, **example))[1]["recorded"] is False
    assert ledger.history("example_model") == []


def test_it_says_that_it_is_up(url):
    answer = requests.get(f"{url}health", timeout=60)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_a_ledger_that_cannot_be_written_makes_mlflow_try_again(url, monkeypatch):
    mlflow.MlflowClient().set_registered_model_alias("m", "champion", "1")
    with monkeypatch.context() as patch:
        patch.setenv(stores.VARIABLE, "postgresql://ann@127.0.0.1:9/x")
        status, answer = post(url, identifier="id")
    assert status == 503
    assert "can't be used" in answer["error"]
    assert post(url, identifier="id") == (200, {"recorded": True, "event": 1})


def test_an_address_that_is_taken():
    with receiver.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(errors.HookError, match=rf"can't listen at 127.0.0.1, port {port}: "):
            receiver.listen("127.0.0.1", port)


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00+00:00", "2026-03-03T14:00:00+00:00", "9999-12-31T23:59:59+00:00"]
)
def test_a_change_of_another_day_is_refused(url, time):
    status, answer = post(url, content().replace(LATELY.encode(), time.encode()))
    assert status == 400
    assert answer["error"] == (
        f"the delivery tells of a change at {time[:19]}.000+00:00, "
        "which is more than a day from now"
    )
    assert ledger.history("m") == []


@pytest.mark.parametrize("body", [content(version="9"), content(name="nobody")])
def test_a_version_that_the_registry_has_not_is_refused(url, body):
    status, answer = post(url, body)
    assert status == 400
    assert answer["error"].startswith("the registry has no models:/")
    assert ledger.history("m") == ledger.history("nobody") == []


def test_a_signed_timestamp_of_many_digits_is_refused(url):
    body = content()
    given = headers(body)
    given["X-MLflow-Timestamp"] = digits = "1" * 4400
    signed = given["X-MLflow-Delivery-Id"]
    given["X-MLflow-Signature"] = signatures.sign(SECRET.encode(), signed, digits, body)
    answer = requests.post(url, body, headers=given, timeout=60)
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "a timestamp of 4400 characters is no number of seconds"},
    )
    with pytest.raises(errors.SignatureError, match="is no number of seconds"):
        signatures.check(SECRET.encode(), signed, digits, body, given["X-MLflow-Signature"])


def connect(url):
    host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_connections_that_are_slow_are_closed(store):
    """By the receiver: each of these reads until there is no more."""
    slow = [b"", b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nX: "]
    with running(patience=0.5) as url:
        opened = [connect(url) for _ in range(60)]
        for number, connection in enumerate(opened):
            connection.sendall(slow[number % len(slow)])
        for connection in opened:
            assert connection.recv(1000) == b""
            connection.close()
        assert requests.get(f"{url}health", timeout=60).status_code == 200


def test_a_body_that_is_slow_is_refused(store):
    with running(patience=0.5) as url, connect(url) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        answer = b""
        while part := connection.recv(1000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b'{"error":"the delivery was not here within 0.5 s"}')


def test_a_connection_is_used_again(store):
    with running(patience=5) as url, requests.Session() as session:
        for _ in range(3):
            assert session.get(f"{url}health", timeout=60).status_code == 200
