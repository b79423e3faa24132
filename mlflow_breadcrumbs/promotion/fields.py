"""What the fields of a policy may hold: fractions, durations, digests, each with its range."""

import datetime
import re
from typing import Annotated

import pydantic

UNITS = {"week": 604800, "day": 86400, "hour": 3600, "minute": 60}
"""Of durations, in seconds, the longest first."""


class Strict(pydantic.BaseModel):
    """A frozen record that takes no unknown field."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )


def _duration(value: object) -> object:
    if isinstance(value, datetime.timedelta):
        return value
    match = re.fullmatch(r"(\d{1,9}) ?(minute|hour|day|week)s?", str(value).strip())
    if not match or (seconds := int(match[1]) * UNITS[match[2]]) > 10**10:
        raise ValueError(f"{value!r} is not a duration; write 90 minutes, 12 hours or 30 days")
    return datetime.timedelta(seconds=seconds)


def _digest(value: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise ValueError(f"{value!r} is not a digest; write sha256: and 64 digits in hexadecimal")
    return value


def duration_text(value: datetime.timedelta) -> str:
    """A duration of a policy as one would write it: `30 days`."""
    seconds = int(value.total_seconds())
    unit = next(unit for unit, length in UNITS.items() if seconds % length == 0)
    number = seconds // UNITS[unit]
    return f"{number} {unit}{'' if number == 1 else 's'}"


Share = Annotated[float, pydantic.Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
"""A fraction, 0…1."""
Ratio = Annotated[float, pydantic.Field(strict=True, ge=0, allow_inf_nan=False)]
"""0 or more; a normalized accuracy may exceed 1."""
Number = Annotated[float, pydantic.Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, pydantic.Field(strict=True, ge=1)]
Duration = Annotated[
    datetime.timedelta,
    pydantic.BeforeValidator(_duration),
    pydantic.PlainSerializer(duration_text),
]
Digest = Annotated[str, pydantic.AfterValidator(_digest)]
