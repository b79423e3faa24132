"""In an emergency: a guarded alias past its policy, by somebody whom the server's owner has named.

Nothing is judged and nothing is measured. That it was done, by whom and why, is an event of its
own, and the alias's move has it as its cause.
"""

import dataclasses
from typing import Any

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import alias_moves
from mlflow_breadcrumbs.promotion import guards
from mlflow_breadcrumbs.registry import aliases, versions

KIND = "override"
"""Of the event."""


@dataclasses.dataclass(frozen=True)
class Override:
    """What came of it."""

    name: str
    alias: str
    before: str | None
    """The version that had the alias."""
    after: str
    """The version that has it now."""
    reason: str
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


def ask(
    uri: str,
    alias: str,
    reason: str,
    expected: str | alias_moves.Anywhere | None = alias_moves.ANYWHERE,
) -> Override:
    """Have the registry's server move an alias that it guards past its policy.

    Args:
        uri: of the version.
        alias: of its registered model.
        reason: for the history.
        expected: see `alias_moves.move`.

    Raises:
        PromotionError: no server guards the alias.
        RaceError: it is not where it is expected.
        RegistryError: the server has not named this account for that, or knows no accounts.
    """
    aliases.check_alias(alias)
    resolved = versions.resolve(uri)
    offer = guards.offered(resolved.name, alias) if resolved.name else None
    if offer is None:
        raise errors.PromotionError(
            f"no server guards {alias} of {resolved.uri}, so there is no policy to be overridden; "
            "promote it"
        )
    fields = {"name": resolved.name, "version": str(resolved.version), "alias": alias}
    if not isinstance(expected, alias_moves.Anywhere):
        fields["expected"] = expected
    return Override(**offer.take("override", fields | {"reason": reason}))


def override(
    uri: str,
    alias: str,
    reason: str,
    expected: str | alias_moves.Anywhere | None = alias_moves.ANYWHERE,
) -> Override:
    """Move the alias; for a server, which has made sure that this is the one to do it.

    Args:
        uri: of the version.
        alias: of its registered model.
        reason: for the history.
        expected: see `alias_moves.move`.

    Raises:
        RaceError: the alias is not where it is expected.
        RegistryError: the version can't be found, or the registry refused.
        LedgerError: the ledger can't be written; nothing was moved.
    """
    aliases.check_alias(alias)
    resolved = versions.resolve(uri)
    name, version = str(resolved.name), str(resolved.version)
    said = {"alias": alias, "after": version, "reason": reason}
    with ledger.recording(KIND, name, subject=resolved.uri, details=said) as job:
        with job.deciding():
            before = ledger.move(
                name,
                alias,
                version,
                because="override",
                expected=expected,
                details={"cause": job.intent, "reason": reason},
            )
        job.add(**said, before=before, verdict="overridden")
    instead = "" if before is None else f", in place of version {before}"
    sentence = f"{resolved.uri} is {alias} now{instead}, past its policy: {reason}"
    return Override(name, alias, before, version, reason, sentence)
