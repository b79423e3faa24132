"""Words for people that hang on a number."""


def counted(number: float, things: str) -> str:
    """A number with what it counts: `1 version`, `2 versions`, `0 versions`.

    Args:
        number: how many.
        things: the word for several of them.
    """
    one = "pass" if things == "passes" else things.removesuffix("s")
    return f"{number:.10g} {one if number == 1 else things}"
