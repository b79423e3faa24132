"""Words for people that hang on a value."""

import datetime
import re
from collections.abc import Sequence
from typing import Any

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")
"""A time as the ledger has it."""


def counted(number: float, things: str) -> str:
    """A number with what it counts: `1 version`, `2 versions`, `0 versions`.

    Args:
        number: how many.
        things: the word for several of them.
    """
    one = "pass" if things == "passes" else things.removesuffix("s")
    return f"{number:.10g} {one if number == 1 else things}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Some names, and how many there are further: `a, b and 3 more`."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def size(nbytes: float) -> str:
    """Bytes in the largest unit that gives a number of at least 1: `24.0 kB`, `5.45 GB`."""
    for factor, unit, digits in ((1e12, "TB", 2), (1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1)):
        if nbytes >= factor:
            return f"{nbytes / factor:.{digits}f} {unit}"
    return counted(nbytes, "bytes")


def said(value: Any) -> str:
    """A value in words: yes and no in place of Python's True and False, times as `moment` does."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and _TIME.fullmatch(value):
        return moment(value)
    return str(value)


def moment(time: str | datetime.datetime | None) -> str:
    """A time as every text has it, UTC to the second: `2026-03-03T14:00:05Z`; empty without one.

    Args:
        time: with its zone, or UTC; ISO 8601 if it is text.
    """
    if time is None:
        return ""
    found = datetime.datetime.fromisoformat(time) if isinstance(time, str) else time
    aware = found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
    return aware.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment_of(milliseconds: int) -> str:
    """The same of a time as MLflow has it, in milliseconds since 1970."""
    return moment(datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC))
