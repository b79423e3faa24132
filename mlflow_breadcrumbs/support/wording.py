"""Words for people that hang on a value."""

from typing import Any


def counted(number: float, things: str) -> str:
    """A number with what it counts: `1 version`, `2 versions`, `0 versions`.

    Args:
        number: how many.
        things: the word for several of them.
    """
    one = "pass" if things == "passes" else things.removesuffix("s")
    return f"{number:.10g} {one if number == 1 else things}"


def said(value: Any) -> str:
    """A value in words: yes and no in place of Python's True and False."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
