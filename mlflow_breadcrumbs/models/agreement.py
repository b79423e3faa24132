"""Whether two models make the same of one image: their configurations, side by side.

Tensors of the same names and shapes can belong to models that compute differently: the number of
heads, the activation and the preprocessing leave no trace in a checkpoint.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mlflow_breadcrumbs.models import architecture

HARMLESS = frozenset(
    {
        "init_logit_bias",
        "init_logit_scale",
        "text_cfg.hf_model_pretrained",
        "vision_cfg.patch_dropout",
        "vision_cfg.timm_drop",
        "vision_cfg.timm_drop_path",
        "vision_cfg.timm_model_pretrained",
    }
)
"""Settings of training, or of weights that are replaced: no feature depends on them."""


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """Where a source's configuration is not the base's; each entry names a field and both values.

    It is false where there is none.
    """

    model: tuple[str, ...] = ()
    """Of `model_cfg`: the same weights would give other features."""
    preprocessing: tuple[str, ...] = ()
    """Of `preprocess_cfg`: the same image would give other pixels."""

    def __bool__(self) -> bool:
        return bool(self.model or self.preprocessing)


def between(base: architecture.ModelConfig, source: architecture.ModelConfig) -> Disagreement:
    """Where a source disagrees with the base; a field left out has open_clip's default."""
    model: tuple[str, ...] = ()
    if base.model_cfg != source.model_cfg:
        model = _differences(_complete(base.model_cfg), _complete(source.model_cfg))
    return Disagreement(model, _differences(base.preprocess_cfg, source.preprocess_cfg))


def of_mappings(
    base: Mapping[str, Any], source: Mapping[str, Any], ignored: frozenset[str]
) -> tuple[str, ...]:
    """The fields of two nested mappings that differ, by their dotted names; but for some.

    Args:
        base: of the base.
        source: of the source.
        ignored: names of fields, at whatever depth.
    """
    return _differences(_flat(base), _flat(source), ignored)


def _complete(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by dotted name, with open_clip's defaults for what is left out."""
    from open_clip import model as open_clip_model

    defaults: dict[str, Any] = {"quick_gelu": False}
    for part, kind in (
        ("vision_cfg", open_clip_model.CLIPVisionCfg),
        ("text_cfg", open_clip_model.CLIPTextCfg),
    ):
        for field in dataclasses.fields(kind):
            if field.default is not dataclasses.MISSING:
                value = field.default
                defaults[f"{part}.{field.name}"] = list(value) if type(value) is tuple else value
    return defaults | _flat(model_cfg)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _differences(
    base: Mapping[str, Any], source: Mapping[str, Any], ignored: frozenset[str] = HARMLESS
) -> tuple[str, ...]:
    return tuple(
        f"{name} is {_shown(source.get(name))} (the base's: {_shown(base.get(name))})"
        for name in sorted({*base, *source})
        if base.get(name) != source.get(name) and not ignored & {name, name.rpartition(".")[2]}
    )


def _shown(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
