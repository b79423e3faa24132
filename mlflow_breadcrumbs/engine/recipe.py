"""What a merge computes: the recipe, its presets, its one canonical form and digest."""

import dataclasses
import fnmatch
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import canonical, documents, wording

UNITS = ("tensor", "row", "model")
CONSENSUS = ("none", "mass")
DECOMPOSING = ("tsv", "iso", "iso_cts", "covariance", "ace")
"""Ways to combine the sources that need decompositions of matrices."""
COMBINE = ("sum", "mean", *DECOMPOSING)
CALIBRATE = ("none", "svc")
WHOLE_MEAN = "whole_mean"
VECTORS = ("same", "mean", WHOLE_MEAN)
PACKED = ("whole", "split")

UNSAID: Mapping[str, Any] = MappingProxyType(
    {
        "calibrate": "none",
        "vectors": "",
        "packed": "whole",
        "depth": 0.0,
        "ridge": 0.0,
        "normalize": False,
        "center": False,
        "own": (),
    }
)
"""Fields that are no part of the canonical form while they have these values, so that recipes of
before these fields keep their digests."""

DTYPES = ("base", "float64", "float32", "bfloat16", "float16")

FLOAT32_MAX = 3.4028234663852886e38

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "breadcrumbs": {"density": 0.14, "gamma": 0.01, "alpha": 0.5},
        "breadcrumbs_signed": {"density": 0.14, "gamma": 0.01, "alpha": 0.5, "consensus": "mass"},
        "task_arithmetic": {"density": 1.0, "gamma": 0.0, "alpha": 0.2},
        "ties": {
            "density": 0.2,
            "gamma": 0.0,
            "alpha": 0.67,
            "unit": "model",
            "consensus": "mass",
            "combine": "mean",
        },
        # alpha is 1/T for T sources; see `MergeRecipe.from_method`.
        "weight_average": {"density": 1.0, "gamma": 0.0},
        "tsv_m": {"density": 1.0, "gamma": 0.0, "alpha": 1.0, "combine": "tsv"},
        "tsv_lines": {
            "density": 1.0,
            "gamma": 0.0,
            "alpha": 0.9,
            "combine": "tsv",
            "depth": 0.5,
        },
        "iso_c": {"density": 1.0, "gamma": 0.0, "alpha": 1.5, "combine": "iso"},
        "breadcrumbs_calibrated": {
            "density": 0.14,
            "gamma": 0.01,
            "alpha": 1.0,
            "calibrate": "svc",
            "vectors": WHOLE_MEAN,
        },
        "actmat": {
            "density": 1.0,
            "gamma": 0.0,
            "alpha": 1.0,
            "combine": "covariance",
            "ridge": 0.003,
        },
        "tact": {
            "density": 0.5,
            "gamma": 0.0,
            "alpha": 1.0,
            "combine": "covariance",
            "ridge": 0.003,
            "vectors": WHOLE_MEAN,
        },
        "ace": {"density": 1.0, "gamma": 0.0, "alpha": 1.0, "combine": "ace", "ridge": 1e-5},
        "iso_cts": {"density": 1.0, "gamma": 0.0, "alpha": 1.0, "combine": "iso_cts"},
        "lora": {"density": 1.0, "gamma": 0.0, "alpha": 0.65, "combine": "iso_cts"},
    }
)
"""The methods by name; each only fills in fields of the recipe. What the values are chosen by is
written in docs/study.md."""


@dataclasses.dataclass(frozen=True)
class MergeRecipe:
    """The hyperparameters of one merge, validated when made.

    Raises:
        RecipeError: a field is out of its range; the message names field, value and range.
    """

    density: float
    """Fraction of each masking unit that is kept, 0 < density ≤ 1."""

    gamma: float = 0.0
    """Fraction of each unit, the largest magnitudes, that is dropped, 0 ≤ gamma ≤ 1 − density."""

    alpha: float = 1.0
    """Factor on the sum of the masked task vectors; finite in float32, may be negative or zero."""

    weights: tuple[float, ...] = ()
    """One factor per source, in source order; empty means 1 for every source."""

    unit: str = "tensor"
    """What is masked as one vector: `tensor`, `row` (last dimension) or `model`."""

    consensus: str = "none"
    """`mass` drops contributions whose sign differs from the weighted sum's; `none` keeps all."""

    combine: str = "sum"
    """`sum`, or `mean` over the contributions that remain at an element; or, of matrices, `tsv`
    (task singular vectors), `iso` (isotropic sum), `iso_cts` (isotropic in common and task-specific
    subspaces), `covariance` (weighted by the covariances of the masked changes) or `ace` (the same,
    with adaptive covariances), see docs/methods.md."""

    calibrate: str = "none"
    """`svc` gives every singular direction of a combined matrix the length that the sources have
    there, which makes the combination's own scale all but irrelevant; see docs/methods.md."""

    vectors: str = ""
    """Tensors of other than two dimensions: `same` as the matrices, their `mean` over all sources
    of what the masks keep, or the `whole_mean`, to which masks and consensus don't apply. Empty for
    what goes without saying: `mean` where matrices are decomposed, otherwise `same`."""

    packed: str = "whole"
    """Matrices that hold queries, keys and values one above the other: decomposed `whole`, or
    `split` into the three."""

    depth: float = 0.0
    """What is added to alpha in the last of a model's blocks; less in those before it, in equal
    steps, and nothing in the first and outside of the blocks."""

    ridge: float = 0.0
    """Of `covariance`: what is added to each source's covariance, as a fraction of the mean of
    their diagonals, ≥ 0; the larger, the nearer to the plain mean. Of `ace`: what is added, as it
    is."""

    normalize: bool = False
    """Of `covariance`: whether each source's covariance is divided by its trace, so that sources
    that moved farther weigh no more."""

    center: bool = False
    """Of `covariance`: whether the mean of a change's rows is taken from them first."""

    include: tuple[str, ...] = ("*",)
    """Shell-style patterns of tensor names that are merged; the others are the base's."""

    exclude: tuple[str, ...] = ()
    """Shell-style patterns taken out of `include`."""

    own: tuple[str, ...] = ()
    """Shell-style patterns of tensors that each source keeps for its task, beside the merged ones:
    heads. They count before `include` and `exclude`."""

    dtype: str = "base"
    """Of the merged tensors in the output: `base` (the base's, per tensor) or a dtype's name."""

    def __post_init__(self) -> None:
        """Normalize the fields and hold each against its range."""
        for field in ("density", "gamma", "alpha"):
            object.__setattr__(self, field, _number(field, getattr(self, field)))
        if isinstance(self.weights, str) or not isinstance(self.weights, Sequence):
            raise errors.RecipeError(f"weights is {self.weights!r}; it must be a list of numbers")
        object.__setattr__(self, "weights", tuple(_number("weight", w) for w in self.weights))
        for field in ("include", "exclude", "own"):
            object.__setattr__(self, field, _patterns(field, getattr(self, field)))
        if not 0 < self.density <= 1:
            raise errors.RecipeError(f"density is {self.density}; it must be in 0 < density ≤ 1")
        if not 0 <= self.gamma <= 1:
            raise errors.RecipeError(f"gamma is {self.gamma}; it must be in 0 ≤ gamma ≤ 1")
        if exact(self.density) + exact(self.gamma) > 1:
            raise errors.RecipeError(
                f"density {self.density} + gamma {self.gamma} is more than 1: "
                "the kept and the dropped largest changes can't overlap; lower one of them"
            )
        for field, allowed in (
            ("unit", UNITS),
            ("consensus", CONSENSUS),
            ("combine", COMBINE),
            ("calibrate", CALIBRATE),
            ("packed", PACKED),
            ("dtype", DTYPES),
        ):
            if getattr(self, field) not in allowed:
                raise errors.RecipeError(
                    f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(allowed)}"
                )
        self._check_methods_fields()

    def _check_methods_fields(self) -> None:
        """Normalize the fields that belong to the methods for matrices."""
        if self.vectors not in ("", *VECTORS):
            raise errors.RecipeError(
                f"vectors is {self.vectors!r}; it must be one of {', '.join(VECTORS)}"
            )
        if self.vectors == "same" and self.combine in DECOMPOSING:
            raise errors.RecipeError(
                f"vectors is 'same' and combine is {self.combine!r}, which is for matrices alone; "
                "leave vectors out, or make it 'mean' or 'whole_mean'"
            )
        if self.vectors == self._implied_vectors:
            object.__setattr__(self, "vectors", "")
        if self.packed == "split" and self.bit_exact:
            raise errors.RecipeError(
                "packed is 'split', which is for recipes that decompose matrices; leave it out, or "
                f"choose another combine than {self.combine!r}"
            )
        for field in ("depth", "ridge"):
            object.__setattr__(self, field, _number(field, getattr(self, field)))
            if getattr(self, field) < 0:
                raise errors.RecipeError(f"{field} is {getattr(self, field)}; it must be 0 or more")
        for field in ("normalize", "center"):
            value = getattr(self, field)
            if not isinstance(value, bool):
                raise errors.RecipeError(f"{field} is {value!r}; it must be true or false")
            if value and self.combine != "covariance":
                raise errors.RecipeError(
                    f"{field} is for combine covariance, and combine is {self.combine!r}"
                )
        if self.ridge and self.combine not in ("covariance", "ace"):
            raise errors.RecipeError(
                f"ridge is for combine covariance or ace, and combine is {self.combine!r}"
            )

    @property
    def _implied_vectors(self) -> str:
        return "same" if self.bit_exact else "mean"

    @property
    def averages_vectors(self) -> bool:
        """Whether tensors of other than two dimensions are averaged over all sources."""
        return (self.vectors or self._implied_vectors) != "same"

    def masks(self, shape: Sequence[int]) -> bool:
        """Whether a merged tensor of this shape is masked; one without dimensions is kept whole."""
        return len(shape) == 2 or (len(shape) > 0 and self.vectors != WHOLE_MEAN)

    def aligns(self, shape: Sequence[int]) -> bool:
        """Whether the sources' signs are held against their consensus in a tensor of this shape."""
        return self.consensus == "mass" and (len(shape) == 2 or self.vectors != WHOLE_MEAN)

    @classmethod
    def from_method(cls, method: str, *, sources: int, **overrides: Any) -> "MergeRecipe":
        """The preset `method` for a number of sources, with any field overridden.

        Args:
            method: a key of `PRESETS`.
            sources: T, the number of sources (`weight_average` scales by 1/T).
            overrides: fields of the recipe; `None` means 'not given', zero is a value.
        """
        if not isinstance(method, str) or method not in PRESETS:
            raise errors.RecipeError(
                f"method is {method!r}; it must be one of {', '.join(PRESETS)}"
            )
        fields = dict(PRESETS[method])
        if method == "weight_average" and sources > 0:
            fields["alpha"] = 1 / sources
        fields |= {field: value for field, value in overrides.items() if value is not None}
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "MergeRecipe":
        """A recipe from its fields by name; an unknown name is an error."""
        _check_names(fields)
        if "density" not in fields:
            raise errors.RecipeError("a recipe needs density, or a method that fills it in")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields with their values, tuples as lists; without those that go without saying."""
        return {
            field: value
            for field, value in self.every_field().items()
            if field not in UNSAID or getattr(self, field) != UNSAID[field]
        }

    def every_field(self) -> dict[str, Any]:
        """All fields with their values, tuples as lists: for tables of several recipes."""
        fields = {
            field: list(value) if isinstance(value, tuple) else value
            for field, value in dataclasses.asdict(self).items()
        }
        return fields | {"vectors": self.vectors or self._implied_vectors}

    def to_json(self) -> str:
        """The canonical JSON form (RFC 8785)."""
        return canonical.dumps(self.to_dict()).decode()

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON form, `sha256:…`."""
        return canonical.digest(self.to_dict())

    def weight_of(self, sources: int) -> tuple[float, ...]:
        """One weight per source; `RecipeError` if the recipe names another number of them."""
        if self.weights and len(self.weights) != sources:
            raise errors.RecipeError(
                f"the recipe has {wording.counted(len(self.weights), 'weights')} for "
                f"{wording.counted(sources, 'sources')}; "
                "give one per source, or none"
            )
        return self.weights or (1.0,) * sources

    @property
    def bit_exact(self) -> bool:
        """Whether every machine and backend gives the same bits.

        Decompositions of matrices don't: see `tolerance`.
        """
        return self.combine not in DECOMPOSING and self.calibrate == "none"

    def decomposes(self, shape: Sequence[int]) -> bool:
        """Whether a merged tensor of this shape goes through decompositions."""
        return not self.bit_exact and len(shape) == 2

    def merges(self, name: str) -> bool:
        """Whether the patterns choose the tensor `name` to be merged."""
        return (
            _matches(name, self.include)
            and not _matches(name, self.exclude)
            and not self.keeps(name)
        )

    def keeps(self, name: str) -> bool:
        """Whether the patterns have each source keep its own tensor `name`."""
        return _matches(name, self.own)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_names(fields: Mapping[Any, Any]) -> None:
    known = [field.name for field in dataclasses.fields(MergeRecipe)]
    if unknown := sorted(repr(name) for name in set(fields) - set(known)):
        raise errors.RecipeError(
            f"a recipe has no field {', '.join(unknown[:20])}; its fields are {', '.join(known)}"
        )


def load_fields(path: str | Path) -> dict[str, Any]:
    """The fields in a recipe file (YAML or JSON); it may name a `method` and override fields.

    Raises:
        RecipeError: the file can't be read, gives a field twice, or is not a mapping.
    """
    fields = documents.read(path, f"the recipe file {path}", errors.RecipeError).content
    if not isinstance(fields, dict):
        raise errors.RecipeError(
            f"the recipe file {path} holds {_shown(fields)}; "
            "it must be a mapping of fields, as `density: 0.14`"
        )
    return fields


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, default=str)
    except TypeError:  # keys that are dates, and the like
        text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}…"


def make(
    *,
    sources: int,
    method: str | None = None,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> MergeRecipe:
    """The recipe of a command: a method's preset, then a recipe file, then single fields.

    A file that gives `density` itself and names no method starts from the bare recipe, so that a
    recipe written by a sweep means the same whatever the default method is.
    """
    given: dict[str, Any] = {k: v for k, v in (overrides or {}).items() if v is not None}
    fields = load_fields(file) if file is not None else {}
    named = fields.pop("method", None)
    return of_fields(
        fields | given,
        sources=sources,
        method=method if method is not None else named,
        bare="density" in fields,
    )


def of_fields(
    fields: Mapping[str, Any], *, sources: int, method: str | None, bare: bool
) -> MergeRecipe:
    """The recipe of a method with any field overridden.

    Args:
        fields: by name.
        sources: how many there are.
        method: a preset; without one the bare recipe, or the paper's method.
        bare: which of the two.
    """
    _check_names(fields)
    if method is None and bare:
        return MergeRecipe.from_dict(fields)
    chosen = "breadcrumbs" if method is None else method
    return MergeRecipe.from_method(chosen, sources=sources, **fields)


def exact(value: float) -> Fraction:
    """The decimal number as written: `exact(0.29)` is 29/100, not the binary 0.28999…."""
    return Fraction(repr(value))


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise errors.RecipeError(f"{field} is {value!r}; it must be a number")
    if isinstance(value, int) and abs(value) > FLOAT32_MAX:
        raise errors.RecipeError(f"{field} has {value.bit_length()} bits; it must fit in float32")
    number = float(value) + 0.0  # −0 becomes 0, so that one recipe has one digest
    if not math.isfinite(number) or abs(number) > FLOAT32_MAX:
        raise errors.RecipeError(f"{field} is {value}; it must be finite in float32")
    return number


def _patterns(field: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise errors.RecipeError(f"{field} is {value!r}; it must be a list of name patterns")
    for pattern in value:
        if not isinstance(pattern, str) or not pattern:
            raise errors.RecipeError(
                f"{field} has the pattern {pattern!r}; a pattern is a non-empty string"
            )
    return tuple(value)
