"""The base: a small CLIP that learns prints of all kinds with captions (Radford et al. 2021)."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file

from mlflow_breadcrumbs.models import architecture
from mlflow_breadcrumbs.quickstart import materials, variety
from mlflow_breadcrumbs.quickstart.settings import QuickstartSettings
from mlflow_breadcrumbs.support import progress

BARE = materials.Light(
    paper=(1.0, 1.0, 1.0),
    paper_varies=(1.0, 1.0),
    contrast=(1.0, 1.0),
    tilt=0,
    noise=0,
)
"""Black on white and straight: `variety` makes pictures of it, new ones at every step."""

TEXT_TOWER = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}


def write_config(path: Path, settings: QuickstartSettings) -> architecture.ModelConfig:
    """Write the architecture as open_clip's JSON configuration, and read it."""
    half = [0.5, 0.5, 0.5]
    content = {
        "model_cfg": {
            "embed_dim": settings.embed_dim,
            "vision_cfg": {
                "timm_model_name": settings.architecture,
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": settings.image_size,
            },
            "text_cfg": TEXT_TOWER,
        },
        "preprocess_cfg": {"mean": half, "std": half},
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return architecture.load_config(str(path))


def pretrain(
    config: architecture.ModelConfig,
    path: Path,
    settings: QuickstartSettings,
    show: progress.Progress = progress.silent,
) -> None:
    """Train a model from scratch on images with captions, and write its weights.

    Every step shows each image in another way, see `variety`. The loss is a text's share among
    the distinct captions of the batch, for every image. The token embeddings stay as they are
    drawn: of 49,408 tokens the captions use a hundred.

    The images are the same wherever the packages are; the weights are the same on one kind of
    processor, and differ in their last bits, hence after many steps visibly, between two.

    Args:
        config: What `write_config` gave.
        path: A `.safetensors` file, written.
        settings: Of the quickstart.
        show: Told about each step.
    """
    rng = np.random.default_rng(settings.seed)
    drawings, photographs, captions = corpus(settings, rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = cast(Any, architecture.build(config))
        torch.nn.init.normal_(model.token_embedding.weight)
    model.token_embedding.weight.requires_grad_(False)
    tokens = architecture.tokenizer(config)(captions)
    # What is drawn comes first, as ink; photographs stay as they are.
    ink = [1 - drawing for drawing in drawings]
    pictures = torch.from_numpy(np.stack(ink + photographs)).permute(0, 3, 1, 2)
    drawn = torch.arange(len(pictures)) < len(drawings)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.pretrain_rate, weight_decay=0.1)
    model.train()
    with show("pretrain the base", total=settings.pretrain_steps, unit="steps") as advance:
        for step in range(settings.pretrain_steps):
            done = step / settings.pretrain_steps
            rate = min(1.0, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * done))
            optimizer.param_groups[0]["lr"] = settings.pretrain_rate * rate
            chosen = torch.from_numpy(rng.integers(0, len(pictures), settings.pretrain_batch))
            seen = variety.vary(pictures[chosen], drawn[chosen], variety.Variety(), rng)
            loss = _loss(model, seen * 2 - 1, tokens[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            advance(1)
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, path)


def corpus(
    settings: QuickstartSettings, rng: np.random.Generator
) -> tuple[list[materials.Picture], list[materials.Picture], list[str]]:
    """The drawings of the pretraining, its photographs, and the captions of both in this order."""
    drawings: list[materials.Picture] = []
    captions: list[str] = []
    size, each = settings.image_size, settings.corpus_images
    for kind, names in materials.CHARACTERS.items():
        made, labels = materials.characters(kind, tuple(names), each, size, BARE, rng)
        drawings += made
        captions += [f"{kind} {tuple(names)[label]}" for label in labels]
    photographs, labels = materials.surfaces(each, size, BARE, rng)
    captions += [f"photo {tuple(materials.SURFACES)[label]}" for label in labels]
    return drawings, photographs, captions


def _loss(model: Any, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    texts, labels = torch.unique(tokens, dim=0, return_inverse=True)
    images = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)
    captions = torch.nn.functional.normalize(model.encode_text(texts), dim=-1)
    logits = model.logit_scale.exp().clamp(max=100) * images @ captions.T
    return torch.nn.functional.cross_entropy(logits, labels)
