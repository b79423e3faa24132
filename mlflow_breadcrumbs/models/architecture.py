"""What a model looks like: open_clip's configuration of it, by name or from a JSON file.

Knows open_clip and nothing of MLflow. Only what makes a model or looks up a name imports open_clip:
a version's configuration is read without it, which spares a command some seconds. A `ModelConfig`
is the content of `open_clip_config.json` in open_clip's hub layout, completed so that the
preprocessing can be made without the model:

```python
config = architecture.load_config("ViT-B-32")
model = architecture.build(config)  # random weights, float32, on the CPU
preprocess = architecture.preprocess(config)  # PIL image -> Tensor [3, height, width]
tokenizer = architecture.tokenizer(config)  # list of texts -> Tensor [texts, context_length]
```
"""

import contextlib
import copy
import dataclasses
import difflib
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import bounds, config_rules
from mlflow_breadcrumbs.support import intake, json_documents

CONFIG_FILE = "open_clip_config.json"

CONFIG_BYTES = 1 << 20
"""Of a configuration file at most; open_clip's are 2 kB."""

PLACEHOLDER_TEXT_TOWER = {
    "context_length": 1,
    "vocab_size": 1,
    "width": 1,
    "heads": 1,
    "layers": 1,
    "mlp_ratio": 1.0,
    "proj_type": "none",
}
"""The smallest text tower that open_clip builds (20 numbers); `layers: 0` divides by zero there."""

PREPROCESS_FIELDS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
"""Of open_clip's `PreprocessCfg`, in its order; a version's configuration has all of them."""

Preprocess = Callable[[Image.Image], torch.Tensor]
Tokenizer = Callable[[list[str]], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The content of a version's `open_clip_config.json`."""

    architecture: str = dataclasses.field(compare=False)
    """Name that the configuration was loaded by; for people, two names may mean the same model."""
    model_cfg: dict[str, Any]
    """open_clip's `embed_dim`, `vision_cfg`, `text_cfg` and so on."""
    preprocess_cfg: dict[str, Any]
    """Size, mean, standard deviation, interpolation and resize mode of the image; complete."""
    has_text_tower: bool = True
    """False for an image-only backbone, whose `text_cfg` is `PLACEHOLDER_TEXT_TOWER`."""
    parameters: int | None = dataclasses.field(default=None, compare=False, repr=False)
    """Elements of the checkpoint that it came with, far more than which `build` makes none of."""

    @property
    def embed_dim(self) -> int:
        """Length of the feature vector of an image."""
        return int(self.model_cfg["embed_dim"])

    def to_json(self) -> str:
        """Give the text of `open_clip_config.json`; open_clip ignores the third key."""
        content = {
            "model_cfg": self.model_cfg,
            "preprocess_cfg": self.preprocess_cfg,
            "mlflow_breadcrumbs": {
                "architecture": self.architecture,
                "has_text_tower": self.has_text_tower,
            },
        }
        return json.dumps(content, indent=2) + "\n"


def load_config(architecture: str, *, pretrained: str | None = None) -> ModelConfig:
    """Load a configuration by open_clip's name of it, or from a JSON file.

    Args:
        architecture: `ViT-B-32` and so on (`open_clip.list_models()`), or the path of a JSON file:
            either a bare model configuration (`embed_dim`, `vision_cfg`, `text_cfg`) or a whole
            `open_clip_config.json`. Without `text_cfg` it is an image-only backbone.
        pretrained: Tag of open_clip's weights for that architecture (`openai`, for one).
            Its activation (QuickGELU or GELU) and its preprocessing replace the defaults.

    Raises:
        ArchitectureError: The name or tag is unknown, or the file is not such a configuration.
    """
    if architecture.endswith(".json") or Path(architecture).is_file():
        return read_config(Path(architecture))
    import open_clip

    name = architecture.replace("/", "-")
    if name not in open_clip.list_models():
        raise errors.ArchitectureError(
            f"Unknown architecture '{architecture}'.{_close(name, open_clip.list_models())} Give a "
            "name that open_clip.list_models() shows, or the path of a JSON configuration."
        )
    model_cfg = open_clip.get_model_config(name)
    preprocess_cfg: dict[str, Any] = {}
    if pretrained is not None:
        preprocess_cfg = open_clip.get_pretrained_cfg(name, pretrained)
        if not preprocess_cfg:
            tags = open_clip.list_pretrained_tags_by_model(name)
            raise errors.ArchitectureError(
                f"open_clip has no weights '{pretrained}' for {name}.{_close(pretrained, tags)} "
                f"It has: {', '.join(tags) or 'none'}."
            )
        model_cfg["quick_gelu"] = bool(preprocess_cfg.get("quick_gelu", False))
    return _complete(name, model_cfg, preprocess_cfg)


def parse_config(text: str, *, origin: str) -> ModelConfig:
    """Read the text of a JSON configuration, ours or anyone's, and hold it against `config_rules`.

    Args:
        text: The JSON text.
        origin: Where it came from: a path, for messages and for the architecture's name.

    Raises:
        ArchitectureError: The text is not such a configuration, or says what none may say.
    """
    content = json_documents.parse(text, origin, errors.ArchitectureError)
    if not isinstance(content, dict):
        raise errors.ArchitectureError(
            f"{origin} is not a JSON object but {type(content).__name__}."
        )
    model_cfg = content.get("model_cfg", content)
    preprocess_cfg = content.get("preprocess_cfg", {})
    ours = content.get("mlflow_breadcrumbs", {})
    if not all(isinstance(part, dict) for part in (model_cfg, preprocess_cfg, ours)):
        raise errors.ArchitectureError(
            f"{origin}: 'model_cfg' and 'preprocess_cfg' must be JSON objects."
        )
    name = ours.get("architecture", Path(origin).stem)
    config = _complete(name, model_cfg, preprocess_cfg, origin=origin, ours=ours)
    return dataclasses.replace(
        config, has_text_tower=ours.get("has_text_tower", config.has_text_tower)
    )


def read_config(path: Path) -> ModelConfig:
    """Read a JSON configuration from a file; see `parse_config`.

    Raises:
        ArchitectureError: The file can't be read, or is refused.
    """
    origin = f"The architecture file '{path}'"
    text = intake.text(path, origin, errors.ArchitectureError, CONFIG_BYTES)
    return parse_config(text, origin=str(path))


def build(config: ModelConfig) -> torch.nn.Module:
    """Make the model with random weights, in float32 on the CPU, in training mode.

    It is made by open_clip itself from the hub layout, so it is the very module that
    `open_clip.create_model("local-dir:…")` gives. The weights come from torch's global generator.

    Raises:
        ArchitectureError: open_clip refuses the configuration, or it asks for a far larger model
            than its checkpoint is.
    """
    if config.parameters is not None and (model := _on_meta(config)) is not None:
        count = sum(tensor.numel() for tensor in model.state_dict().values())
        bounds.check_count(count, config.parameters, config.architecture)
    with _refusals_explained(config):
        return _create(config, "cpu")


def outline(config: ModelConfig) -> torch.nn.Module:
    """Make the model without numbers: names, shapes and dtypes of the tensors are `build`'s.

    It is on torch's meta device, which spares memory and the drawing of random weights; the few
    towers that look at their own numbers while they are made are made with numbers.

    Raises:
        ArchitectureError: open_clip refuses the configuration.
    """
    model = _on_meta(config)
    return build(config) if model is None else model


def _on_meta(config: ModelConfig) -> torch.nn.Module | None:
    """The model on torch's meta device; `None` where a layer looks at its numbers, or refuses."""
    try:
        with torch.device("meta"):
            return _create(config, "meta")
    except Exception:  # noqa: BLE001 - whatever a layer raises, with numbers it may be made
        return None


def _create(config: ModelConfig, device: str) -> torch.nn.Module:
    import open_clip

    with _hub_folder(config) as folder, _without_open_clip_logs(), offline():
        model: torch.nn.Module = open_clip.create_model(
            f"local-dir:{folder}", device=device, load_weights=False, pretrained_text=False
        )
    return model.float()


@contextlib.contextmanager
def _refusals_explained(config: ModelConfig) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # open_clip raises whatever its layers raise
        if (name := config.model_cfg["text_cfg"].get("hf_model_name")) is not None:
            raise errors.ArchitectureError(
                f"open_clip can't build the architecture '{config.architecture}': its text tower "
                f"needs the configuration of '{name}' in Hugging Face's cache on this machine, "
                "since models are built without asking the network. "
                f"`hf download {name} config.json` puts it there. ({_one_line(error)})"
            ) from error
        raise errors.ArchitectureError(
            f"open_clip can't build the architecture '{config.architecture}': "
            f"{_one_line(error)}. Check its configuration: {json.dumps(config.model_cfg)}"
        ) from error


def build_pretrained(config: ModelConfig, tag: str) -> torch.nn.Module:
    """Make the model with open_clip's weights of a tag, which are downloaded or in its cache.

    Args:
        config: What `load_config(architecture, pretrained=tag)` gave.
        tag: One that `open_clip.list_pretrained_tags_by_model` shows.

    Raises:
        ArchitectureError: The weights can't be downloaded, or don't fit.
    """
    import open_clip

    with _without_open_clip_logs():
        try:
            model: torch.nn.Module = open_clip.create_model(
                config.architecture,
                pretrained=tag,
                force_quick_gelu=bool(config.model_cfg.get("quick_gelu", False)),
            )
        except Exception as error:  # urllib, huggingface_hub and torch each have their own
            raise errors.ArchitectureError(
                f"open_clip's weights '{tag}' for {config.architecture} can't be loaded: "
                f"{_one_line(error)}. Check the connection, or give a checkpoint file."
            ) from error
    return model.float()


def preprocess(config: ModelConfig, *, train: bool = False) -> Preprocess:
    """Give open_clip's image transform: PIL image to float32 Tensor [3, height, width].

    Args:
        config: The model.
        train: With a random crop of 90 to 100 % of the area, drawn from torch's global generator.
    """
    from open_clip import transform

    settings = transform.PreprocessCfg(**config.preprocess_cfg)
    result: Preprocess = transform.image_transform_v2(settings, is_train=train)
    return result


def tokenizer(config: ModelConfig) -> Tokenizer:
    """Give the tokenizer of the text tower: list of texts to int64 Tensor [texts, context_length].

    Raises:
        ArchitectureError: The model has no text tower, or its tokenizer can't be fetched.
    """
    if not config.has_text_tower:
        raise errors.ArchitectureError(
            f"The architecture '{config.architecture}' has no text tower, so it has no tokenizer."
        )
    import open_clip

    with _hub_folder(config) as folder, _without_open_clip_logs(), offline():
        try:
            result: Tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        except Exception as error:  # transformers raises OSError, ValueError, RuntimeError, …
            raise errors.ArchitectureError(
                f"The tokenizer of '{config.architecture}' can't be loaded: {_one_line(error)}."
            ) from error
    return result


def _complete(
    name: str,
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any],
    *,
    origin: str | None = None,
    ours: dict[str, Any] | None = None,
) -> ModelConfig:
    """Fill in the placeholder text tower and the preprocessing that open_clip would use."""
    vision_cfg = model_cfg.get("vision_cfg")
    embed_dim = model_cfg.get("embed_dim")
    if not isinstance(vision_cfg, dict) or not isinstance(embed_dim, int) or embed_dim < 1:
        raise errors.ArchitectureError(
            f"{origin or name} is no model configuration: it needs 'embed_dim' (a positive "
            "integer) and 'vision_cfg' (an object), as in open_clip's model_configs/*.json."
        )
    if origin is not None:  # what open_clip itself says by a name is not from outside
        config_rules.check(model_cfg, preprocess_cfg, ours or {}, origin=origin)
    has_text_tower = "text_cfg" in model_cfg
    model_cfg = copy.deepcopy(model_cfg)
    model_cfg.setdefault("text_cfg", dict(PLACEHOLDER_TEXT_TOWER))
    settings = _complete_preprocess(preprocess_cfg)
    settings["size"] = vision_cfg.get("image_size", 224)  # create_model sets it so, too
    model_cfg, settings = json.loads(json.dumps([model_cfg, settings]))  # tuples become lists
    return ModelConfig(name, model_cfg, settings, has_text_tower)


def _complete_preprocess(given: dict[str, Any]) -> dict[str, Any]:
    """The preprocessing with open_clip's defaults; open_clip isn't asked where none is missing."""
    if set(given) == set(PREPROCESS_FIELDS) and None not in given.values():
        return {field: given[field] for field in PREPROCESS_FIELDS}
    from open_clip import transform

    found: dict[str, Any] = transform.merge_preprocess_dict(transform.PreprocessCfg(), given)
    return found


def _close(name: str, names: list[str]) -> str:
    """Give ' Did you mean …?' or nothing."""
    folded = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), folded, n=3)
    return f" Did you mean {' or '.join(folded[match] for match in close)}?" if close else ""


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")


@contextlib.contextmanager
def _hub_folder(config: ModelConfig) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        yield folder


class _Offline:
    """How many are at work without the hub, and what they put back when the last is done."""

    lock = threading.Lock()
    inside = 0
    before = False


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep huggingface_hub, and what is built on it, from the network, whatever is configured.

    It holds for all threads of this process: one that asks the hub meanwhile is told so.
    """
    from huggingface_hub import constants

    with _Offline.lock:
        if _Offline.inside == 0:
            _Offline.before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        _Offline.inside += 1
    try:
        yield
    finally:
        with _Offline.lock:
            _Offline.inside -= 1
            if _Offline.inside == 0:
                constants.HF_HUB_OFFLINE = _Offline.before


@contextlib.contextmanager
def _without_open_clip_logs() -> Iterator[None]:
    """Silence open_clip on the root logger, where it warns that a model without weights has none.

    The handler keeps `logging.warning` from configuring the root logger on the caller's behalf.
    """
    import open_clip

    root = logging.getLogger()
    folder = str(Path(open_clip.__file__).parent)

    def keep(record: logging.LogRecord) -> bool:
        return not record.pathname.startswith(folder)

    handler = logging.NullHandler()
    root.addFilter(keep)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(keep)
