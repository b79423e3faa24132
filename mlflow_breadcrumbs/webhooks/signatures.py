"""Signed webhooks: how a delivery is signed, and how a signature is checked.

The scheme is that of the Standard Webhooks specification 1.0 (standardwebhooks.com): the HMAC with
SHA-256 of `ID.TIMESTAMP.BODY`, in base64, after `v1,`. MLflow uses the same under other names of
headers.
"""

import base64
import binascii
import hashlib
import hmac
import os
import time
from pathlib import Path
from typing import NamedTuple

from mlflow_breadcrumbs import errors

VERSION = "v1"
TOLERANCE = 300
"""Seconds by which a delivery's time may differ from ours; the specification's libraries' too."""
SHORTEST = 16
"""Bytes of a secret; shorter ones can be guessed."""
LONGEST_TIMESTAMP = 20
"""Characters of the time of a delivery; seconds since 1970 have ten."""
MOST_CHARACTERS = 200
"""Of a delivery's id."""


class Headers(NamedTuple):
    """The names of the headers of a delivery."""

    id: str
    timestamp: str
    signature: str


STANDARD = Headers("webhook-id", "webhook-timestamp", "webhook-signature")
"""Of the specification: what we send."""
MLFLOW = Headers("x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature")
"""Of MLflow: what we receive."""


def sign(secret: bytes, identifier: str, timestamp: str, body: bytes) -> str:
    """The signature of a delivery.

    Args:
        secret: Of `read_secret`.
        identifier: The same when a delivery is tried again.
        timestamp: Seconds since 1970, of this attempt.
        body: As it is sent.
    """
    signed = f"{identifier}.{timestamp}.".encode() + body
    digest = hmac.new(secret, signed, hashlib.sha256).digest()
    return f"{VERSION},{base64.b64encode(digest).decode()}"


def check(
    secret: bytes,
    identifier: str,
    timestamp: str,
    body: bytes,
    signature: str,
    *,
    tolerance: int = TOLERANCE,
) -> None:
    """Raise `SignatureError` unless a delivery was signed with the secret, and lately.

    Args:
        secret: Of `read_secret`.
        identifier: From the header.
        timestamp: From the header.
        body: As it came.
        signature: From the header: one, or several with spaces between.
        tolerance: Seconds by which `timestamp` may differ from our clock.
    """
    if not identifier or len(identifier) > MOST_CHARACTERS or not timestamp.isascii():
        raise errors.SignatureError("the delivery has no usable id or timestamp")
    expected = sign(secret, identifier, timestamp, body).encode()
    given = [entry.encode() for entry in signature.split()]
    # All are compared, each in constant time, so that the time tells nothing of which is right.
    if not sum(hmac.compare_digest(expected, entry) for entry in given):
        raise errors.SignatureError("the signature is not the one of this content and our secret")
    if not timestamp.isdecimal() or len(timestamp) > LONGEST_TIMESTAMP:
        shown = timestamp[:LONGEST_TIMESTAMP]
        raise errors.SignatureError(f"the timestamp {shown!r} is no number of seconds")
    age = int(time.time()) - int(timestamp)
    if abs(age) > tolerance:
        raise errors.SignatureError(
            f"the delivery was signed {abs(age)} s {'ago' if age > 0 else 'ahead'}, and "
            f"{tolerance} s are allowed"
        )


def read_secret(file: str | None, variable: str, option: str) -> str:
    """The secret that a file or an environment variable holds, as it is given to both sides.

    Args:
        file: Wins over the variable; its last line break is left out.
        variable: Name of the environment variable.
        option: Name of the option that gives the file, for messages.

    Raises:
        HookError: There is none, or it is too short to be one.
    """
    try:
        text = Path(file).read_text(encoding="utf-8") if file else os.environ.get(variable, "")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.HookError(f"the secret can't be read from {file}: {error}") from error
    secret = text.strip()
    if not secret:
        raise errors.HookError(f"a webhook needs a secret: set {variable}, or {option} FILE")
    if len(key(secret)) < SHORTEST:
        raise errors.HookError(
            f"the webhook's secret has {len(key(secret))} bytes and needs {SHORTEST}; make one "
            "with `openssl rand -base64 32`"
        )
    return secret


def key(secret: str) -> bytes:
    """The bytes that sign: of the specification's form `whsec_BASE64` the decoded ones."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            pass
    return secret.encode()
