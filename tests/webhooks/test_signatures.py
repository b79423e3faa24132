"""How deliveries are signed: by the specification's own example, and by what MLflow does."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.webhooks import constants, delivery

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.webhooks import signatures

SECRET = b"a secret of some length"


def now(offset=0):
    return str(int(time.time()) + offset)


def test_the_example_of_the_specification():
    signature = signatures.sign(
        signatures.key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "1614265330",
        b'{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.text(max_size=30), st.text(max_size=60))
def test_mlflow_signs_in_the_same_way(identifier, body):
    theirs = delivery._generate_hmac_signature(SECRET.decode(), identifier, "17", body)
    assert signatures.sign(SECRET, identifier, "17", body.encode()) == theirs


def test_mlflows_headers_are_those():
    assert (
        constants.WEBHOOK_DELIVERY_ID_HEADER.lower(),
        constants.WEBHOOK_TIMESTAMP_HEADER.lower(),
        constants.WEBHOOK_SIGNATURE_HEADER.lower(),
    ) == signatures.MLFLOW


def test_a_signed_delivery_passes_also_among_other_signatures():
    given = (SECRET, "id", now(), b"body")
    signature = signatures.sign(*given)
    signatures.check(*given, signature)
    signatures.check(*given, f"v1,AAAA v2,x {signature}")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"secret": b"another secret of ours"}, "the signature is not the one of this content"),
        ({"identifier": "other"}, "the signature is not the one"),
        ({"body": b"bodx"}, "the signature is not the one"),
        ({"signature": ""}, "the signature is not the one"),
        ({"signature": "v1,é"}, "the signature is not the one"),
        ({"identifier": ""}, "no usable id or timestamp"),
        ({"identifier": "x" * 300}, "no usable id or timestamp"),
        ({"timestamp": "١٢"}, "no usable id or timestamp"),
    ],
)
def test_a_forged_delivery_does_not(changed, words):
    given = {"secret": SECRET, "identifier": "id", "timestamp": now(), "body": b"body"}
    given["signature"] = signatures.sign(*given.values())
    with pytest.raises(errors.SignatureError, match=words):
        signatures.check(**(given | changed))


@pytest.mark.parametrize(
    ("timestamp", "words"),
    [
        (-100_000, r"signed 100\d\d\d s ago, and 300 s are allowed"),
        (100_000, r"signed \d+ s ahead, and 300 s are allowed"),
        ("soon", "'soon' is no number of seconds"),
    ],
)
def test_an_old_delivery_does_not_either(timestamp, words):
    timestamp = now(timestamp) if isinstance(timestamp, int) else timestamp
    signature = signatures.sign(SECRET, "id", timestamp, b"body")
    with pytest.raises(errors.SignatureError, match=words):
        signatures.check(SECRET, "id", timestamp, b"body", signature)


def test_a_secret_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "secret"
    file.write_text("from a file, long enough\n")
    monkeypatch.setenv("A_SECRET", "from the environment")
    assert signatures.read_secret(str(file), "A_SECRET", "--file") == "from a file, long enough"
    assert signatures.read_secret(None, "A_SECRET", "--file") == "from the environment"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "a webhook needs a secret: set A_SECRET, or --file FILE"),
        ("short", "has 5 bytes and needs 16; make one with `openssl rand -base64 32`"),
        ("whsec_c2hvcnQ=", "has 5 bytes and needs 16"),
    ],
)
def test_a_secret_that_is_none(monkeypatch, value, words):
    monkeypatch.setenv("A_SECRET", value)
    with pytest.raises(errors.HookError, match=words):
        signatures.read_secret(None, "A_SECRET", "--file")


def test_a_secret_that_cannot_be_read():
    with pytest.raises(errors.HookError, match="can't be read from /none/at/all"):
        signatures.read_secret("/none/at/all", "A_SECRET", "--file")
