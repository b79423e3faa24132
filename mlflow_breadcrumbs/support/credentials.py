"""Passwords and tokens in texts: masked before a text is shown, logged or kept.

A URI may carry them (`postgresql://ann:password@host/db`, `https://token@host`, `?sig=…`), and what
MLflow, requests and SQL's drivers say of an error quotes URIs. So every error of this package, all
that a command prints, `lineage.json` and the ledger's events go through here.
"""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_NAMES = r"[\w.%-]{0,60}(?:token|passw|pwd|secret|key|sig|credential|auth)[\w.%-]{0,60}"
_RULES = (
    # Of the Web's URIs the authority ends at a slash; a password of SQL's may have some.
    (re.compile(r"(\bhttps?://)[^\s/?#\"<>]{1,500}@", re.IGNORECASE), rf"\1{MASK}@"),
    (
        re.compile(r"(?<!https)(?<!http)(://[^\s:/?#@\"'<>]*):[^\s\"<>]{1,500}@", re.IGNORECASE),
        rf"\1:{MASK}@",
    ),
    (re.compile(rf"([?&;]{_NAMES}=)[^&;\s\"'<>#]+", re.IGNORECASE), rf"\1{MASK}"),
    (
        re.compile(r"(\b\w{0,30}(?:password|passwd|pwd)=)('[^']*'|[^\s&;'\"]+)", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (
        re.compile(r"(\bAuthorization['\"]?\s*[:=]\s*['\"]?\w+\s+)[\w.~+/=-]+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
)
_SIGNS = frozenset("@=:")
"""Every rule needs one of them."""


def hidden(text: str) -> str:
    """A text with `***` in place of every password and token that it carries in a known form."""
    if _SIGNS.isdisjoint(text):
        return text
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


def cleaned(value: Any) -> Any:
    """A value as JSON has it, with every text in it `hidden`; keys too."""
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(entry) for entry in value]
    return value
