r"""Who is who: the ways to write one user's name, and the one form that is compared.

A name comes from the system, an environment variable or a directory service, so that one person is
`root`, `Root`, `root@example.org` or `DOMAIN\root`. Where people are counted, these are one.
"""

import unicodedata

INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode's categories of characters that nobody sees, or that move what is shown."""

BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
"""Letters and marks that show as nothing; so do the variation selectors."""


def normal(name: str) -> str:
    r"""The form of a name by which people are compared.

    NFKC, without invisible characters, without the domain (`DOMAIN\name`, `name@domain`), lower
    case, white space at the ends left out and runs of it as one space. Empty for a name of nothing
    else.
    """
    text = name
    for _ in range(3):  # a change of case may need a further composition, and that another change
        seen = (c for c in text if c.isspace() or not _is_invisible(c))
        text = unicodedata.normalize("NFKC", "".join(seen).casefold())
    text = text.rpartition("\\")[2]
    text = text.lstrip("@ ").partition("@")[0]
    return " ".join(text.split())


def fault(name: str) -> str | None:
    """Why a name can't be anybody's, in words; `None` for one that can."""
    found = next((each for each in name if _is_invisible(each)), None)
    if found is not None:
        return f"it has the control character U+{ord(found):04X}"
    return None if normal(name) else "it is empty"


def _is_invisible(character: str) -> bool:
    number = ord(character)
    selects = 0xFE00 <= number <= 0xFE0F or 0xE0100 <= number <= 0xE01EF
    return selects or character in BLANK or unicodedata.category(character) in INVISIBLE
