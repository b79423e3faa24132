"""The trail of audits: that a version was verified or exported is in the history, too.

Who audits only reads, so nothing is written to the registry, not even the ledger's head, and a
ledger that can't be written is a warning.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.audit import verify
from mlflow_breadcrumbs.registry import projects, uris, versions
from mlflow_breadcrumbs.support import canonical, wording

_logger = logging.getLogger(__name__)


def verified(reports: Sequence[verify.VersionReport]) -> None:
    """Keep what `verify` found of each version; the run of `mlflow run` says it, too."""

    def write() -> None:
        for report in reports:
            failed = {check.name: check.status for check in report.failures}
            _note("verify", report.uri, ok=report.ok, counts=report.counts, failed=failed)

    _try(write)
    failed = [report.uri for report in reports if not report.ok]
    only = reports[0].uri if len(reports) == 1 else None
    projects.point(
        f"verify {only or wording.counted(len(reports), 'versions')}",
        f"Not as recorded: {', '.join(failed)}." if failed else "All is as recorded.",
        version=only,
    )


def exported(uri: str, form: str, content: str) -> None:
    """Keep that a version's lineage was exported, and the digest of what was handed out."""
    pinned = versions.resolve(uri).uri
    digest = canonical.sha256(content.encode())
    _try(lambda: _note("export", pinned, format=form, content_digest=digest))
    projects.point(f"export {pinned}", f"Exported as {form}, {digest}.", version=pinned)


def _note(kind: str, uri: str, **details: Any) -> None:
    if named := uris.registered(uri):  # a logged model has no history
        ledger.note(kind, named[0], subject=uri, details=details, anchored=False)


def _try(write: Callable[[], None]) -> None:
    try:
        write()
    except errors.LedgerError as error:
        _logger.warning("this is not in the history: %s", error)
