"""What the requests for promotions, rollbacks, approvals, overrides and recalls say, in JSON."""

from typing import Annotated

import pydantic

from mlflow_breadcrumbs.promotion import fields

Number = Annotated[str, pydantic.StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")]
"""Of a version."""


class EveryRequest(fields.Strict):
    """What every request says."""

    name: str
    """The registered model."""
    user: str = ""
    """Who asks; a server with accounts knows it, and takes no notice of this."""


class OfVersion(EveryRequest):
    """A request about a version."""

    version: Number


class OfAlias(EveryRequest):
    """A request that moves a guarded alias."""

    alias: str
    expected: Number | None = None
    """The version that must have the alias now; null: none must. Left out: the one that has it."""


class PromotionAsked(OfAlias, OfVersion):
    """A version that is to have a guarded alias."""

    dry_run: bool = False
    """Only judge."""


class RollbackAsked(OfAlias):
    """A guarded alias that is to go back."""

    to: Number | None = None
    """A version that had the alias; left out: the last one that still verifies."""


class ApprovalAsked(OfVersion):
    """Somebody's word for a version's weights."""

    comment: str = ""
    withdraw: bool = False
    """Take one's approval back."""


class OverrideAsked(OfAlias, OfVersion):
    """A version that is to have a guarded alias past its policy; a server must have accounts."""

    reason: Annotated[
        str, pydantic.StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)
    ]
    """For the history."""


class RecallAsked(OfVersion):
    """A version whose weights are not to be used."""

    reason: str = ""
    """Why, 1 to 1,000 characters; of a withdrawal it may be left out."""
    withdraw: bool = False
    """The weights may be used again."""
