"""In an emergency: a guarded alias past its policy, by somebody whom the server's owner has named.

Nothing is judged and nothing is measured. That it was done, by whom and why, is an event of its
own, and the alias's move has it as its cause. Asked for again, it is done already.
"""

import dataclasses
import functools
from typing import Any

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import alias_moves
from mlflow_breadcrumbs.promotion import guards, predecessors
from mlflow_breadcrumbs.registry import aliases, versions

KIND = "override"
"""Of the event."""


@dataclasses.dataclass(frozen=True)
class Override:
    """What came of it."""

    name: str
    alias: str
    before: str | None
    """The version that had the alias; the same as now where there was nothing to do."""
    after: str
    """The version that has it now."""
    reason: str
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Emergency:
    """What is asked for."""

    uri: str
    """Of the version."""
    alias: str
    """Of its registered model."""
    reason: str
    """For the history."""
    expected: str | alias_moves.Anywhere | None = alias_moves.ANYWHERE
    """See `alias_moves.move`."""


def ask(asked: Emergency) -> Override:
    """Have the registry's server move an alias that it guards past its policy.

    Raises:
        PromotionError: no server guards the alias.
        RaceError: it is not where it is expected.
        RegistryError: the server has not named this account for that, or knows no accounts.
    """
    aliases.check_alias(asked.alias)
    found = guards.for_version(asked.uri, functools.partial(guards.offered, alias=asked.alias))
    if found is None:
        raise errors.PromotionError(
            f"no server guards {asked.alias} of {asked.uri}, so there is no policy to be "
            "overridden; promote it"
        )
    fields: dict[str, Any] = {"reason": asked.reason}
    if not isinstance(asked.expected, alias_moves.Anywhere):
        fields["expected"] = asked.expected
    return guards.record(Override, found[1].take("override", fields))


def override(asked: Emergency) -> Override:
    """Move the alias; for a server, which has made sure that this is the one to do it.

    Raises:
        RaceError: the alias is not where it is expected.
        RegistryError: the version can't be found, or the registry refused.
        LedgerError: the ledger can't be written; nothing was moved.
    """
    alias, reason = asked.alias, asked.reason
    aliases.check_alias(alias)
    resolved = versions.resolve(asked.uri)
    name, version = str(resolved.name), str(resolved.version)
    if aliases.version_at(name, alias) == version:
        there = asked.expected in (alias_moves.ANYWHERE, version)
        if there or predecessors.was_last(name, alias, asked.expected, version, KIND):
            sentence = f"{resolved.uri} is {alias} already"
            return Override(name, alias, version, version, reason, sentence)
    said = {"alias": alias, "after": version, "reason": reason}
    with ledger.recording(KIND, name, subject=resolved.uri, details=said) as job:
        with job.deciding():
            before = ledger.move(
                name,
                alias,
                version,
                because="override",
                expected=asked.expected,
                details={"cause": job.intent, "reason": reason},
            )
        job.add(**said, before=before, verdict="overridden")
    instead = "" if before is None else f", in place of version {before}"
    sentence = f"{resolved.uri} is {alias} now{instead}, past its policy: {reason}"
    return Override(name, alias, before, version, reason, sentence)
