"""The page of a registered model: its versions, its aliases, and what needs attention."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from mlflow_breadcrumbs.ledger import alias_history
from mlflow_breadcrumbs.registry import catalog, uris
from mlflow_breadcrumbs.server import kept_files, past, recalled, visibility
from mlflow_breadcrumbs.support import wording


@dataclasses.dataclass(frozen=True)
class Attention:
    """Something that a person should look at."""

    kind: str
    """`recalled`, `drift`, `refused`, `direct`, `unverified` or `history`."""
    text: str
    when: str
    """UTC; empty where it is so now."""
    version: str | None
    """Its number."""


@dataclasses.dataclass(frozen=True)
class VersionLine:
    """A version, as a line."""

    uri: str
    number: int
    kind: str
    tasks: tuple[str, ...]
    aliases: tuple[str, ...]
    created: str
    """UTC."""


@dataclasses.dataclass(frozen=True)
class ModelPage:
    """What the page says."""

    name: str
    description: str
    aliases: dict[str, str]
    """The version's number by alias, now."""
    attention: tuple[Attention, ...]
    versions: tuple[VersionLine, ...]
    """The newest first."""
    more: bool
    """Whether there are older ones."""

    def to_dict(self) -> dict[str, Any]:
        """The page as JSON."""
        return dataclasses.asdict(self)


def gather(name: str, sight: visibility.Sight, *, most: int) -> ModelPage:
    """Gather the page of a model.

    Args:
        name: Of the model.
        sight: Of the one who asks.
        most: Versions that are listed.

    Raises:
        AbsentError: There is no such model, or it may not be seen.
        RegistryError: The registry can't be read.
    """
    model = find(name, sight)
    found = list(catalog.of_model(name))
    known = past.of_model(name, ((entry.version.uri, tags) for entry, tags in found))
    return ModelPage(
        name=name,
        description=model.description,
        aliases=dict(model.aliases),
        attention=(*_recalled(model, sight), *_attention(model, known)),
        versions=tuple(_row(entry, model) for entry, _ in found[:most]),
        more=len(found) > most,
    )


def find(name: str, sight: visibility.Sight) -> catalog.RegisteredModel:
    """A registered model that may be seen.

    Raises:
        AbsentError: There is none.
    """
    model = catalog.model(name) if sight.model(name) else None
    if model is None:
        raise kept_files.absent(f"the registered model {name!r}")
    return model


def live() -> dict[str, tuple[str, ...]]:
    """The aliases that point now at each version that has some, by its URI.

    Raises:
        RegistryError: The registry can't be read.
    """
    return {
        uris.of_version(model.name, at): aliases_of(model, at)
        for model in catalog.models()
        for at in model.aliases.values()
    }


def aliases_of(model: catalog.RegisteredModel, number: str) -> tuple[str, ...]:
    """The aliases that point at a version now."""
    return tuple(alias for alias, at in model.aliases.items() if at == number)


def _row(entry: catalog.Entry, model: catalog.RegisteredModel) -> VersionLine:
    version = entry.version
    return VersionLine(
        uri=version.uri,
        number=version.number or 0,
        kind=version.kind,
        tasks=version.tasks,
        aliases=aliases_of(model, str(version.number)),
        created=wording.moment_of(version.created),
    )


def _recalled(model: catalog.RegisteredModel, sight: visibility.Sight) -> Iterator[Attention]:
    """The live versions that were recalled, or descend from one that was."""
    said = recalled.standing()
    if not said or not model.aliases:
        return
    known = catalog.everything()
    touched = recalled.touched(known, said)
    for number in sorted(set(model.aliases.values()), key=int):
        uri = uris.of_version(model.name, number)
        for entry in touched.get(uri, ()):
            aliases = ", ".join(f"@{alias}" for alias in aliases_of(model, number))
            text = recalled.told(entry, known.versions[uri].weights_digest, sight)
            when = wording.moment(entry.time)
            yield Attention("recalled", f"Version {number} is {aliases}. {text}", when, number)


def _attention(model: catalog.RegisteredModel, known: past.KnownPast) -> Iterator[Attention]:
    """What is so now first, then what happened, the newest first."""
    if known.fault is not None:
        yield Attention("history", f"The history can't be read: {known.fault}", "", None)
        return
    yield from _unnoticed(model, known)
    happened = [*_judged(known), *_moved(known.history.moves()), *_unverified(model, known)]
    yield from sorted(happened, key=lambda each: each.when, reverse=True)


def _unnoticed(model: catalog.RegisteredModel, known: past.KnownPast) -> Iterator[Attention]:
    for alias, move in sorted(known.unnoticed(model.aliases).items()):
        at = model.aliases.get(alias)
        now = f"points at version {at}" if at else "is gone"
        before = "no event of the history says so"
        if move is not None:
            before = f"the history last has it {alias_history.described(move)}"
        yield Attention("direct", f"@{alias} {now}; {before}.", "", at)


def _judged(known: past.KnownPast) -> Iterator[Attention]:
    """The last judgement of each version and alias, where it was a no."""
    last = {
        (event.kind, event.subject, event.details.get("alias")): event
        for event in known.of_kinds("recheck", "promotion")
    }
    for event in last.values():
        alias, verdict = event.details.get("alias"), event.details.get("verdict")
        number = (uris.registered(event.subject) or (None, None))[1]
        if event.kind == "recheck" and verdict == "broken":
            text = f"Version {number} no longer keeps the policy that @{alias} asks for."
            yield Attention("drift", text, wording.moment(event.time), number)
        if event.kind == "promotion" and verdict == "refused":
            text = f"Version {number} was refused as @{alias}, when {event.actor} asked."
            yield Attention("refused", text, wording.moment(event.time), number)


def _moved(moves: Sequence[alias_history.Change]) -> Iterator[Attention]:
    """The last move of each alias, where it went past the gates."""
    for move in {move.alias: move for move in moves}.values():
        if move.is_direct or move.reason is not None:
            text = f"@{move.alias} was {alias_history.described(move)}: past the gates."
            yield Attention("direct", text, wording.moment(move.latest), move.after)


def _unverified(model: catalog.RegisteredModel, known: past.KnownPast) -> Iterator[Attention]:
    """The versions with an alias whose last `verify` said no."""
    last = {event.subject: event for event in known.of_kinds("verify")}
    for number in sorted(set(model.aliases.values())):
        event = last.get(uris.of_version(model.name, number))
        if event is not None and not event.details.get("ok"):
            failed = ", ".join(map(str, event.details.get("failed", ())))
            text = f"Version {number} is not what was registered: {failed}."
            yield Attention("unverified", text, wording.moment(event.time), number)
