"""What is in force: read once by the command that starts the server, the same for all its workers.

A worker that died is followed by another, days later, and the file may have been changed since. So
the command hands what it has read to its workers in their environment, and none of them reads the
file to judge by it.
"""

import base64
import binascii
import dataclasses
import logging
import os
import zlib
from typing import Any

from mlflow.environment_variables import _MLFLOW_SGI_NAME

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import events
from mlflow_breadcrumbs.promotion import policies
from mlflow_breadcrumbs.server import pinning
from mlflow_breadcrumbs.support import canonical, json_documents

VARIABLE = "_BREADCRUMBS_SERVER_IN_FORCE"
"""Has what the command has read. It is never set by people."""
LONGEST = 100_000
"""Characters of a variable; Linux takes 131,072 bytes."""

_logger = logging.getLogger("mlflow.breadcrumbs")
"""Among MLflow's own, which its server shows."""


@dataclasses.dataclass(frozen=True)
class InForce:
    """What is pinned, and since when."""

    pins: pinning.Pins
    since: str | None = None
    """UTC; `None` where nothing is pinned."""

    def to_dict(self) -> dict[str, Any]:
        """For `guard.json`: which configuration, since when, and whether the file has another."""
        digest = self.pins.digest if self.pins.pins else None
        due = digest is not None and _is_changed(digest)
        return {"configuration_digest": digest, "since": self.since, "restart_due": due}


def hand_over() -> None:
    """Read the configuration, and give it to the workers that this process starts.

    A worker has it already, and does nothing.

    Raises:
        GuardError: it can't be read, or is too large to be handed over.
    """
    if _is_worker():
        return
    os.environ.pop(VARIABLE, None)
    pins = pinning.configured()
    if not pins.pins:
        return
    since = events.now()
    os.environ[VARIABLE] = _packed(pins, since)
    _logger.info(
        "aliases are guarded by the configuration %s: %s; overrides: %s",
        pins.digest,
        ", ".join(f"{pin.pattern} by the policy {pin.rules.digest}" for pin in pins.pins),
        ", ".join(pins.overrides) or "nobody",
    )


def taken() -> InForce:
    """What the command has handed over; what the file says, where no command has started this.

    Raises:
        GuardError: it can't be read.
    """
    handed = os.environ.get(VARIABLE, "") if _is_worker() else ""
    if handed:
        return _unpacked(handed)
    pins = pinning.configured()
    return InForce(pins, events.now() if pins.pins else None)


def _is_worker() -> bool:
    """Whether MLflow's command has started this process: it tells its workers what runs them."""
    return bool(_MLFLOW_SGI_NAME.is_set())


def _is_changed(digest: str) -> bool:
    """Whether the file says something else by now, or can't be read."""
    try:
        return pinning.configured().digest != digest
    except errors.GuardError:
        return True


def _packed(pins: pinning.Pins, since: str) -> str:
    listed = [[pin.pattern, pin.rules.to_yaml()] for pin in pins.pins]
    content = {"pins": listed, "overrides": list(pins.overrides), "since": since}
    text = base64.b64encode(zlib.compress(canonical.dumps(content))).decode()
    if len(text) > LONGEST:
        raise errors.GuardError(
            f"the configuration of the server ({pinning.VARIABLE}) and its policies are "
            f"{len(text):,} characters when they are packed for the workers, {LONGEST:,} is the "
            "most; let patterns cover more, or policies say less"
        )
    return text


def _unpacked(text: str) -> InForce:
    origin = f"what the server's command has handed over ({VARIABLE})"
    try:
        content = zlib.decompress(base64.b64decode(text))
    except (binascii.Error, ValueError, zlib.error) as error:
        raise errors.GuardError(
            f"{origin} can't be read: {error}; start the server anew"
        ) from error
    found = json_documents.parse(content, origin, errors.GuardError)
    pins = tuple(pinning.Pin(pattern, policies.parse(rules)) for pattern, rules in found["pins"])
    return InForce(pinning.Pins(pins, tuple(found["overrides"])), found["since"])
