"""The layers of a model, read off its tensors' names: what belongs together in a table."""

import re
from collections.abc import Iterable

_BLOCK = re.compile(r"((?:.*?\.)?)(\d+)(?=\.)")


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


def depths(names: Iterable[str]) -> dict[str, float]:
    """How deep in its stack of blocks each tensor lies: 0 in the first block, 1 in the last.

    A stack is a module of numbered ones (`visual.transformer.resblocks`); what lies outside of
    every stack, or in one of a single block, has no depth and is left out.

    Args:
        names: of tensors, with dots between the modules.
    """
    blocks = {name: match for name in names if (match := _BLOCK.match(name))}
    last: dict[str, int] = {}
    for match in blocks.values():
        last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    return {
        name: int(match[2]) / last[match[1]] for name, match in blocks.items() if last[match[1]]
    }


def _group(name: str, outer: set[str]) -> str:
    if numbered := _BLOCK.match(name):
        return numbered[0]
    holder = name.rpartition(".")[0]
    return holder if holder and holder not in outer else name


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in a name by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
