"""What the requests for promotions, rollbacks, approvals, overrides and recalls say, in JSON."""

from typing import Annotated

import pydantic

from mlflow_breadcrumbs.promotion import fields

Number = Annotated[str, pydantic.StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")]
"""Of a version."""


class PromotionAsked(fields.Strict):
    """A version that is to have a guarded alias."""

    name: str
    """The registered model."""
    version: Number
    alias: str
    expected: Number | None = None
    """The version that must have the alias now; null: none must. Left out: the one that has it."""
    dry_run: bool = False
    """Only judge."""
    user: str = ""
    """Who asks; a server with accounts knows it, and takes no notice of this."""


class RollbackAsked(fields.Strict):
    """A guarded alias that is to go back."""

    name: str
    """The registered model."""
    alias: str
    to: Number | None = None
    """A version that had the alias; left out: the last one that still verifies."""
    user: str = ""
    """Who asks; a server with accounts knows it, and takes no notice of this."""


class ApprovalAsked(fields.Strict):
    """Somebody's word for a version's weights."""

    name: str
    """The registered model."""
    version: Number
    comment: str = ""
    withdraw: bool = False
    """Take one's approval back."""
    user: str = ""
    """Who asks; a server with accounts knows it, and takes no notice of this."""


class OverrideAsked(fields.Strict):
    """A version that is to have a guarded alias past its policy."""

    name: str
    """The registered model."""
    version: Number
    alias: str
    reason: Annotated[
        str, pydantic.StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)
    ]
    """For the history."""
    expected: Number | None = None
    """The version that must have the alias now; null: none must. Left out: the one that has it."""
    user: str = ""
    """Who asks; a server with accounts knows it, and no other takes this request."""


class RecallAsked(fields.Strict):
    """A version whose weights are not to be used."""

    name: str
    """The registered model."""
    version: Number
    reason: str = ""
    """Why, 1 to 1,000 characters; of a withdrawal it may be left out."""
    withdraw: bool = False
    """The weights may be used again."""
    user: str = ""
    """Who asks; a server with accounts knows it, and takes no notice of this."""
