"""Turns in moving an alias, where those who move it have a ledger each.

MLflow has no compare-and-set. So whoever is about to move an alias says so first, in a tag of the
registered model under a key of its own, and then reads the tags of all: of two at once at least one
sees the other, steps back, and asks again. Where all have one ledger, its database gives the turns.
"""

import contextlib
import datetime
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping

import mlflow

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import anchors, events, stores
from mlflow_breadcrumbs.registry import failures
from mlflow_breadcrumbs.support import canonical, json_documents, processes, wording

PREFIX = "breadcrumbs.moving/"
TIMEOUT = datetime.timedelta(minutes=10)
"""After this a turn counts as left behind: moving an alias takes one request without retries."""

_logger = logging.getLogger(__name__)


class BusyError(Exception):
    """Somebody else has said that they will move the alias, and not yet what came of it."""

    def __init__(self, who: str, since: str) -> None:
        super().__init__(f"by {who} since {wording.moment(since)}")


@contextlib.contextmanager
def taken(name: str, alias: str) -> Iterator[None]:
    """Have the turn to move an alias; nothing to do where the ledger is not private.

    Raises:
        BusyError: Somebody else has it; ask again.
        RegistryError: The registry refused, or can't be reached.
    """
    if not stores.is_private():
        yield
        return
    begins = _begins(alias)
    own = f"{begins}{uuid.uuid4()}"
    said = {"actor": events.actor(), "process": processes.own() or "", "time": events.now()}
    client = mlflow.MlflowClient()
    with failures.explained(f"{name}@{alias} can't be moved"):
        client.set_registered_model_tag(name, own, canonical.dumps(said).decode())
    try:
        with failures.explained(f"cannot read who moves {name}@{alias}"):
            tags = client.get_registered_model(name).tags
        for key, text in tags.items():
            if key.startswith(begins) and key != own:
                _give_way(name, key, text)
        yield
    finally:
        _remove(name, own)


def is_held(alias: str, keys: Iterable[str]) -> bool:
    """Whether somebody has the turn to move an alias, by the tags' keys of its registered model."""
    begins = _begins(alias)
    return any(key.startswith(begins) for key in keys)


def _begins(alias: str) -> str:
    """How the keys of all turns of an alias begin."""
    return f"{PREFIX}{canonical.digest(alias).removeprefix('sha256:')[:16]}/"


def _give_way(name: str, key: str, text: str) -> None:
    """Raise `BusyError` for a turn that is another's; one that was left behind is removed."""
    with contextlib.suppress(errors.LedgerError, LookupError, ValueError, TypeError):
        said = json_documents.parse(text, f"the tag {key} of {name}", errors.LedgerError)
        if not _is_over(said):
            raise BusyError(str(said["actor"]), str(said["time"]))
    _remove(name, key)


def _is_over(said: Mapping[str, str]) -> bool:
    """Whether who had a turn is certainly gone, or has had it for too long."""
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(said["time"])
    return processes.is_gone(said["process"]) or abs(age) > TIMEOUT


def _remove(name: str, key: str) -> None:
    """Take a tag away; that this fails is logged, since it counts as left behind later."""
    try:
        with failures.without_retries():
            mlflow.MlflowClient().delete_registered_model_tag(name, key)
    except anchors.UNREACHABLE as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            _logger.warning("the tag %s of %s was not removed: %s", key, name, error)
