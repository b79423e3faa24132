"""What an architecture's bare name leaves open, and what is taken: activation and preprocessing.

open_clip's weights of one architecture were trained with different ones, and no checkpoint says
with which.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs.models import architecture


def of(name: str) -> str | None:
    """What is taken for open_clip's architecture `name`, and which weights were trained otherwise.

    Returns:
        A sentence or several; `None` for a JSON file, which leaves nothing open.

    Raises:
        ArchitectureError: the name is unknown.
    """
    if name.endswith(".json") or Path(name).is_file():
        return None
    import open_clip

    config = architecture.load_config(name)
    said = (
        f"{config.architecture} was taken by its bare name: activation {_activation(config)}, "
        f"preprocessing {_shown(config.preprocess_cfg)}."
    )
    others: dict[str, list[str]] = {}
    for tag in open_clip.list_pretrained_tags_by_model(config.architecture):
        trained = architecture.load_config(name, pretrained=tag)
        if differences := ", ".join(_differences(config, trained)):
            others.setdefault(differences, []).append(tag)
    if not others:
        return said
    listed = "; ".join(f"{', '.join(tags)} ({what})" for what, tags in others.items())
    return (
        f"{said} These weights of it were trained otherwise: {listed}. If the checkpoint comes "
        "from one of them, import it again with `--architecture FILE`, a JSON file with "
        f"`model_cfg` and `preprocess_cfg`{_or_quick_gelu(config, others)}."
    )


def _differences(
    taken: architecture.ModelConfig, trained: architecture.ModelConfig
) -> Iterator[str]:
    if _activation(taken) != _activation(trained):
        yield _activation(trained)
    other = {
        field: value
        for field, value in trained.preprocess_cfg.items()
        if value != taken.preprocess_cfg[field]
    }
    if other:
        yield _shown(other)


def _activation(config: architecture.ModelConfig) -> str:
    return "QuickGELU" if config.model_cfg.get("quick_gelu") else "GELU"


def _shown(preprocess_cfg: Mapping[str, Any]) -> str:
    """The settings on one line; a mean is three numbers, of which three digits tell it apart."""
    return ", ".join(
        f"{field} {[round(number, 3) for number in value] if isinstance(value, list) else value}"
        for field, value in preprocess_cfg.items()
    )


def _or_quick_gelu(config: architecture.ModelConfig, others: Mapping[str, Any]) -> str:
    """open_clip's own name for the same architecture with the other activation, if that helps."""
    import open_clip

    name = f"{config.architecture}-quickgelu"
    helps = "QuickGELU" in others and name in open_clip.list_models()
    return f", or with `--architecture {name}` where it is only QuickGELU" if helps else ""
