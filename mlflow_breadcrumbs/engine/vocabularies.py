"""Which rows of two embeddings are of the same token, by the tokenizers beside the checkpoints.

A vocabulary that was resized has more rows, or fewer. What both have can be merged row by row where
one number means one token in both; the other rows stay the base's.
"""

import io
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, headers, stored_bytes
from mlflow_breadcrumbs.support import intake, json_documents

PLACES = ("", "../components/tokenizer/")
"""Where a tokenizer lies, from the checkpoint's folder: beside it, or as MLflow keeps it."""
FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
RENAMED = 10
"""Of so many tokens one may have another name in a vocabulary of the same size."""
PIECE = 1 << 20
"""Elements that are copied at once."""

_known: "weakref.WeakKeyDictionary[checkpoints.Checkpoint, Mapping[int, str] | None]" = (
    weakref.WeakKeyDictionary()
)


class Common(NamedTuple):
    """What two vocabularies have in common."""

    runs: tuple[tuple[int, int], ...]
    """The rows that are of one token in both, as runs from a first to before a last."""
    rows: int
    """How many these are."""
    added: int
    """Tokens that only the source has."""


def tokens(checkpoint: checkpoints.Checkpoint) -> Mapping[int, str] | None:
    """The tokens of a model by their numbers; `None` where no tokenizer lies beside it.

    Raises:
        CheckpointError: its file is damaged.
    """
    if checkpoint not in _known:
        _known[checkpoint] = _read(checkpoint)
    return _known[checkpoint]


def common(
    base: checkpoints.Checkpoint, source: checkpoints.Checkpoint, rows: int, label: str
) -> Common | None:
    """The rows that mean the same in both; `None` where a tokenizer is missing.

    Args:
        base: the checkpoint that the source was fine-tuned from.
        source: one that was.
        rows: of the smaller embedding.
        label: how messages name the source.

    Raises:
        MergeError: a number means one token here and another there.
        CheckpointError: a tokenizer's file is damaged.
    """
    ours, theirs = tokens(base), tokens(source)
    if ours is None or theirs is None:
        return None
    both = sorted(number for number in ours.keys() & theirs.keys() if number < rows)
    for number in both:
        if ours[number] != theirs[number]:
            raise errors.MergeError(
                f"the tokenizers of {label} and of the base disagree: token {number} is "
                f"{_short(theirs[number])} there and {_short(ours[number])} in the base. Give the "
                "base that it was fine-tuned from, or keep the base's embedding (--exclude)"
            )
    runs: list[tuple[int, int]] = []
    for number in both:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return Common(tuple(runs), len(both), len(theirs.keys() - ours.keys()))


def check(
    base: checkpoints.Checkpoint,
    source: checkpoints.Checkpoint,
    rows: int,
    label: str,
    name: str,
) -> None:
    """Hold two vocabularies of one size against each other, where both have a tokenizer to read.

    A few tokens may have another name, as reserved ones that fine-tuning gave one.

    Args:
        base: the checkpoint that the source was fine-tuned from.
        source: one that was.
        rows: of the embeddings.
        label: how messages name the source.
        name: of the base's embedding.

    Raises:
        MergeError: more than one token of ten has another number.
    """
    try:
        ours, theirs = tokens(base), tokens(source)
    except errors.CheckpointError:
        return  # of no use here, and not needed
    if not ours or not theirs or ours is theirs:
        return
    both = [number for number in ours.keys() & theirs.keys() if number < rows]
    other = [number for number in both if ours[number] != theirs[number]]
    if RENAMED * len(other) > len(both):
        first = min(other)
        raise errors.MergeError(
            f"{label} and the base have {rows:,} tokens each, but {len(other):,} of them are "
            f"others: token {first} is {_short(theirs[first])} there and {_short(ours[first])} in "
            "the base. Give the base that it was fine-tuned from, or keep the base's embedding "
            f"(--exclude '{name}')"
        )


def entry(
    base: checkpoints.Checkpoint, name: str, source: checkpoints.Checkpoint, own: str
) -> headers.TensorEntry:
    """Of a tensor with the base's rows, some of them the source's: its dtype holds both exactly."""
    here, there = base.entry(name), source.entry(own)
    if here.dtype == there.dtype:
        return headers.TensorEntry(there.dtype, here.shape)
    return headers.TensorEntry("F64" if "F64" in (here.dtype, there.dtype) else "F32", here.shape)


def fill(
    base: checkpoints.Checkpoint,
    name: str,
    source: checkpoints.Checkpoint,
    own: str,
    runs: tuple[tuple[int, int], ...],
) -> stored_bytes.NamelessFile:
    """Make such a tensor: the base's rows, and in the runs the source's.

    Raises:
        CheckpointError: there is no room for it.
    """
    made = entry(base, name, source, own)
    dtype, rows = checkpoints.DTYPES[made.dtype], made.shape[0]
    held = stored_bytes.NamelessFile(made.nbytes)
    width = made.nbytes // rows
    pieces = [(base.tensor(name), 0, rows), *((source.tensor(own), *run) for run in runs)]
    try:
        for tensor, first, last in pieces:
            step = max(1, PIECE // max(1, tensor[0].numel()))
            for start in range(first, last, step):
                piece = tensor[start : min(start + step, last)].to(dtype)
                held.write(checkpoints.tensor_bytes(piece), start * width)
    except OSError as error:
        raise stored_bytes.no_room(error, f"the tensor {name!r}", made.nbytes) from error
    return held


def _read(checkpoint: checkpoints.Checkpoint) -> dict[int, str] | None:
    for place in PLACES:
        for file in FILES:
            content = checkpoint.beside(f"{place}{file}")
            if content is not None:
                origin = f"{place}{file} beside {checkpoint.location}"
                found = _parsed(content, file, origin)
                if not found:
                    raise errors.CheckpointError(
                        f"{origin} has no vocabulary that can be read; restore it, or take it away"
                    )
                return found
    return None


def _parsed(content: bytes, file: str, origin: str) -> dict[int, str]:
    """The tokens of a file by their numbers; empty where it is none."""
    if file == "vocab.txt":
        text = intake.decoded(content, origin, errors.CheckpointError)
        lines = io.StringIO(text, newline=None)  # a token may hold what else ends a line
        return dict(enumerate(line.rstrip("\n") for line in lines))
    whole = json_documents.parse(content, origin, errors.CheckpointError)
    if file == "vocab.json":
        return _by_number(whole)
    model = whole.get("model") if isinstance(whole, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # pieces with their scores
        found = {
            number: str(entry[0])
            for number, entry in enumerate(vocabulary)
            if isinstance(entry, list) and entry
        }
    else:
        found = _by_number(vocabulary)
    added = whole.get("added_tokens") if isinstance(whole, dict) else None
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            found[token["id"]] = str(token.get("content"))
    return found


def _by_number(vocabulary: Any) -> dict[int, str]:
    if not isinstance(vocabulary, dict):
        return {}
    return {number: str(token) for token, number in vocabulary.items() if isinstance(number, int)}


def _short(token: str) -> str:
    text = repr(token)
    return text if len(text) <= 60 else f"{text[:57]}…"
