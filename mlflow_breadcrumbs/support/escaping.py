"""Foreign text for the place where it is shown: a terminal, JSON on a terminal, Markdown.

Names of models, tasks and data sets, licences, comments and tags are what somebody else wrote. A
terminal obeys the control characters in them, and Markdown's readers their links and HTML.
"""

import re

# Control characters, those that turn the direction of writing, line separators, lone surrogates.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PUNCTUATION = re.compile(
    r"([\\`*\[\]~$@#]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.)", re.IGNORECASE
)
_FIRST = re.compile(r"^(\d*)((?<=\d)[.)](?=\s|$)|[-+](?=[-+\s]|$)|=)")
"""What would begin a list, or underline a title."""


def lines(text: str) -> str:
    r"""Text for a terminal, on as many lines as it has; control characters as `\x1b`."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in "\n\t" else _visible(found), text)


def line(text: str) -> str:
    r"""Text for one line of a terminal: a line break in it is shown as `\n`."""
    return _CONTROL.sub(_visible, text)


def json(text: str) -> str:
    """JSON that was written without escapes, with those that a terminal needs; the same value."""
    return _CONTROL.sub(
        lambda found: found[0] if found[0] in "\n\t" else f"\\u{ord(found[0]):04x}", text
    )


def markdown(text: str) -> str:
    """Text for inside a line of Markdown: it shows as it is, without links, HTML or emphasis.

    A bar is left, which only a table takes for more.
    """
    text = line(text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _FIRST.sub(r"\1\\\2", _PUNCTUATION.sub(r"\\\1", text))


def code(text: str) -> str:
    """Text for inside a line of Markdown, as code where it can be."""
    shown = line(text)
    return markdown(text) if set(shown) & set("`|\\") or not shown.strip() else f"`{shown}`"


def _visible(found: "re.Match[str]") -> str:
    number = ord(found[0])
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(found[0])
    return named or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")
