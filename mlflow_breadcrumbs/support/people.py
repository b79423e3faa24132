r"""Who is who: the ways to write one user's name, and the one form that is compared.

A name comes from the system, an environment variable or a directory service, so that one person is
`root`, `Root`, `root@example.org` or `DOMAIN\root`. Where people are counted, these are one.
"""

import unicodedata

INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode's categories of characters that nobody sees, or that move what is shown."""


def normal(name: str) -> str:
    r"""The form of a name by which people are compared.

    NFKC, without invisible characters, without the domain (`DOMAIN\name`, `name@domain`), lower
    case, white space at the ends left out and runs of it as one space. Empty for a name of nothing
    else.
    """
    text = name
    for _ in range(3):  # a change of case may need a further composition, and that another change
        seen = (c for c in text if c.isspace() or unicodedata.category(c) not in INVISIBLE)
        text = unicodedata.normalize("NFKC", "".join(seen).casefold())
    text = text.rpartition("\\")[2]
    text = text.partition("@")[0] or text
    return " ".join(text.split())


def fault(name: str) -> str | None:
    """Why a name can't be anybody's, in words; `None` for one that can."""
    found = next((each for each in name if unicodedata.category(each) in INVISIBLE), None)
    if found is not None:
        return f"it has the control character U+{ord(found):04X}"
    return None if normal(name) else "it is empty"
