"""JSON from outside, read in one way: limits first, and nothing that two readers read differently.

Refused are a key that is given twice, NaN and infinities, integers from 2⁵³ on (which most readers
round), strings that are no Unicode text (a lone surrogate), and what is nested very deeply.
"""

import collections
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import intake

BYTES = 64 << 20
"""Of a document; the index of a checkpoint with 500,000 tensors is about as large."""
DEPTH = 64
"""Of arrays and objects inside one another; what follows may walk them by recursion."""
LARGEST = (1 << 53) - 1
"""Integers up to here are exact in every reader (RFC 8259, section 6; RFC 8785 takes no others)."""


def read(
    path: str | Path, origin: str, error: type[errors.BreadcrumbsError], *, most: int = BYTES
) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        origin: how messages name it.
        error: what is raised.
        most: bytes that it may have.

    Raises:
        BreadcrumbsError: of the kind given: it can't be read, is no regular file, is not JSON, or
            has what this module refuses.
    """
    return parse(intake.content(path, origin, error, most), origin, error)


def parse(
    content: bytes | str,
    origin: str,
    error: type[errors.BreadcrumbsError],
    *,
    largest: int = LARGEST,
) -> Any:
    """Read JSON from bytes in UTF-8 or from a text.

    Args:
        content: the document.
        origin: how messages name it.
        error: what is raised.
        largest: magnitude of an integer.

    Raises:
        BreadcrumbsError: see `read`.
    """
    text = intake.decoded(content, origin, error) if isinstance(content, bytes) else content
    if len(text) > BYTES:
        raise error(f"{origin} is refused: it has {len(text):,} characters, {BYTES:,} is the most")

    def integer(digits: str) -> int:
        if len(digits) > len(str(largest)) + 1 or abs(int(digits)) > largest:
            raise _RefusedError(f"the integer {_short(digits)} is beyond ±{largest}")
        return int(digits)

    try:
        found = json.loads(
            text,
            parse_int=integer,
            parse_float=_float,
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
        _check(found, surrogates="\\ud" in text.lower())
    except _RefusedError as cause:
        raise error(f"{origin} is refused: {cause}") from cause
    except RecursionError as cause:
        raise error(f"{origin} is refused: {_too_deep()}") from cause
    except ValueError as cause:
        raise error(f"{origin} is not JSON: {cause}") from cause
    return found


class _RefusedError(Exception):
    """A document has something that is refused."""


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _RefusedError(f"the number {_short(digits)} is larger than a double holds")
    return value


def _constant(name: str) -> float:
    raise _RefusedError(f"{name} is no number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _RefusedError(f"the key {_short(repr(twice))} is given twice")
    return found


def _check(value: Any, *, surrogates: bool) -> None:
    """Hold the depth against its limit, and strings and keys against Unicode; not by recursion."""
    level = [value]
    for _ in range(DEPTH + 1):
        if surrogates:
            for text in _strings(level):
                _check_text(text)
        level = [child for each in level for child in _children(each)]
        if not level:
            return
    raise _RefusedError(_too_deep())


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _strings(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from value


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _RefusedError(f"the string {_short(ascii(text))} is no Unicode text") from None


def _too_deep() -> str:
    return f"it is nested deeper than {DEPTH} levels"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
