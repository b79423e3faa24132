"""What a model configuration from outside may say: a list of keys, each with what it may hold.

A version's `open_clip_config.json` was perhaps written by somebody else, and open_clip hands parts
of it to timm and transformers, which load code, files and models by name. So every key is one of
open_clip's own, numbers are within bounds, words are plain words, and the three names that a
configuration has to have are names of architectures that are part of the installed libraries:

- `timm_model_name`: an architecture of timm, without `hf-hub:`, `local-dir:` or a path;
- `hf_model_name`, `hf_tokenizer_name`: one that an architecture of open_clip itself has.

Nothing of it names code, a path, or a repository of somebody's. Knows no MLflow, and imports
open_clip only where one of the last two names is given.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import validation

LAYERS, WIDTH, SIDE, TOKENS, WORDS = 256, 16_384, 4_096, 8_192, 2_000_000
"""Most layers, channels, pixels of a side, tokens of a text, entries of a vocabulary."""

_SHOWN = 5
"""Faults of a configuration that a message lists."""

_Layers = Annotated[int, pydantic.Field(ge=1, le=LAYERS)]
_Stages = Annotated[list[_Layers], pydantic.Field(min_length=4, max_length=4)]
_Width = Annotated[int, pydantic.Field(ge=1, le=WIDTH)]
_Side = Annotated[int, pydantic.Field(ge=1, le=SIDE)]
_Sides = _Side | Annotated[list[_Side], pydantic.Field(min_length=2, max_length=2)]
_Tokens = Annotated[int, pydantic.Field(ge=1, le=TOKENS)]
_Words = Annotated[int, pydantic.Field(ge=1, le=WORDS)]
_Token = Annotated[int, pydantic.Field(ge=-WORDS, le=WORDS)]
_Ratio = Annotated[float, pydantic.Field(gt=0, le=64, allow_inf_nan=False)]
_Fraction = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]
_Number = Annotated[float, pydantic.Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
_Word = Annotated[str, pydantic.Field(pattern=r"^[a-z0-9_]{0,40}$")]
_TimmName = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?$")]
_Channels = Annotated[
    list[Annotated[float, pydantic.Field(ge=-1e3, le=1e3, allow_inf_nan=False)]],
    pydantic.Field(min_length=3, max_length=3),
]
_Colour = Annotated[int, pydantic.Field(ge=0, le=255)]


def _published(key: str) -> pydantic.AfterValidator:
    """Holds a name against those that open_clip's own architectures have under that key."""

    def check(name: str) -> str:
        import open_clip

        known = {
            open_clip.get_model_config(each)["text_cfg"].get(key)
            for each in open_clip.list_models()
        }
        if name not in known:
            raise ValueError(
                "no architecture of open_clip has that name; a configuration names no other "
                "repository, and no folder"
            )
        return name

    return pydantic.AfterValidator(check)


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class _Activation(_Part):
    approximate: Literal["none", "tanh"] | None = None


class _Norm(_Part):
    eps: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None


class _Block(_Part):
    """What both towers have."""

    width: _Width | None = None
    mlp_ratio: _Ratio | None = None
    ls_init_value: _Number | None = None
    final_ln_after_pool: bool | None = None
    pool_type: _Word | None = None
    output_tokens: bool | None = None
    act_kwargs: _Activation | None = None
    norm_kwargs: _Norm | None = None
    block_type: _Word | None = None
    qk_norm: bool | None = None
    scaled_cosine_attn: bool | None = None
    scale_heads: bool | None = None
    scale_attn_inner: bool | None = None
    scale_attn: bool | None = None
    scale_fc: bool | None = None


class _Vision(_Block):
    layers: _Layers | _Stages | None = None
    head_width: _Width | None = None
    patch_size: _Sides | None = None
    image_size: _Sides = 224
    patch_dropout: _Fraction | None = None
    attentional_pool: bool | _Word | None = None
    attn_pooler_queries: _Tokens | None = None
    attn_pooler_heads: _Width | None = None
    no_ln_pre: bool | None = None
    pos_embed_type: _Word | None = None
    timm_model_name: _TimmName | None = None
    timm_model_pretrained: bool | None = None
    timm_pool: _Word | None = None
    timm_proj: _Word | None = None
    timm_proj_bias: bool | None = None
    timm_drop: _Fraction | None = None
    timm_drop_path: _Fraction | None = None


class _TokenizerSettings(_Part):
    clean: Literal["canonicalize", "lower", "whitespace"] | None = None
    strip_sep_token: bool | None = None


class _Text(_Block):
    layers: _Layers | None = None
    context_length: _Tokens | None = None
    vocab_size: _Words | None = None
    heads: _Width | None = None
    embed_cls: bool | None = None
    pad_id: _Token | None = None
    eos_id: _Token | None = None
    no_causal_mask: bool | None = None
    proj_bias: bool | None = None
    proj_type: _Word | None = None
    tokenizer_mode: Literal["", "clips"] | None = None
    tokenizer_kwargs: _TokenizerSettings | None = None
    hf_tokenizer_name: Annotated[str, _published("hf_tokenizer_name")] | None = None
    hf_model_name: Annotated[str, _published("hf_model_name")] | None = None
    hf_model_pretrained: bool | None = None
    hf_proj_type: _Word | None = None
    hf_pooler_type: _Word | None = None


class _Decoder(_Text):
    dim_head: _Width | None = None
    n_queries: _Tokens | None = None
    attn_pooler_heads: _Width | None = None


class _Model(_Part):
    embed_dim: _Width
    vision_cfg: _Vision
    text_cfg: _Text = _Text()
    multimodal_cfg: _Decoder = _Decoder()
    custom_text: bool | None = None
    quick_gelu: bool | None = None
    init_logit_scale: _Number | None = None
    init_logit_bias: _Number | None = None
    nonscalar_logit_scale: bool | None = None


class _Preprocessing(_Part):
    size: _Sides | None = None
    mode: Literal["RGB"] | None = None
    mean: _Channels | None = None
    std: _Channels | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    fill_color: (
        _Colour | Annotated[list[_Colour], pydantic.Field(min_length=3, max_length=3)] | None
    ) = None


class _Ours(_Part):
    architecture: Annotated[str, pydantic.Field(min_length=1, max_length=256)] = "unnamed"
    has_text_tower: bool = True


class _Allowed(_Part):
    model_cfg: _Model
    preprocess_cfg: _Preprocessing
    mlflow_breadcrumbs: _Ours


def check(
    model_cfg: Mapping[str, Any],
    preprocess_cfg: Mapping[str, Any],
    ours: Mapping[str, Any],
    *,
    origin: str,
) -> None:
    """Refuse a configuration that says what it may not say.

    Args:
        model_cfg: open_clip's `embed_dim`, `vision_cfg`, `text_cfg` and so on.
        preprocess_cfg: any of `architecture.PREPROCESS_FIELDS`.
        ours: what stands under `mlflow_breadcrumbs`.
        origin: how the message names the configuration.

    Raises:
        ArchitectureError: with each key that is refused, and why.
    """
    content = {
        "model_cfg": dict(model_cfg),
        "preprocess_cfg": dict(preprocess_cfg),
        "mlflow_breadcrumbs": dict(ours),
    }
    try:
        _Allowed.model_validate(content)
    except pydantic.ValidationError as error:
        faults = _explain(error)
        more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise errors.ArchitectureError(
            f"{origin} is refused: {'; '.join(faults[:_SHOWN])}{more}. A configuration has only "
            "keys of open_clip's architectures, and names no code, path or repository."
        ) from error


def _explain(error: pydantic.ValidationError) -> list[str]:
    """Each refused key once, with its value and why: `'vision_cfg.layers' (3000000): …`."""
    found: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False):
        unknown = fault["type"] == "extra_forbidden"
        if unknown:
            why = "not a key that it may have"
        elif fault["type"] == "string_pattern_mismatch":
            why = "not a plain name"
        else:
            own = fault["type"] == "value_error"
            why = f"{'' if own else 'must be '}{validation.expected(fault)}"
        value = "absent" if fault["type"] == "missing" else _short(fault["input"])
        key = f"{_short(_key(fault['loc'], whole=unknown))} ({value})"
        found.setdefault(key, []).append(why)
    return [f"{key}: {' or '.join(dict.fromkeys(whys))}" for key, whys in found.items()]


def _key(where: tuple[int | str, ...], *, whole: bool) -> str:
    """The path of a key, without the outer `model_cfg` and pydantic's names of a union's branches.

    The last part is what the configuration says, where `whole`.
    """
    keys = [str(part) for part in (where[1:] if where[0] == "model_cfg" else where)]
    known = [key for key in keys if key.isidentifier() and key not in _BRANCHES]
    return ".".join([*known[: len(known) - (keys[-1] in known)], keys[-1]] if whole else known)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}…"


_BRANCHES = frozenset({"bool", "float", "int", "list", "str"})
