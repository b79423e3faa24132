"""What the configuration beside a checkpoint says of its tensors: which are the backbone's.

`config.json` is transformers' and its kin's. It is read as data: nothing that it names is imported.
"""

import dataclasses
import re
import weakref
from collections.abc import Mapping
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints
from mlflow_breadcrumbs.support import json_documents

FILE = "config.json"
BACKBONES = ("model", "transformer", "bert", "roberta", "deberta", "distilbert", "electra", "vit")
"""What backbones are called in a model with a head, where not as the `model_type`."""
HEADED = re.compile(r"For[A-Z]|LMHead|DoubleHeads")
"""In the name of an architecture: it has a head on its backbone."""
STORED = ("dtype", "torch_dtype")
"""The fields that name the dtype of the weights in the file, now and in former releases."""
SIZES = ("hidden_size", "num_hidden_layers", "n_embd", "n_layer", "d_model", "intermediate_size")

_known: "weakref.WeakKeyDictionary[checkpoints.Checkpoint, LibraryConfig | None]" = (
    weakref.WeakKeyDictionary()
)
"""A checkpoint is held against others many times, and its configuration read once."""


@dataclasses.dataclass(frozen=True)
class LibraryConfig:
    """A model's `config.json`."""

    content: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The `model_type`; empty where it is not said."""
        return _text(self.content.get("model_type"))

    @property
    def architecture(self) -> str:
        """The class that the model was saved from; empty where it is not said."""
        named = self.content.get("architectures")
        return _text(named[0]) if isinstance(named, list) and named else ""

    @property
    def has_head(self) -> bool:
        """Whether that class has a head."""
        return HEADED.search(self.architecture) is not None

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        """The classes of a classifier, by their numbers; two without names need not be said."""
        named = self.content.get("id2label")
        if isinstance(named, Mapping) and named:
            return tuple(sorted((str(key), str(value)) for key, value in named.items()))
        return (("0", "LABEL_0"), ("1", "LABEL_1"))

    @property
    def ties(self) -> bool | None:
        """Whether the output is the input embedding; `None` where it is not said."""
        found = self.content.get("tie_word_embeddings")
        return found if isinstance(found, bool) else None

    def backbone(self, found: checkpoints.Checkpoint) -> str | None:
        """What the names of the backbone's tensors begin with; `None` if there is no head on it."""
        known = {*BACKBONES, self.kind, self.kind.replace("-", "_")} - {""}
        sizes: dict[str, int] = {}
        for name in found.names:
            first, dot, _ = name.partition(".")
            if dot and first in known:
                sizes[first] = sizes.get(first, 0) + found.info(name).numel
        if not self.has_head or not sizes:
            return None
        return f"{max(sizes, key=lambda first: sizes[first])}."


def read(checkpoint: checkpoints.Checkpoint) -> LibraryConfig | None:
    """The configuration beside a checkpoint; `None` without one.

    Raises:
        CheckpointError: it is damaged.
    """
    if checkpoint not in _known:
        content = checkpoint.beside(FILE)
        origin = f"{FILE} beside {checkpoint.location}"
        found = content and json_documents.parse(content, origin, errors.CheckpointError)
        _known[checkpoint] = LibraryConfig(found) if isinstance(found, dict) else None
    return _known[checkpoint]


def stored_as(content: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that names the dtypes of the weights as another one does, at any depth.

    Args:
        content: of one model.
        other: of the model whose weights are meant; a dtype that it does not name is left out.
    """
    kept = {
        key: stored_as(value, other[key])
        if isinstance(value, Mapping) and isinstance(other.get(key), Mapping)
        else value
        for key, value in content.items()
        if key not in STORED
    }
    return kept | {key: other[key] for key in STORED if key in other}


def with_dtype(content: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A configuration with another dtype wherever it names the weights' one, as `bfloat16`."""
    return {
        key: dtype
        if key in STORED and isinstance(value, str)
        else (with_dtype(value, dtype) if isinstance(value, Mapping) else value)
        for key, value in content.items()
    }


def main_dtype(checkpoint: checkpoints.Checkpoint) -> str | None:
    """The dtype that most of a checkpoint's floating-point numbers have; `None` without any.

    Of several checkpoints that are read as one, it is that of the main one.
    """
    numbers: dict[str, int] = {}
    for name in checkpoint.names:
        info = checkpoint.info(name)
        if info.dtype.is_floating_point and not checkpoint.prefix(name):
            called = str(info.dtype).removeprefix("torch.")
            numbers[called] = numbers.get(called, 0) + info.numel
    return max(numbers, key=lambda called: numbers[called]) if numbers else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
