"""The layers of a model, read off its tensors' names: what belongs together in a table."""

import re
from collections.abc import Iterable


def group(names: Iterable[str]) -> dict[str, str]:
    """The layer group of each tensor, in the order in which people count layers.

    A tensor belongs to the first numbered module on its way (`visual.transformer.resblocks.3`,
    `encoder.layer.11`), else to the module that holds it if that holds tensors only
    (`visual.conv1`), else to itself (`visual.class_embedding`).

    Args:
        names: of tensors, with dots between the modules.

    Returns:
        The group by tensor name; groups are in their natural order (`.2` before `.10`).
    """
    names = sorted(names, key=_natural)
    holders = {name.rpartition(".")[0] for name in names}
    outer = {
        holder[: match.start()]
        for holder in holders
        for match in re.finditer(r"\.", holder)  # every module that holds a module
    }
    return {name: _group(name, outer) for name in names}


def _group(name: str, outer: set[str]) -> str:
    if numbered := re.match(r"(?:.*?\.)?\d+(?=\.)", name):
        return numbered[0]
    holder = name.rpartition(".")[0]
    return holder if holder and holder not in outer else name


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in a name by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
