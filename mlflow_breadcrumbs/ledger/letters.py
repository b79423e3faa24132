"""An event as text in a tag of the version that it is about, for the ledgers of others.

The tag is named by the ledger and the event's sequence there, and has the event with its hash:

    breadcrumbs.event/LEDGER/SEQUENCE = {"event": {…}, "hash": "sha256:…"}

Whoever may set tags on a version can write one, so that what comes in is held against all that an
event must be. What has another hash than its content was changed; what is about another version
came with a copy of that version, and says nothing here.
"""

import dataclasses
import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import events
from mlflow_breadcrumbs.registry import uris
from mlflow_breadcrumbs.support import canonical, credentials, json_documents, people

PREFIX = "breadcrumbs.event/"
LONGEST = 100_000
"""Characters of a tag's value on a version in MLflow."""
KINDS = (
    "import",
    "finetune",
    "merge",
    "evaluate",
    "sign",
    "alias",
    "approval",
    "approval_withdrawn",
    "recall",
    "recall_withdrawn",
    "promotion",
    "rollback",
    "override",
    "recheck",
)
"""Of the events that others need: who made a version, what was measured, decided and moved.
`verify` and `export` leave no trace on a version; what `alias_observed` tells, everybody sees."""

_FIELDS: Mapping[str, tuple[type, ...]] = {
    "actor": (str,),
    "kind": (str,),
    "phase": (str,),
    "name": (str,),
    "subject": (str,),
    "run_id": (str, type(None)),
    "intent": (int, type(None)),
    "details": (dict,),
    "sequence": (int,),
    "previous": (str,),
    "time": (str,),
}


@dataclasses.dataclass(frozen=True)
class Letter:
    """One event of one ledger, with the tag that has it."""

    head: events.ChainHead
    """Its place and hash there."""
    uri: str
    """The version that it is about."""
    content: Mapping[str, Any]
    """The event as it is hashed; a later release's may have more than this one knows."""

    @property
    def key(self) -> str:
        """Of the tag."""
        return f"{PREFIX}{self.head.ledger}/{self.head.sequence}"

    @property
    def text(self) -> str:
        """The tag's value."""
        return canonical.dumps({"event": dict(self.content), "hash": self.head.hash}).decode()


def is_for_others(about: events.Draft) -> bool:
    """Whether an event is one that others need, and there is a version to carry it."""
    wanted = about.kind in KINDS and about.phase == events.DONE
    return wanted and uris.registered(about.subject) is not None


def read_all(uri: str, tags: Mapping[str, str]) -> Iterator[Letter | errors.LedgerError]:
    """The letters on a version that are about it, and what is wrong with the changed ones."""
    for key, text in sorted(tags.items()):
        if key.startswith(PREFIX):
            try:
                if letter := read(uri, key, text):
                    yield letter
            except errors.LedgerError as error:
                yield error


def read(uri: str, key: str, text: str) -> Letter | None:
    """Read one tag; `None` where it says nothing here.

    It is about another version, or of a kind that only a later release knows.

    Raises:
        LedgerError: It is no event, or was changed.
    """
    origin = f"the tag {key} of {uri}"
    named = re.fullmatch(rf"{re.escape(PREFIX)}([0-9a-f-]{{36}})/([1-9]\d{{0,15}})", key)
    whole = json_documents.parse(text, origin, errors.LedgerError)
    content = whole.get("event") if isinstance(whole, dict) else None
    if named is None or not isinstance(content, dict):
        raise _changed(origin, "it is no event of a ledger")
    found = canonical.digest(content)
    if whole.get("hash") != found:
        raise _changed(origin, f"its hash is {whole.get('hash')}, its content's is {found}")
    for field, types in _FIELDS.items():
        value = content.get(field)
        if not isinstance(value, types) or isinstance(value, bool):
            raise _changed(origin, f"its {field} is {str(value)[:60]!r}")
    if content["sequence"] != int(named[2]):
        raise _changed(origin, f"what is stored there says that it is event {content['sequence']}")
    if content["subject"] != uri or content["kind"] not in KINDS:
        return None
    if fault := _fault(uri, content):
        raise _changed(origin, fault)
    return Letter(events.ChainHead(int(named[2]), found, named[1]), uri, content)


def _fault(uri: str, content: Mapping[str, Any]) -> str | None:
    """What an event about this version says that no ledger writes; `None` for a sound one."""
    named = uris.registered(uri)
    if named is None or content["name"] != named[0] or content["phase"] != events.DONE:
        return f"it is the {content['phase']} of {content['name']!r}"
    if credentials.cleaned(content) != content:
        return "it has a password"
    if fault := people.fault(content["actor"]):
        return f"of its actor {content['actor']!r}: {fault}"
    try:
        moment = datetime.datetime.fromisoformat(content["time"])
    except ValueError:
        return f"its time is {content['time'][:60]!r}"
    if moment.utcoffset() != datetime.timedelta():
        return f"its time {content['time']} is not UTC"
    if moment.isoformat(timespec="milliseconds") != content["time"]:
        return f"its time is {content['time'][:60]!r}"
    return None


def _changed(origin: str, why: str) -> errors.LedgerError:
    return errors.LedgerError(
        f"{origin} was changed: {why}. Delete the tag; `mlflow-breadcrumbs ledger sync` writes it "
        "again, where it was written or is known"
    )
