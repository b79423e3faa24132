"""The page of a version: what it was made of and how, how good it is, who let it through."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import events, witnessed
from mlflow_breadcrumbs.lineage import contents, statement, stories
from mlflow_breadcrumbs.promotion import approvals, facts
from mlflow_breadcrumbs.registry import catalog, graph, run_files, uris, versions
from mlflow_breadcrumbs.server import kept_files, model_page, past, recalled, visibility
from mlflow_breadcrumbs.support import wording

FORMATS = {"cyclonedx": "CycloneDX", "slsa": "SLSA", "prov": "W3C PROV"}
"""The exports that the page offers, with what people call them."""
OWN = ("breadcrumbs.", "mlflow.")
"""How the tags begin that are shown otherwise, or name versions that may not be seen."""


@dataclasses.dataclass(frozen=True)
class ShownInput:
    """The base or a source, as the lineage has it."""

    role: str
    uri: str
    """Or that it may not be seen; then the rest is empty."""
    weight: float | None
    tasks: tuple[str, ...]
    licence: str | None
    weights_digest: str | None


@dataclasses.dataclass(frozen=True)
class ShownDecision:
    """A promotion that was asked for, the last of its alias."""

    alias: str
    result: str
    """`promoted`, `refused` or `lost`."""
    when: str
    """UTC."""
    actor: str
    run_id: str | None
    policy_digest: str | None
    rules: tuple[dict[str, Any], ...]
    """As in `verdicts.Rule`; empty where the run can't be read."""


@dataclasses.dataclass(frozen=True)
class ShownVerification:
    """What `verify` said last."""

    ok: bool
    when: str
    """UTC."""
    actor: str
    failed: dict[str, str]
    """The checks that failed, with their status."""


@dataclasses.dataclass(frozen=True)
class Descendant:
    """A version that descends from the recalled one, and may be seen."""

    uri: str
    aliases: tuple[str, ...]
    """That point at it now."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How it was merged."""

    method: str | None
    sentence: str
    fields: dict[str, Any]
    digest: str


@dataclasses.dataclass(frozen=True)
class VersionPage:
    """What the page says."""

    uri: str
    name: str
    number: str
    kind: str
    description: str
    created: str
    """UTC."""
    registered_by: tuple[str, ...]
    """The accounts that the server saw register it; none without accounts, or from before."""
    run_id: str | None
    weights_digest: str | None
    aliases: tuple[str, ...]
    licence: str | None
    tags: dict[str, str]
    """Those of people."""
    recipe: Recipe | None
    inputs: tuple[ShownInput, ...]
    evaluation: tuple[dict[str, Any], ...]
    """A row per task, as in `scorecard.Scorecard.rows`."""
    decisions: tuple[ShownDecision, ...]
    approvals: tuple[dict[str, Any], ...]
    """As in `facts.Approval`."""
    recalls: tuple[str, ...]
    """Of these weights and of those that they were made from, a sentence each."""
    recalled: bool
    """Whether its own weights were, and not only what they were made from."""
    suspects: tuple[Descendant, ...]
    """All that descends from it, where its own weights were recalled; live ones first."""
    verification: ShownVerification | None
    signed: bool | None
    """By the history; `None` where it can't be read."""
    exports: tuple[str, ...]
    """The formats; empty where they would name what may not be seen."""
    faults: tuple[str, ...]
    """What could not be read, a sentence each."""

    def to_dict(self) -> dict[str, Any]:
        """The page as JSON."""
        return dataclasses.asdict(self)


def gather(name: str, number: str, sight: visibility.Sight) -> VersionPage:
    """Gather the page of a version.

    Raises:
        AbsentError: there is no such version, or it may not be seen.
        RegistryError: the registry can't be read.
    """
    model = model_page.find(name, sight)
    resolved = kept_files.resolve(uris.of_version(name, number))
    entries = {each.version.uri: (each, tags) for each, tags in catalog.of_model(name)}
    if resolved.uri not in entries:
        raise kept_files.absent(resolved.uri)
    entry = entries[resolved.uri][0]
    version = entry.version
    known = past.of_model(name, ((uri, tags) for uri, (_, tags) in entries.items()))
    stated, fault = _stated(resolved, version)
    signed = bool(known.about(resolved.uri, "sign")) if known.fault is None else None
    named = {edge.parent for edge in entry.edges}
    named |= {each.uri for each in (stated.inputs if stated else ())}
    hidden = not all(map(sight.version, named))
    recalls = list(recalled.of_version(resolved.uri, sight))
    own = any(given.weights_digest == resolved.recorded_digest for given, _ in recalls)
    return VersionPage(
        uri=resolved.uri,
        name=name,
        number=str(version.number),
        kind=version.kind,
        # What a merge wrote there names its sources.
        description="" if hidden else versions.description_of(resolved),
        created=wording.moment_of(version.created),
        registered_by=_registered_by(known.about(resolved.uri, witnessed.KIND)),
        run_id=version.run_id,
        weights_digest=resolved.recorded_digest,
        aliases=model_page.aliases_of(model, str(version.number)),
        licence=versions.licence_of(resolved),
        tags={key: tag for key, tag in sorted(resolved.tags.items()) if not key.startswith(OWN)},
        recipe=_recipe(stated) if stated else None,
        inputs=tuple(_inputs(stated, entry, sight)),
        evaluation=tuple(_row(row, sight) for row in stated.evaluation) if stated else (),
        decisions=tuple(_decisions(known.about(resolved.uri, "promotion"), sight)),
        approvals=tuple(map(dataclasses.asdict, _approvals(resolved, known))),
        recalls=tuple(text for _, text in recalls),
        recalled=own,
        suspects=tuple(_suspects(resolved.uri, sight)) if own else (),
        verification=_verification(known.about(resolved.uri, "verify")),
        signed=signed,
        exports=tuple(FORMATS) if stated and not hidden else (),
        faults=tuple(filter(None, (fault, known.fault))),
    )


def exported(name: str, number: str, form: str, sight: visibility.Sight) -> str:
    """The lineage of a version in one of `FORMATS`, as the command `export` gives it.

    Raises:
        AbsentError: there is no such version or format, or it may not be seen; or the export names
            versions that may not be.
        RegistryError: the version has no `lineage.json`.
        IntegrityError: its `lineage.json` was changed after it was registered.
        ExtraError: the format's library is not installed.
    """
    from mlflow_breadcrumbs.audit import export
    from mlflow_breadcrumbs.audit.export import subjects

    if form not in FORMATS:
        raise kept_files.absent(f"an export as {form!r}")
    model_page.find(name, sight)
    resolved = kept_files.resolve(uris.of_version(name, number))
    known = catalog.ancestry(resolved.uri)
    named = {*known.versions, *(edge.parent for edge in known.edges)}
    if not all(map(sight.version, named)):
        raise kept_files.absent(f"an export of {resolved.uri} without what it was made from")
    return export.written(subjects.of_version(resolved), form)


def _stated(
    resolved: versions.ResolvedVersion, version: graph.Version
) -> tuple[statement.Statement | None, str | None]:
    """What the lineage says, and why it says nothing where it should."""
    if version.kind != "merge":
        return None, None
    found = contents.lineage_of(resolved)
    return (found, None) if isinstance(found, statement.Statement) else (None, str(found))


def _recipe(stated: statement.Statement) -> Recipe:
    settings = stated.settings
    return Recipe(stated.method, stories.told(stated), settings.to_dict(), settings.digest)


def _inputs(
    stated: statement.Statement | None, entry: catalog.Entry, sight: visibility.Sight
) -> Iterator[ShownInput]:
    """The base and the sources by the lineage, or else by the tags."""
    if stated is not None:
        yield from (_input(each, sight) for each in stated.inputs)
        return
    for edge in entry.edges:
        yield ShownInput(edge.role, sight.shown(edge.parent), None, (), None, None)


def _row(row: Mapping[str, Any], sight: visibility.Sight) -> dict[str, Any]:
    """The accuracies on a task, which name the source."""
    source = row.get("source")
    return {**row, "source": sight.shown(source)} if isinstance(source, str) else dict(row)


def _input(entry: statement.Input, sight: visibility.Sight) -> ShownInput:
    if not sight.version(entry.uri):
        return ShownInput(entry.role, visibility.HIDDEN, None, (), None, None)
    return ShownInput(
        role=entry.role,
        uri=entry.uri,
        weight=entry.weight,
        tasks=entry.tasks,
        licence=entry.licence,
        weights_digest=entry.weights_digest,
    )


def _decisions(asked: Sequence[events.Event], sight: visibility.Sight) -> Iterator[ShownDecision]:
    """The last decision of each alias, the newest first; the runs are asked for together."""
    last = {str(event.details.get("alias")): event for event in asked}
    runs = run_files.read_runs(event.run_id for event in last.values() if event.run_id)
    for alias, event in sorted(last.items(), key=lambda pair: pair[1].time, reverse=True):
        run = runs.get(event.run_id or "")
        seen = run is not None and sight.experiment(run.info.experiment_id)
        yield ShownDecision(
            alias=alias,
            result=str(event.details.get("verdict")),
            when=wording.moment(event.time),
            actor=event.actor,
            run_id=event.run_id if seen else None,
            policy_digest=event.details.get("policy_digest"),
            rules=_rules(run) if seen else (),
        )


def _rules(run: Any) -> tuple[dict[str, Any], ...]:
    """The rules in the verdict of a decision's run; none where it can't be read."""
    try:
        record = kept_files.read_json(run.info.run_id, run.info.artifact_uri, "verdict.json")
    except errors.RegistryError:
        return ()
    rules = record.get("rules") if isinstance(record, dict) else None
    found = rules if isinstance(rules, list) else []
    fields = ("name", "value", "limit", "verdict", "sentence")
    return tuple(
        {field: rule.get(field) for field in fields} for rule in found if isinstance(rule, Mapping)
    )


def _registered_by(seen: Sequence[events.Event]) -> tuple[str, ...]:
    vouched = (event for event in seen if event.details.get(events.VOUCHED) is True)
    return tuple(dict.fromkeys(facts.person_of(event.actor) for event in vouched))


def _approvals(
    resolved: versions.ResolvedVersion, known: past.KnownPast
) -> tuple[facts.Approval, ...]:
    digest = resolved.recorded_digest
    if digest is None:
        return ()
    return approvals.standing(str(resolved.name), digest, known.history.events)


def _suspects(uri: str, sight: visibility.Sight) -> list[Descendant]:
    """What descends from a version, to any depth, without what may not be seen."""
    live = model_page.live()
    below = catalog.everything().descendants(uri).versions
    found = [Descendant(at, live.get(at, ())) for at in below if at != uri and sight.version(at)]
    return sorted(found, key=lambda each: (not each.aliases, uris.order(each.uri)))


def _verification(done: Sequence[events.Event]) -> ShownVerification | None:
    if not done:
        return None
    event = done[-1]
    failed = event.details.get("failed")
    return ShownVerification(
        ok=bool(event.details.get("ok")),
        when=wording.moment(event.time),
        actor=event.actor,
        failed={str(k): str(v) for k, v in failed.items()} if isinstance(failed, dict) else {},
    )
