"""A merge made of another one: what its lineage says went in, with sources added or taken out."""

import dataclasses
from collections.abc import Mapping, Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.lineage import contents, statement
from mlflow_breadcrumbs.registry import uris, versions

AVERAGE = "weight_average"
"""The method whose alpha is 1/T for T sources."""

Weighted = tuple[str, float | None]
"""A source's URI, and its weight where one was given."""


@dataclasses.dataclass(frozen=True)
class MergeChange:
    """What is merged instead, and what is known of it."""

    uri: str
    """The version that is changed, pinned."""
    name: str | None
    """Its registered model; `None` for a logged model that is no version."""
    base: str
    sources: tuple[str, ...]
    """Those that stay, pinned and in their order, then those added, as given."""
    recipe: recipe.MergeRecipe
    method: str | None
    """The method that the recipe was made by, where the lineage says so."""
    added: tuple[str, ...]
    """As given, with `models:/`."""
    removed: tuple[str, ...]
    """Pinned."""
    digests: Mapping[str, str]
    """The recorded weights digest of the base and of what stays, by pinned URI."""
    parts_digest: str | None
    """Of the index of the parts that were kept."""
    run_id: str
    """The run that has them."""
    notes: tuple[str, ...] = ()

    def given(self) -> dict[str, object]:
        """What the lineage says of it, beside base and sources."""
        return {"from": self.uri, "added": list(self.added), "removed": list(self.removed)}

    def said(self) -> dict[str, str]:
        """The same for the history."""
        words = {"from": self.uri, "added": " ".join(self.added), "removed": " ".join(self.removed)}
        return {key: value for key, value in words.items() if value}


def plan(
    uri: str,
    add: Sequence[Weighted] = (),
    remove: Sequence[str] = (),
    weights: Sequence[float] | None = None,
) -> MergeChange:
    """The merge that is asked for, from the lineage of the version that is changed.

    Args:
        uri: of a merged version.
        add: go to the end, each with the weight 1 if none is given.
        remove: URIs of sources, which need not be there any more.
        weights: of all sources that result, in place of the recorded ones and of those in `add`.

    Raises:
        RegistryError: there is no such version, or it was not merged.
        IntegrityError: its lineage is not what was registered.
        MergeError: a source is not in it or in it already, or none is left.
        RecipeError: another number of weights than of sources.
    """
    resolved = versions.resolve(uri)
    _, stated = contents.read_statement(resolved)
    add = [(uris.full(source), weight) for source, weight in add]
    gone = [_find(stated, resolved.uri, source) for source in remove]
    if len(set(gone)) < len(gone):
        twice = next(source for number, source in enumerate(gone) if source in gone[:number])
        raise errors.MergeError(f"--remove names {twice} twice; name it once")
    stays = [source for source in stated.sources if source.uri not in gone]
    if not stays and not add:
        raise errors.MergeError(
            f"without {', '.join(gone)} no source of {resolved.uri} is left to merge; "
            "--add another, or use the base itself"
        )
    for source, _ in add:
        _check_new(source, stays, resolved.uri)
    before = stated.settings
    settings, notes = _recipe(stated, len(stays) + len(add))
    own = _weights(before, stated.sources, stays, add) if weights is None else tuple(weights)
    settings = dataclasses.replace(settings, weights=own)
    settings.weight_of(len(stays) + len(add))
    return MergeChange(
        uri=resolved.uri,
        name=resolved.name,
        base=stated.base.uri,
        sources=(*(source.uri for source in stays), *(source for source, _ in add)),
        recipe=settings,
        method=stated.method,
        added=tuple(source for source, _ in add),
        removed=tuple(gone),
        digests={entry.uri: entry.weights_digest for entry in (stated.base, *stays)},
        parts_digest=stated.parts_digest,
        run_id=stated.run_id,
        notes=notes,
    )


def recorded_digests(
    change: MergeChange | None, resolved: Sequence[versions.ResolvedVersion]
) -> list[str | None]:
    """The weights digest of each input that was recorded, by the registry or by the lineage.

    Raises:
        IntegrityError: the two contradict each other.
    """
    known = change.digests if change is not None else {}
    found = []
    for entry in resolved:
        then, now = known.get(entry.uri), entry.recorded_digest
        if change is not None and None not in (then, now) and then != now:
            raise errors.IntegrityError(
                f"{entry.uri} is not what went into {change.uri}: it had the weights digest {then} "
                f"then, and is recorded with {now} now. Restore it, or merge anew with --base and "
                "--source"
            )
        found.append(now or then)
    return found


def _find(stated: statement.Statement, uri: str, source: str) -> str:
    """The pinned URI of a source of a merge that may be named otherwise, and may be gone."""
    source = uris.full(source)
    for entry in stated.sources:
        if source == entry.uri or (entry.model_id and source == uris.of_model(entry.model_id)):
            return entry.uri
    try:
        pinned = versions.resolve(source)
    except errors.UnreachableError:
        raise
    except errors.RegistryError:
        pinned = None  # gone, or never there: what it was is in the lineage or nowhere
    for entry in stated.sources:
        if pinned is not None and pinned.uri == entry.uri:
            return entry.uri
    known = ", ".join(entry.uri for entry in stated.sources)
    raise errors.MergeError(f"{source} is not a source of {uri}, whose sources are {known}")


def _check_new(source: str, stays: Sequence[statement.Input], uri: str) -> None:
    pinned = versions.resolve(source)
    for entry in stays:
        if pinned.uri == entry.uri:
            raise errors.MergeError(
                f"{source} is a source of {uri} already; leave out --add, or give all sources "
                "other weights (--weights)"
            )


def _recipe(
    stated: statement.Statement, sources: int
) -> tuple[recipe.MergeRecipe, tuple[str, ...]]:
    """The recipe for another number of sources, before its weights; what was decided."""
    settings, before = stated.settings, len(stated.sources)
    by_number = recipe.MergeRecipe.from_method(AVERAGE, sources=before)
    ways = ("density", "gamma", "alpha", "combine", "calibrate")
    if sources == before or any(getattr(settings, way) != getattr(by_number, way) for way in ways):
        return settings, ()
    if stated.method == AVERAGE:
        return dataclasses.replace(settings, alpha=1 / sources, weights=()), (
            f"alpha is 1/{sources} for {sources} sources, as the method {AVERAGE} has it; "
            f"it was 1/{before}",
        )
    if stated.method is not None:
        return settings, ()
    return settings, (
        f"alpha stays {settings.alpha:g}, which is 1/{before} for the {before} sources before; the "
        f"lineage does not say whether the method was {AVERAGE}. If it was, merge anew",
    )


def _weights(
    settings: recipe.MergeRecipe,
    before: Sequence[statement.Input],
    stays: Sequence[statement.Input],
    add: Sequence[Weighted],
) -> tuple[float, ...]:
    """The weights of what stays and of what is added; none where all of them are 1."""
    recorded = dict(
        zip((entry.uri for entry in before), settings.weight_of(len(before)), strict=True)
    )
    given = [1.0 if weight is None else weight for _, weight in add]
    found = (*(recorded[entry.uri] for entry in stays), *given)
    return () if all(weight == 1 for weight in found) else found
