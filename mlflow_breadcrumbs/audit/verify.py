"""Is what was registered still true? Each check holds one record of a version against another.

A version is described several times over: by its bytes, by `lineage.json`, by its tags, by the
native inputs and outputs of its run, by the bytes of its sources, and by the ledger's events. Who
changes one of them leaves the others behind. `EXAMINERS` lists the checks of what MLflow holds; a
further one is a function more.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.audit import evidence, signing
from mlflow_breadcrumbs.lineage import ancestry_tags, statement
from mlflow_breadcrumbs.registry import tag_keys, versions
from mlflow_breadcrumbs.support import canonical, progress, scales

Status = Literal["ok", "changed", "missing", "unknown"]
STATUSES: tuple[Status, ...] = ("ok", "changed", "missing", "unknown")
FAILURES: tuple[Status, ...] = ("changed", "missing")


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    """`ok`; `changed`: it contradicts another record; `missing`: it was there and is gone;
    `unknown`: nothing was recorded that it could be held against."""
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether the check says that something is wrong; `unknown` does not."""
        return self.status in FAILURES

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for `--json`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class VersionReport:
    """All checks of one version."""

    uri: str
    kind: str
    """`merge`, `finetune`, `import` or `unknown`."""
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.failed)

    @property
    def lacks_signature(self) -> bool:
        """Whether nothing failed but that nobody has signed it."""
        return [(check.name, check.status) for check in self.failures] == [("signature", "missing")]

    @property
    def counts(self) -> dict[str, int]:
        """How many checks there are of each status."""
        return {status: sum(check.status == status for check in self.checks) for status in STATUSES}

    def row(self) -> dict[str, Any]:
        """The line of a summary."""
        result = "ok" if self.ok else "FAILED"
        return {"uri": self.uri, "kind": self.kind, **self.counts, "result": result}

    def to_dict(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {
            "uri": self.uri,
            "kind": self.kind,
            "ok": self.ok,
            "counts": self.counts,
            "checks": [check.to_dict() for check in self.checks],
        }


def verify(
    uri: str, *, key: str | None = None, show: progress.Progress = progress.silent
) -> VersionReport:
    """Hold everything that is recorded of a version against its bytes and against each other.

    The direct sources of a merge are read too; their own sources belong to their own `verify`.

    Args:
        uri: of any version; one without a `lineage.json` has fewer checks.
        key: a public key, PEM: the version must be signed by it.
        show: is told which versions are read.

    Raises:
        RegistryError: the version can't be resolved, or the tracking server does not answer.
        SigningError: the key can't be read.
    """
    fault = signing.verifier(key) if key is not None else None
    resolved = versions.resolve(uri)
    with evidence.collector(show, fault) as collector:
        return judge(collector.gather(resolved), _walk(), signed=fault is not None)


def verify_all(
    *, key: str | None = None, show: progress.Progress = progress.silent
) -> tuple[VersionReport, ...]:
    """Verify every version in the registry; weights that several versions share are read once.

    A version that can't be resolved has a report that says so.

    Args:
        key: a public key, PEM: every merged version must be signed by it.
        show: is told about the versions.

    Raises:
        UnreachableError: the tracking server does not answer.
        SigningError: the key can't be read.
    """
    fault = signing.verifier(key) if key is not None else None
    uris = evidence.every_version()
    chain = _walk()
    reports = []
    with (
        evidence.collector(fault=fault) as collector,
        show("verify", total=len(uris), unit="versions") as advance,
    ):
        for uri in uris:
            reports.append(_report(uri, collector, chain, signed=fault is not None))
            advance(1)
    return tuple(reports)


def _report(
    uri: str,
    collector: evidence.Collector,
    chain: ledger.ChainVerdict | errors.LedgerError,
    *,
    signed: bool,
) -> VersionReport:
    try:
        resolved = versions.resolve(uri)
    except errors.UnreachableError:
        raise
    except errors.RegistryError as error:
        return VersionReport(uri, "unknown", (Check("version", "missing", str(error)),))
    found = collector.gather(resolved)
    return judge(found, chain, signed=signed and found.is_merge)


def _walk() -> ledger.ChainVerdict | errors.LedgerError:
    """Whether the chain of the ledger's events holds; or why it can't be read."""
    try:
        return ledger.verify(in_mlflow=False)
    except errors.LedgerError as error:
        return error


def judge(
    found: evidence.Evidence,
    chain: ledger.ChainVerdict | errors.LedgerError,
    *,
    signed: bool = False,
) -> VersionReport:
    """All checks of the evidence on one version.

    Args:
        found: the evidence.
        chain: what the walk through the ledger found.
        signed: whether there must be a signature.
    """
    kind = "merge" if found.is_merge else found.resolved.tags.get(tag_keys.KIND, "unknown")
    checks = tuple(check for examine in EXAMINERS for check in examine(found))
    checks += tuple(check_ledger(found, chain))
    if signed:
        checks += (check_signature(found),)
    return VersionReport(found.resolved.uri, kind, checks)


def examine_weights(found: evidence.Evidence) -> Iterator[Check]:
    """The bytes of the weights against the version's tag, its MLmodel file and its lineage."""
    contents = found.contents
    if isinstance(contents, errors.BreadcrumbsError):
        yield _unread("weights", contents, recorded=found.resolved.recorded_digest)
        return
    yield _compare("weights", found.resolved.recorded_digest, contents.weights_digest)
    if contents.declared_digest is not None:
        yield _compare("weights in MLmodel", contents.declared_digest, contents.weights_digest)
    if isinstance(found.stated, statement.Statement):
        yield _compare(
            "weights in lineage.json", found.stated.weights_digest, contents.weights_digest
        )
        yield _compare("weights file", found.stated.file_digest, contents.file_digest)


def examine_lineage(found: evidence.Evidence) -> Iterator[Check]:
    """`lineage.json` against its digest tag and its schema."""
    if not found.is_merge:
        return
    if isinstance(found.lineage, errors.BreadcrumbsError):
        yield Check("lineage.json", "missing", str(found.lineage))
        return
    recorded = found.resolved.tags.get(tag_keys.LINEAGE_DIGEST)
    yield _compare("lineage.json", recorded, canonical.sha256(found.lineage))
    if isinstance(found.stated, errors.BreadcrumbsError):
        yield Check("lineage.json's schema", "changed", str(found.stated))
    else:
        yield Check("lineage.json's schema", "ok")


def examine_tags(found: evidence.Evidence) -> Iterator[Check]:
    """The version's tags, and those of its logged model, against what follows from its lineage."""
    if not isinstance(found.stated, statement.Statement) or not isinstance(found.lineage, bytes):
        return
    expected = ancestry_tags.tags_of(found.lineage, found.resolved.tags)
    for key, value in expected.items():
        # A source's key holds a digest; its value, the URI, reads better.
        name = f"tag for {value}" if key.startswith(tag_keys.of_source("")) else f"tag {key}"
        yield _compare_tag(name, value, found.resolved.tags.get(key))
    for key in sorted(set(found.resolved.tags) - set(expected)):
        if key.startswith(tag_keys.of_source("")):
            yield Check(f"tag {key}", "changed", "lineage.json names no such source")
    if isinstance(found.model_tags, errors.BreadcrumbsError):
        yield Check("tags of the logged model", "unknown", str(found.model_tags))
        return
    differing = sorted(k for k, value in expected.items() if found.model_tags.get(k) != value)
    yield Check(
        "tags of the logged model",
        "changed" if differing else "ok",
        f"differ from lineage.json: {', '.join(differing)}" if differing else "",
    )


def examine_heads(found: evidence.Evidence) -> Iterator[Check]:
    """The frozen heads against the version's tag and against those of the sources."""
    contents = found.contents
    if not isinstance(contents, evidence.Contents) or contents.configuration is None:
        return
    if isinstance(contents.heads, errors.BreadcrumbsError):
        yield Check("heads", "changed", str(contents.heads))
        return
    yield _compare_tasks(found.resolved.tags.get(tag_keys.TASK, ""), contents.heads)
    if not found.sources:
        return
    theirs: dict[str, set[str]] = {}
    unread = []
    for source in found.sources[1:]:
        kept = source.contents
        carried = kept.heads if isinstance(kept, evidence.Contents) else kept
        if isinstance(carried, errors.BreadcrumbsError):
            unread.append(source.stated.uri)
            continue
        for task, digest in carried.items():
            theirs.setdefault(task, set()).add(digest)
    for task, digest in contents.heads.items():
        if task in theirs:
            yield _compare(f"head {task}", " or ".join(sorted(theirs[task])), digest)
        elif unread:
            yield Check(f"head {task}", "unknown", f"can't be read: {', '.join(unread)}")
        else:
            yield Check(f"head {task}", "changed", "no source carries it")


def examine_own_heads(found: evidence.Evidence) -> Iterator[Check]:
    """What sources of other flavors kept for their tasks, against what the lineage says of it."""
    contents, stated = found.contents, found.stated
    if not isinstance(contents, evidence.Contents) or contents.configuration is not None:
        return
    if not isinstance(stated, statement.Statement):
        return
    expected = {
        str(task): str(digest)
        for source in stated.sources
        for task, digest in (source.alignment or {}).get("heads", {}).items()
    }
    if isinstance(contents.heads, errors.BreadcrumbsError):
        yield Check("heads", "changed", str(contents.heads))
        return
    for task in sorted({*expected, *contents.heads}):
        if task in expected:
            yield _compare(f"head {task}", expected[task], contents.heads.get(task))
        else:
            yield Check(f"head {task}", "changed", "lineage.json names no such head")


def examine_configuration(found: evidence.Evidence) -> Iterator[Check]:
    """The architecture and the preprocessing against the base's."""
    contents = found.contents
    if not isinstance(contents, evidence.Contents) or contents.configuration is None:
        return
    if isinstance(contents.configuration, errors.BreadcrumbsError):
        yield Check("configuration", "changed", str(contents.configuration))
    elif found.sources:
        base = found.sources[0].contents
        expected = base.configuration if isinstance(base, evidence.Contents) else base
        if isinstance(expected, errors.BreadcrumbsError):
            yield Check("configuration", "unknown", f"can't be read: {found.sources[0].stated.uri}")
        else:
            yield _compare("configuration", expected, contents.configuration)


def examine_run(found: evidence.Evidence) -> Iterator[Check]:
    """The run, its native inputs and output, and its metrics against the lineage."""
    stated, run = found.stated, found.run
    if not isinstance(stated, statement.Statement):
        return
    if isinstance(run, errors.BreadcrumbsError):
        yield Check("run", "missing", str(run))
        return
    if found.resolved.run_id != stated.run_id:
        yield Check("run", "changed", f"{found.resolved.run_id}, but lineage says {stated.run_id}")
    elif run.tags.get(tag_keys.RECIPE_DIGEST) != stated.settings.digest:
        yield Check("run", "changed", "its recipe digest is not that of lineage.json")
    else:
        yield Check("run", "ok", "deleted in MLflow, and not yet purged" if run.deleted else "")
    for entry in stated.inputs:
        if entry.model_id is not None:
            there = entry.model_id in run.inputs
            detail = "" if there else f"the run has no model input {entry.model_id}"
            yield Check(f"run's input {entry.uri}", "ok" if there else "missing", detail)
    known = {entry.model_id for entry in stated.inputs} | {found.resolved.model_id}
    for model_id in sorted(run.inputs - known):
        yield Check(f"run's input {model_id}", "unknown", "lineage.json does not name it")
    there = found.resolved.model_id in run.outputs
    detail = "" if there else f"the run has no model output {found.resolved.model_id}"
    yield Check("run's output", "ok" if there else "missing", detail)
    yield from _compare_metrics(stated, run.metrics)


def examine_sources(found: evidence.Evidence) -> Iterator[Check]:
    """The bytes of the base and of each source against the lineage, and against their own tags."""
    for source in found.sources:
        name = f"{source.stated.role} {source.stated.uri}"
        if isinstance(source.contents, errors.BreadcrumbsError):
            yield _unread(name, source.contents, recorded=source.stated.weights_digest)
            continue
        check = _compare(name, source.stated.weights_digest, source.contents.weights_digest)
        if source.stated.weights_digest == source.contents.main_digest:
            check = Check(name, "ok", "its main checkpoint, without those that lie beside it")
        if source.deleted:
            note = f"the version was deleted; these are the bytes of {source.stated.model_id}"
            check = dataclasses.replace(check, detail=f"{note} {check.detail}".strip())
        elif check.failed and source.model_id != source.stated.model_id:
            note = f"(the version is now {source.model_id}, it was {source.stated.model_id})"
            check = dataclasses.replace(check, detail=f"{check.detail} {note}")
        yield check
        if source.recorded_digest not in (None, source.stated.weights_digest):
            detail = f"{source.recorded_digest}, but {source.stated.weights_digest} was merged"
            yield Check(f"tag of {source.stated.uri}", "changed", detail)


def check_ledger(
    found: evidence.Evidence, chain: ledger.ChainVerdict | errors.LedgerError
) -> Iterator[Check]:
    """The ledger's events: what they say of the version, their chain, the head in its tags."""
    if found.resolved.name is None:
        return  # a logged model, of which no event speaks
    if isinstance(chain, errors.LedgerError):
        yield Check("ledger", "unknown", str(chain))
        return
    contents = found.contents
    if isinstance(contents, evidence.Contents):
        digest: str | None = contents.weights_digest
    else:
        digest = found.resolved.recorded_digest
    for entry in ledger.check_version(found.resolved.uri, digest or "", chain):
        yield Check(entry.what, entry.status, entry.message)


def check_signature(found: evidence.Evidence) -> Check:
    """The signature beside the weights against all signed files."""
    contents = found.contents
    if isinstance(contents, errors.BreadcrumbsError):
        return _unread("signature", contents, recorded=signing.FILE)
    if contents.signature is None:
        return Check("signature", "missing", f"not signed: the version has no {signing.FILE}")
    return Check("signature", "changed" if contents.signature else "ok", contents.signature)


EXAMINERS: tuple[Callable[[evidence.Evidence], Iterator[Check]], ...] = (
    examine_weights,
    examine_lineage,
    examine_tags,
    examine_heads,
    examine_own_heads,
    examine_configuration,
    examine_run,
    examine_sources,
)
"""Every kind of check, in the order in which a report shows them."""


def _compare(name: str, recorded: str | None, found: str | None) -> Check:
    """A digest that was recorded against the one that was found."""
    if recorded is None:
        return Check(name, "unknown", f"no digest was recorded; found {found}")
    if found is None:
        return Check(name, "missing", f"{recorded} was recorded")
    if recorded != found:
        return Check(name, "changed", f"recorded {recorded}, found {found}")
    return Check(name, "ok", found)


def _compare_tag(name: str, expected: str, found: str | None) -> Check:
    if found is None:
        return Check(name, "missing", f"lineage.json says {expected}")
    if found != expected:
        return Check(name, "changed", f"{found}, but lineage.json says {expected}")
    return Check(name, "ok")


def _compare_tasks(tag: str, heads: Mapping[str, str]) -> Check:
    named = {task for task in tag.split(",") if task}
    name = f"tag {tag_keys.TASK}"
    if named == set(heads):
        return Check(name, "ok")
    carried = ", ".join(sorted(heads)) or "none"
    return Check(name, "changed" if tag else "missing", f"{tag!r}, but its heads are: {carried}")


def _compare_metrics(stated: statement.Statement, metrics: Mapping[str, float]) -> Iterator[Check]:
    for row in stated.evaluation:
        metric = str(row.get("metric", "accuracy"))
        for kind in ("accuracy", "finetuned_accuracy", "zero_shot_accuracy"):
            value = row.get(scales.VALUES[kind] if "metric" in row else kind)
            if value is None:
                continue
            key = f"{kind.replace('accuracy', metric)}/{row['task']}"
            if key not in metrics:
                yield Check(f"metric {key}", "missing", f"lineage.json says {value:.6g}")
            elif metrics[key] != value:
                detail = f"{metrics[key]:.6g}, but lineage.json says {value:.6g}"
                yield Check(f"metric {key}", "changed", detail)
            else:
                yield Check(f"metric {key}", "ok")


def _unread(name: str, error: errors.BreadcrumbsError, recorded: str | None) -> Check:
    """Files that can't be read: gone, damaged, or never of a kind that could be."""
    if recorded is None:
        return Check(name, "unknown", str(error))
    missing = isinstance(error, errors.RegistryError)
    return Check(name, "missing" if missing else "changed", str(error))
