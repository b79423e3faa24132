"""Which tensor of a source is which of the base's: a prefix more, former names, tied ones."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints

PREFIXES = ("bert.", "model.", "transformer.", "module.", "_orig_mod.")
"""What libraries write before the names of a model within another, or take away again."""
EMBEDDINGS = (
    *("shared.weight", "word_embeddings.weight", "embed_tokens.weight", "wte.weight"),
    *("tok_embeddings.weight", "embed_in.weight", "token_embedding.weight"),
)
"""How the names of input embeddings end."""
FORMER = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""How names of the first BERTs end, as in `bert-base-uncased`, and how those of later ones do."""
OUTPUTS = frozenset({"lm_head", "decoder", "embed_out", "proj_out"})
"""What the modules are called that models tie to their input embedding."""
BUFFERS = ("position_ids",)
"""Counters that some releases of a library saved and others did not."""
PIECE = 1 << 24
"""Bytes that are compared at once."""


@dataclasses.dataclass(frozen=True)
class Meeting:
    """The names under which base and source meet."""

    names: Mapping[str, str]
    """By the base's tensor, the source's."""
    prefix: str = ""
    """That one of both has more; empty where the names are the same."""
    in_source: bool = True
    """Whether it is the source that has it."""

    def in_base(self, name: str) -> str:
        """What a tensor that only the source has would be called in the base."""
        return name.removeprefix(self.prefix) if self.in_source else name


def meet(
    base: checkpoints.Checkpoint,
    source: checkpoints.Checkpoint,
    label: str,
    backbones: Iterable[str] = (),
) -> Meeting:
    """Find the one prefix, if any, by which the names of two checkpoints meet.

    Args:
        base: the checkpoint that the source was fine-tuned from.
        source: one that was.
        label: how messages name the source.
        backbones: further prefixes, that the configurations say.

    Raises:
        MergeError: two prefixes would do.
    """
    direct = Meeting({name: name for name in base.names if name in source})
    if len(direct.names) == len(base.names):
        return direct
    prefixes = dict.fromkeys((*PREFIXES, *backbones))
    found = [direct, *_candidates(base, source, prefixes)]
    most = max(len(meeting.names) for meeting in found)
    best = [meeting for meeting in found if len(meeting.names) == most]
    if best[0] is direct or len(best) == 1:
        return _with_former(base, source, best[0])
    listed = " and ".join(repr(meeting.prefix) for meeting in best[:2])
    raise errors.MergeError(
        f"{label} has the base's tensors under other names, and both {listed} would make them "
        "meet; save it from the class that the base was saved from"
    )


def _with_former(
    base: checkpoints.Checkpoint, source: checkpoints.Checkpoint, met: Meeting
) -> Meeting:
    """The same, with the tensors whose names end as they formerly did in one of both."""
    taken, further = frozenset(met.names.values()), {}
    rest = {own.removeprefix(met.prefix): own for own in source.names if own not in taken}
    for name in [name for name in base.names if name not in met.names]:
        short = name.removeprefix(met.prefix)
        for one, other in (*FORMER, *(pair[::-1] for pair in FORMER)):
            renamed = f"{short.removesuffix(one)}{other}"
            if short.endswith(one) and renamed in rest:
                further[name] = rest[renamed]
    return dataclasses.replace(met, names={**met.names, **further}) if further else met


def _candidates(
    base: checkpoints.Checkpoint, source: checkpoints.Checkpoint, prefixes: Iterable[str]
) -> Iterator[Meeting]:
    """What each prefix comes to, added to the base's names or taken from them."""
    for prefix in prefixes:
        for in_source in (True, False):
            longer, shorter = (source, base) if in_source else (base, source)
            if not any(name.startswith(prefix) for name in longer.names):
                continue
            pairs = {}
            for name in longer.names:
                short = name.removeprefix(prefix)
                if short in shorter and (short == name or short not in longer):
                    pairs[short] = name
            names = pairs if in_source else {long: short for short, long in pairs.items()}
            yield Meeting(names, prefix, in_source)


def embeddings(found: checkpoints.Checkpoint) -> tuple[str, ...]:
    """The tensors of a checkpoint that may be its input embedding, [tokens, width], best first."""
    return tuple(
        name
        for ending in EMBEDDINGS
        for name in found.names
        if (name == ending or name.endswith(f".{ending}")) and len(found.info(name).shape) == 2
    )


def twins(found: checkpoints.Checkpoint, name: str, known: Sequence[str]) -> tuple[str, ...]:
    """Of some tensors those that another one could be the same as, by dtype and shape."""
    info = found.info(name)
    return tuple(other for other in known if other != name and found.info(other) == info)


def may_tie(found: checkpoints.Checkpoint, name: str, inputs: Sequence[str]) -> bool:
    """Whether a tensor is an output that models tie to their input embedding."""
    is_output = not OUTPUTS.isdisjoint(name.split("."))
    return is_output and bool(twins(found, name, inputs))


def same_bytes(found: checkpoints.Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint, of one shape and dtype, have the same bytes."""
    first, second = found.raw(one), found.raw(other)
    return all(
        first[start : start + PIECE] == second[start : start + PIECE]
        for start in range(0, len(first), PIECE)
    )


def is_buffer(found: checkpoints.Checkpoint, name: str) -> bool:
    """Whether a tensor is a counter that may be there or not."""
    return name.rpartition(".")[2] in BUFFERS and not found.info(name).dtype.is_floating_point
