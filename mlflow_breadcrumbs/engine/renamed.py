"""What transformers 5 calls tensors in memory, where it is not what their file calls them.

It has the names of some models in its files as they always were, and others for its modules; an
adapter that `peft` trained has the modules' names. The tables are those of transformers'
`conversion_mapping`, and a test holds them against models of it.
"""

import functools
import re
from collections.abc import Mapping

Rules = tuple[tuple[str, str], ...]
"""What a name in a file has, as patterns, and what it has there in memory; one after another."""

_VIT: Rules = (
    (r"encoder\.layer\.", "layers."),
    (r"attention\.query\b", "q_proj"),
    (r"attention\.key\b", "k_proj"),
    (r"attention\.value\b", "v_proj"),
    (r"attention\.output\.dense\b", "attention.o_proj"),
    (r"intermediate\.dense\b", "mlp.fc1"),
    (r"output\.dense\b", "mlp.fc2"),
)
_DINO: Rules = (
    (r"attention\.attention\.query\b", "attention.q_proj"),
    (r"attention\.attention\.key\b", "attention.k_proj"),
    (r"attention\.attention\.value\b", "attention.v_proj"),
    (r"attention\.output\.dense\b", "attention.o_proj"),
)
RULES: Mapping[str, Rules] = {
    "audio-spectrogram-transformer": _VIT,
    "beit": _VIT,
    "deit": _VIT,
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "ijepa": _VIT,
    "vit": _VIT,
    "vit_mae": _VIT,
    "vivit": _VIT,
}
"""By the `model_type` of a configuration."""


def in_memory(name: str, model_type: object) -> str:
    """What a tensor of a file is called in memory, in a model of that type."""
    return _renamed(name, RULES.get(model_type, ()) if isinstance(model_type, str) else ())


def in_file(name: str, names: tuple[str, ...]) -> str | None:
    """The tensor of a file that is called so in memory; `None` where that is none, or not certain.

    Args:
        name: in memory; it or the tensor's may have a prefix, as `vit.`, more.
        names: of the file's tensors.
    """
    for rules in (_VIT, _DINO):
        table = _table(names, rules)
        if name in table:
            return table[name]
        found = [m for m in table if m.endswith(f".{name}") or name.endswith(f".{m}")]
        if len(found) == 1:
            return table[found[0]]
    return None


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@functools.lru_cache(maxsize=4)
def _table(names: tuple[str, ...], rules: Rules) -> Mapping[str, str]:
    """The tensors whose name in memory is another, by that name."""
    found = {_renamed(name, rules): name for name in names}
    return {memory: name for memory, name in found.items() if memory != name}
