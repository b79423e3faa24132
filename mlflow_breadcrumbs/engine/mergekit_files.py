"""Files of mergekit as merges of ours: base, sources and a recipe with the same result.

```yaml
merge_method: breadcrumbs
base_model: models/base
models:
  - model: models/cars
    parameters: {weight: 0.5}
  - model: models/signs
    parameters: {weight: 0.5}
parameters: {density: 0.9, gamma: 0.01}
```

Read are `linear`, `task_arithmetic`, `ties`, `breadcrumbs` and `breadcrumbs_ties`, with `weight`,
`density`, `gamma`, `lambda` and `normalize`. What a recipe can't say is refused, all of it in one
message, each with its line. docs/how-to/mergekit.md has where the two differ by design.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.support import documents

LINEAR = "linear"
METHODS = (LINEAR, "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties")
MASKING = ("ties", "breadcrumbs", "breadcrumbs_ties")
SIGNED = ("ties", "breadcrumbs_ties")
OUTLIERS = ("breadcrumbs", "breadcrumbs_ties")
NORMALIZED = (LINEAR, "ties")
"""Methods whose `normalize` is true where nobody says otherwise."""

PARAMETERS = ("weight", "density", "gamma", "lambda", "normalize")
IGNORED = ("int8_mask",)
"""Parameters that change how mergekit computes, and not what."""
DTYPES = ("float32", "bfloat16", "float16", "float64")
KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype")
NO_CHANGE = {"tokenizer_source": ("base", None), "chat_template": (None,), "tokenizer": (None,)}
"""Keys with the values that leave the merged model's other files as the base's."""

REFUSED = math.inf
"""In place of a parameter that was refused: it is given, and that is all that is known of it."""

_MASKS = (
    "mergekit counts density · n in binary floating point, and with ties keeps an element of every "
    "tensor at least; here it is exactly ⌊density · n⌋, so that a mask can differ by an element"
)
_HALF = "mergekit computes in {0}; here it is float32, rounded once to {0} at the end"


@dataclasses.dataclass(frozen=True)
class MergekitMerge:
    """What a file of mergekit asks for."""

    base: str
    """As the file names it."""
    sources: tuple[str, ...]
    recipe: recipe.MergeRecipe
    notes: tuple[str, ...] = ()
    """Where the result may differ from mergekit's, a sentence each, without the full stop."""


class _Refused:
    """The faults of a file, gathered until all are known."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def add(self, node: yaml.Node, said: str) -> None:
        """One more, where it is."""
        self.found.append((node.start_mark.line + 1, said))


@dataclasses.dataclass(frozen=True)
class _Listed:
    """One entry of `models`."""

    name: str
    node: yaml.Node
    values: Mapping[str, Any]
    """Its own parameters."""


def read(path: str | Path) -> MergekitMerge:
    """Read a file of mergekit.

    Raises:
        RecipeError: it can't be read, or says what a recipe can't; every fault has its line.
    """
    origin = f"the mergekit file {path}"
    root = documents.read(path, origin, errors.RecipeError).root
    if not isinstance(root, yaml.MappingNode):
        raise errors.RecipeError(f"{origin} is not a mapping with `merge_method` and `models`")
    refused = _Refused()
    parts = _parts(root, refused)
    if parts is not None:
        parts.check()
    if refused.found or parts is None:
        listed = [f"line {line}: {said}" for line, said in sorted(refused.found)]
        raise errors.RecipeError(f"{origin} is refused:\n  " + "\n  ".join(listed))
    try:
        return parts.made()
    except errors.RecipeError as error:
        raise errors.RecipeError(f"{origin} is refused: {error}") from error


def _parts(root: yaml.MappingNode, refused: _Refused) -> "_Parts | None":
    """What the file says, part by part; `None` where it can't be told."""
    entries = _entries(root)
    for key, (_, node) in entries.items():
        value = _plain(node)
        if key in KEYS or (key in NO_CHANGE and value in NO_CHANGE[key]):
            continue
        if key in ("slices", "modules"):
            refused.add(node, f"{key} take models apart; give `models`, whole ones")
        elif key in NO_CHANGE:
            refused.add(node, f"{key} changes more than weights; the base's stay: leave it out")
        else:
            refused.add(node, f"{key} is unknown here; leave it out")
    method = _method(root, entries, refused)
    shared = _parameters(entries["parameters"][1], refused) if "parameters" in entries else {}
    models = tuple(_models(root, entries, refused))
    base = _name(entries["base_model"][1], refused) if "base_model" in entries else None
    dtypes = _dtypes(entries, refused)
    if method is not None and method != LINEAR and "base_model" not in entries:
        refused.add(root, f"{method} needs a base_model")
    if method is None or not models or (base is None and method != LINEAR):
        return None
    return _Parts(root, method, base, models, shared, dtypes, refused)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The parts of a file, read one by one; together they make a merge."""

    root: yaml.Node
    method: str
    base: str | None
    models: tuple[_Listed, ...]
    shared: Mapping[str, Any]
    dtypes: tuple[str | None, str | None]
    """What mergekit computes in, and what it writes."""
    refused: _Refused

    @property
    def first(self) -> str:
        """The base; of a linear merge that names none, the first model."""
        return self.base if self.base is not None else self.models[0].name

    @property
    def sources(self) -> tuple[_Listed, ...]:
        """The models besides the base."""
        return tuple(model for model in self.models if model.name != self.first)

    def check(self) -> None:
        """Refuse models that do not agree on what a recipe has once, or have no weight."""
        sources = self.sources
        if not sources:
            self.refused.add(self.root, "there are no models besides the base")
        for name in self._once():
            values = {self._value(model, name) for model in sources} - {REFUSED}
            if len(values) > 1:
                listed = ", ".join(f"{value:g}" for value in sorted(values))
                self.refused.add(
                    self.root, f"{name} differs between models ({listed}), and a recipe has one"
                )
        for model in self.models if self.method == LINEAR else sources:
            if self._value(model, "weight") is None:
                self.refused.add(model.node, f"{model.name} has no weight; give it one")

    def _once(self) -> tuple[str, ...]:
        if self.method in OUTLIERS:
            return ("density", "gamma")
        return ("density",) if self.method in MASKING else ()

    def _value(self, model: _Listed, name: str) -> Any:
        default = {"density": 1.0, "gamma": 0.01, "lambda": 1.0}.get(name)
        return model.values.get(name, self.shared.get(name, default))

    def made(self) -> MergekitMerge:
        """The merge; what no recipe has raises `RecipeError`."""
        sources = self.sources
        weights = [float(self._value(model, "weight")) for model in sources]
        normalize = self.shared.get("normalize", self.method in NORMALIZED)
        fields = self._masks(sources)
        alpha = float(self.shared.get("lambda", 1.0))
        if self.method == LINEAR:
            total = sum(float(self._value(model, "weight")) for model in self.models)
            if not normalize and not math.isclose(total, 1, abs_tol=1e-9):
                raise errors.RecipeError(
                    f"linear with weights that add up to {total:g} and without normalize scales "
                    "the base too; let the weights add up to 1"
                )
            alpha = 1 / total if normalize and total else 1.0
        elif normalize and self.method in SIGNED:
            if min(weights) < 0:
                raise errors.RecipeError(
                    f"{self.method} with normalize and a weight below zero is no mean; leave "
                    "normalize out"
                )
            fields["combine"] = "mean"
        elif normalize:
            total = sum(weights)
            alpha /= total if abs(total) >= 1e-8 else 1.0
        computed, written = self.dtypes
        made = recipe.MergeRecipe(
            alpha=alpha,
            weights=tuple(weights),
            consensus="mass" if self.method in SIGNED else "none",
            dtype=written or computed or "base",
            **fields,
        )
        return MergekitMerge(
            self.first,
            tuple(model.name for model in sources),
            made,
            tuple(self._notes(made, computed)),
        )

    def _masks(self, sources: Sequence[_Listed]) -> dict[str, Any]:
        """What is kept of each tensor."""
        if self.method not in MASKING:
            return {"density": 1.0}
        density = float(self._value(sources[0], "density"))
        gamma = float(self._value(sources[0], "gamma")) if self.method in OUTLIERS else 0.0
        if density >= 1:  # mergekit then masks nothing, whatever gamma is
            return {"density": 1.0}
        return {"density": density, "gamma": gamma}

    def _notes(self, made: recipe.MergeRecipe, computed: str | None) -> Iterator[str]:
        if made.density < 1:
            yield _MASKS
        if computed in ("bfloat16", "float16"):
            yield _HALF.format(computed)
        if self.method == LINEAR and self.base is None:
            yield f"linear has no base_model; {self.models[0].name}, its first model, is the base"


def _method(
    root: yaml.Node, entries: Mapping[str, tuple[yaml.Node, yaml.Node]], refused: _Refused
) -> str | None:
    if "merge_method" not in entries:
        refused.add(root, "there is no merge_method")
        return None
    node = entries["merge_method"][1]
    method = _plain(node)
    if method not in METHODS:
        refused.add(
            node, f"merge_method is {method}, which is none of {', '.join(METHODS)}; name one"
        )
        return None
    return str(method)


def _models(
    root: yaml.Node, entries: Mapping[str, tuple[yaml.Node, yaml.Node]], refused: _Refused
) -> Iterator[_Listed]:
    node = entries["models"][1] if "models" in entries else None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        refused.add(node or root, "there is no list of models")
        return
    for item in node.value:
        inner = _entries(item)
        for key, (_, strange) in inner.items():
            if key not in ("model", "parameters"):
                refused.add(strange, f"a model has {key}, which is unknown here; leave it out")
        if "model" not in inner:
            refused.add(item, "a model has no `model`")
            continue
        name = _name(inner["model"][1], refused)
        values = _parameters(inner["parameters"][1], refused) if "parameters" in inner else {}
        for key in ("lambda", "normalize"):
            if key in values:
                refused.add(inner["parameters"][1], f"{key} is of the whole merge, not of a model")
        if name is not None:
            yield _Listed(name, item, values)


def _name(node: yaml.Node, refused: _Refused) -> str | None:
    """A model's reference."""
    name = _plain(node)
    if not isinstance(name, str) or not name:
        refused.add(node, "a model is named by a text: a version, a folder or a file")
        return None
    if "+" in name and not Path(name).exists():
        refused.add(node, f"{name} adds an adapter; merge it into its model first")
        return None
    return name


def _parameters(node: yaml.Node, refused: _Refused) -> dict[str, Any]:
    """The parameters of a merge or of a model."""
    found: dict[str, Any] = {}
    for key, (_, inner) in _entries(node).items():
        if key in IGNORED:
            continue
        if key == "rescale" and _plain(inner) is False:
            continue
        if key not in PARAMETERS:
            refused.add(inner, f"the parameter {key} is unknown here; leave it out")
        elif key == "normalize":
            if not isinstance(_plain(inner), bool):
                refused.add(inner, "normalize is true or false")
            found[key] = _plain(inner)
        else:
            value = _number(key, inner, refused)
            found[key] = REFUSED if value is None else value
    return found


def _number(key: str, node: yaml.Node, refused: _Refused) -> float | None:
    """A parameter's one number."""
    if isinstance(node, yaml.SequenceNode):
        values = [_plain(item) for item in node.value]
        kind = "filters" if any(isinstance(item, yaml.MappingNode) for item in node.value) else None
        kind = kind or "a gradient over the layers"
        if len(set(map(str, values))) != 1 or kind == "filters":
            refused.add(
                node, f"{key} has {kind}, and a recipe has one number for all tensors; give one"
            )
            return None
        node = node.value[0]
    if isinstance(node, yaml.MappingNode):
        refused.add(node, f"{key} has a filter, and a recipe has one number for all tensors")
        return None
    try:
        value = float(str(_plain(node)))  # PyYAML takes 1e-3 for a text
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        refused.add(node, f"{key} is {_plain(node)}, which is no number")
        return None
    return value


def _dtypes(
    entries: Mapping[str, tuple[yaml.Node, yaml.Node]], refused: _Refused
) -> tuple[str | None, str | None]:
    """What is computed in, and what is written; `None` where it is not said."""
    found: list[str | None] = []
    for key in ("dtype", "out_dtype"):
        value = _plain(entries[key][1]) if key in entries else None
        if value is not None and value not in DTYPES:
            refused.add(entries[key][1], f"{key} is {value}, which is none of {', '.join(DTYPES)}")
            value = None
        found.append(value)
    return found[0], found[1]


def _entries(node: yaml.Node) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """A mapping's keys, each with its node and that of its value; nothing where it is none."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {str(key.value): (key, value) for key, value in node.value}


def _plain(node: yaml.Node) -> Any:
    """The value of a node, as YAML has it."""
    return yaml.safe_load(yaml.serialize(node))
