"""One byte string for one value: canonical JSON (RFC 8785) and its SHA-256 digest."""

import hashlib
from typing import Any

import rfc8785


def dumps(value: Any) -> bytes:
    """Canonical JSON of `value` (dicts, lists, strings, numbers, booleans, None), RFC 8785."""
    return rfc8785.dumps(value)


def digest(value: Any) -> str:
    """`sha256:` and the hexadecimal SHA-256 of the canonical JSON of `value`."""
    return sha256(dumps(value))


def sha256(content: bytes) -> str:
    """`sha256:` and the hexadecimal SHA-256 of `content`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
