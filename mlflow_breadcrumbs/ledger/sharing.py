"""One history for all who use a registry, where each of them has a ledger of their own.

A registry behind a server, and a ledger that is a file: what is written here, nobody else would
see. So every event that others need is put into a tag of its version (`letters`), and every ledger
takes up what it finds there, as an event `foreign` that holds the other's event whole, with its
hash. It counts from then on as if it had been written here; it begins and ends no job. A ledger in
a database that all share takes no part: it needs none of this, and is guarded better than tags.
"""

import dataclasses
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import mlflow
import sqlalchemy as sql

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import anchors, events, letters, schema, stores
from mlflow_breadcrumbs.registry import catalog, failures, tag_keys, uris
from mlflow_breadcrumbs.support import canonical

Page = Iterable[tuple[str, Mapping[str, str]]]
"""Versions by URI, with their tags."""

FEW = 500
"""Versions that a statement names; of more, all events are read."""

_EVENTS = schema.table(schema.EventRow)
_logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Mail:
    """What the tags of some versions say of events."""

    found: dict[tuple[str, int], letters.Letter] = dataclasses.field(default_factory=dict)
    """By ledger and sequence."""
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    """What is wrong with the first tag that was changed, by version."""
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of the weights of each version that was read; empty where no tag has it."""

    def add(self, page: Page) -> None:
        """Read the tags of further versions."""
        for uri, tags in page:
            self.digests[uri] = tags.get(tag_keys.WEIGHTS_DIGEST, "")
            for each in letters.read_all(uri, tags):
                if isinstance(each, letters.Letter):
                    self.found[each.head.ledger, each.head.sequence] = each
                else:
                    self.faults.setdefault(uri, str(each))


def check(uri: str, what: str) -> None:
    """Make sure that what will be written about a version can be seen by others.

    Args:
        uri: Pinned, `models:/NAME/VERSION`.
        what: What will be written, for the message.

    Raises:
        RegistryError: MLflow lets this user set no tag of the version.
    """
    named = uris.registered(uri)
    if not stores.is_private() or named is None:
        return
    with stores.opened() as ledger, ledger.reading() as connection:
        head = events.head(connection)
    remedy = (
        "ask for the permission to edit the model, or share a ledger in a database "
        f"({stores.VARIABLE}=postgresql://…)"
    )
    with failures.explained(f"{what} would be seen by nobody else: {uri} can't be tagged", remedy):
        mlflow.MlflowClient().set_model_version_tag(*named, anchors.TAG_HEAD, head.tag())


def publish(head: events.ChainHead, about: events.Draft) -> None:
    """Put an event that was written where others see it, and the head into MLflow.

    It is written already: that this fails is logged, and `give` makes up for it.
    """
    anchors.anchor(head, about)
    if not (letters.is_for_others(about) and stores.is_private()):
        return
    with stores.opened() as ledger, ledger.reading() as connection:
        body = connection.scalar(sql.select(_EVENTS.c.body).where(_EVENTS.c.hash == head.hash))
    if body is not None:
        content = events.Event.parse(body).to_dict()
        _put(letters.Letter(head, str(about.subject), content))


def take_up(mail: Mail) -> int:
    """Write the events of other ledgers that this one has not yet; how many.

    What is known already and says something else now is added to the mail's faults.

    Raises:
        LedgerError: The ledger can't be written.
    """
    with stores.opened() as ledger:
        with ledger.reading() as connection:
            new = _unknown(connection, mail)
        if not new:
            return 0
        with ledger.writing() as connection:
            # Another process may have been faster.
            new = _unknown(connection, mail)
            for letter in sorted(new, key=lambda each: (each.content["time"], each.key)):
                events.append(connection, _wrapped(letter))
    return len(new)


def give(mail: Mail) -> int:
    """Write into MLflow what this ledger knows and the tags of the versions lack; how many.

    Its own events that could not be put there, or whose tags were deleted; and those of other
    ledgers, whose owners may be gone.

    Args:
        mail: Of whole models, after `take_up`; versions that are not in it are left alone.
    """
    given = 0
    with stores.opened() as ledger, ledger.reading() as connection:
        lacking = [letter for letter in _known(connection) if _lacks(mail, letter)]
    for letter in lacking:
        if not _put(letter):
            break
        given += 1
    return given


def untaken(connection: sql.Connection, mail: Mail) -> list[events.Event]:
    """The events of other ledgers that were not taken up yet, as they would count here.

    Each has the sequence that it has in its own ledger.
    """
    return [
        events.counted(
            events.Event(
                **vars(_wrapped(letter)),
                sequence=letter.head.sequence,
                previous="",
                time=letter.content["time"],
            )
        )
        for letter in _unknown(connection, mail)
    ]


def fault(connection: sql.Connection, mail: Mail) -> str | None:
    """The first thing that is wrong with the tags that were read, given what is known here.

    An event of another ledger that was taken up, and whose tag is gone, is wrong as well.
    """
    if not stores.is_private():
        return None
    _unknown(connection, mail)
    if mail.faults:
        return next(iter(mail.faults.values()))
    own = events.head(connection).ledger
    for letter in _known(connection):
        if letter.head.ledger != own and _lacks(mail, letter):
            return (
                f"the tag {letter.key} of {letter.uri} was deleted: it had the "
                f"{letter.content['kind']} of {letter.content['actor']}. `mlflow-breadcrumbs "
                "ledger sync` writes it again"
            )
    return None


def exchange(name: str, digests: Collection[str] = ()) -> dict[str, str]:
    """Take up what others wrote about a model and about some weights.

    Args:
        name: The registered model.
        digests: Of weights, which may be those of versions of other models.

    Returns:
        The heads that the model's versions carry, by their URIs.

    Raises:
        LedgerError: A tag of a version with these weights was changed, or the ledger can't be
            used.
        RegistryError: The registry can't be read.
    """
    mail, kept = Mail(), dict[str, str]()
    for page in catalog.tags(name):
        kept |= {uri: tags[anchors.TAG_HEAD] for uri, tags in page if anchors.TAG_HEAD in tags}
        mail.add(page)
    if stores.is_private():
        for digest in sorted(digests):
            for page in catalog.tags(weights_digest=digest):
                mail.add(page)
        take_up(mail)
        for uri, fault in mail.faults.items():
            if mail.digests[uri] in digests:
                raise errors.LedgerError(fault)
            _logger.warning("%s", fault)
    return kept


def look(*names: str) -> None:
    """Take up what others wrote about some models, or all; what can't be read now is logged.

    Raises:
        LedgerError: The ledger can't be used.
    """
    if not stores.is_private():
        return
    mail = Mail()
    try:
        for name in names or (None,):
            for page in catalog.tags(name):
                mail.add(page)
    except errors.RegistryError as error:
        _logger.warning("what others have written since the last look is not known: %s", error)
    take_up(mail)
    for fault in mail.faults.values():
        _logger.warning("%s", fault)


def mend() -> int:
    """Take up what others wrote in the whole registry, and `give` what is lacking; how much.

    Raises:
        RegistryError: The registry can't be read.
        LedgerError: The ledger can't be used.
    """
    if not stores.is_private():
        return 0
    mail = Mail()
    for page in catalog.tags():
        mail.add(page)
    done = take_up(mail) + give(mail)
    for fault in mail.faults.values():
        _logger.warning("%s", fault)
    return done


def _put(letter: letters.Letter) -> bool:
    """Write one tag; whether that was possible."""
    named = uris.registered(letter.uri)
    what = f"event {letter.head.sequence} is not seen by others who use the registry"
    if named is None or len(letter.text) > letters.LONGEST:
        _logger.warning("%s: MLflow keeps no tag of %d characters", what, len(letter.text))
        return True
    try:
        mlflow.MlflowClient().set_model_version_tag(*named, letter.key, letter.text)
    except anchors.UNREACHABLE as error:
        _logger.warning(
            "%s: %s; `mlflow-breadcrumbs ledger sync` tries again",
            *(what, failures.explain(error, f"{letter.uri} can't be tagged")),
        )
        return False
    return True


def _lacks(mail: Mail, letter: letters.Letter) -> bool:
    """Whether a version that was read has no such tag; one that was changed is a fault instead."""
    there = letter.uri in mail.digests and letter.uri not in mail.faults
    return there and (letter.head.ledger, letter.head.sequence) not in mail.found


def _unknown(connection: sql.Connection, mail: Mail) -> list[letters.Letter]:
    """The letters of other ledgers that were not taken up; contradictions become faults."""
    if not mail.found:
        return []
    own = events.head(connection).ledger
    known = {(one.head.ledger, one.head.sequence): one for one in _known(connection, mail)}
    new = []
    for place, letter in mail.found.items():
        before = known.get(place)
        if before is not None and before.head != letter.head:
            mail.faults.setdefault(
                letter.uri,
                f"the tag {letter.key} of {letter.uri} was changed: its event has the hash "
                f"{letter.head.hash}, and had {before.head.hash} before. Delete the tag; "
                "`mlflow-breadcrumbs ledger sync` writes it again",
            )
        elif before is None and letter.head.ledger == own:
            mail.faults.setdefault(
                letter.uri,
                f"the tag {letter.key} of {letter.uri} was made up, or this ledger is older than "
                "it was: it has no such event. Delete the tag, or restore the ledger",
            )
        elif before is None:
            new.append(letter)
    return new


def _known(connection: sql.Connection, mail: Mail | None = None) -> list[letters.Letter]:
    """What this ledger has for others: its own events, and those that it has taken up.

    Args:
        connection: A transaction.
        mail: Only of the versions in it.
    """
    own = events.head(connection).ledger
    subjects = None if mail is None else {letter.uri for letter in mail.found.values()}
    statement = sql.select(_EVENTS.c.hash, _EVENTS.c.body).order_by(_EVENTS.c.sequence)
    if subjects is not None and len(subjects) <= FEW:
        statement = statement.where(_EVENTS.c.subject.in_(subjects))
    found = []
    for row in connection.execute(statement):
        event = events.Event.parse(row.body)
        if event.kind == events.FOREIGN:
            head = events.ChainHead.parse(event.details[events.FROM_LEDGER])
            found.append(letters.Letter(head, str(event.subject), event.details["event"]))
        elif letters.is_for_others(event):
            head = events.ChainHead(event.sequence, row.hash, own)
            found.append(letters.Letter(head, str(event.subject), event.to_dict()))
    return found


def _wrapped(letter: letters.Letter) -> events.Draft:
    """The event of this ledger that says that another has this one."""
    details: dict[str, Any] = {
        events.FROM_LEDGER: letter.head.tag(),
        "event": dict(letter.content),
    }
    assert canonical.digest(details["event"]) == letter.head.hash
    return events.Draft(
        actor=events.actor(),
        kind=events.FOREIGN,
        phase=events.DONE,
        name=letter.content["name"],
        subject=letter.uri,
        run_id=letter.content["run_id"],
        details=details,
    )
