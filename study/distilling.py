"""A second base of half the depth, made from the first without labels.

It begins as every second block of the first and learns, on the tasks' training images, to give the
direction that the first gives (Hinton et al. 2015, arXiv 1503.02531, on features; the start is that
of DistilBERT, Sanh et al. 2019, arXiv 1910.01108). Heads read directions only.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import architecture, features, image_sets
from mlflow_breadcrumbs.sources import training

HOW = training.TrainingSettings(steps=700, batch_size=64, learning_rate=3e-4, precision="bfloat16")
BLOCK = re.compile(r"(visual\.transformer\.resblocks\.)(\d+)(\..+)")

_logger = logging.getLogger(__name__)


def halved(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tower without the first of every two blocks, so that the last one stays."""
    kept = {}
    for name, tensor in tensors.items():
        match = BLOCK.fullmatch(name)
        if match is None:
            kept[name] = tensor
        elif int(match[2]) % 2:
            kept[f"{match[1]}{int(match[2]) // 2}{match[3]}"] = tensor
    return kept


def distil(
    config_file: Path,
    checkpoint: Path,
    images: Sequence[image_sets.ImageSet],
    target: Path,
    how: training.TrainingSettings = HOW,
) -> float:
    """Make the shallow base, and write its checkpoint.

    Args:
        config_file: Of the shallow tower.
        checkpoint: Of the deep one, whose configuration is the same but for the layers.
        images: To learn from; labels are not looked at.
        target: The checkpoint.
        how: Steps, images per step, rate and precision.

    Returns:
        The mean cosine of both towers' outputs over the last tenth of the steps.
    """
    config = architecture.load_config(str(config_file))
    deep, shallow = _towers(config, load_file(checkpoint))
    preprocess = architecture.preprocess(config)
    generator = torch.Generator().manual_seed(how.seed)
    everything = [(own, index) for own in images for index in range(len(own))]
    steps, _ = how.schedule(len(everything))
    parameters = list(shallow.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=how.learning_rate, weight_decay=how.weight_decay)
    cosines = []
    with futures.ThreadPoolExecutor(2) as pool:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = how.rate(step, steps)
            chosen = torch.randint(len(everything), (how.batch_size,), generator=generator)
            some = [everything[number] for number in chosen.tolist()]
            pixels = torch.stack(list(pool.map(lambda each: preprocess(each[0][each[1]][0]), some)))
            cosines.append(_step(deep, shallow, pixels, optimizer, how))
            if step % 50 == 49:
                _logger.info("distilling, step %d of %d: cosine %.4f", step + 1, steps, cosines[-1])
    state = {f"visual.{name}": tensor for name, tensor in shallow.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, target)
    last = cosines[-max(1, steps // 10) :]
    return sum(last) / len(last)


def _towers(
    config: architecture.ModelConfig, tensors: Mapping[str, torch.Tensor]
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The deep tower and the shallow one as it begins."""
    content = json.loads(config.to_json())
    layers = 2 * content["model_cfg"]["vision_cfg"]["layers"]
    content["model_cfg"]["vision_cfg"]["layers"] = layers
    towers = []
    for own, state in (
        (architecture.parse_config(json.dumps(content), origin="the deep tower"), tensors),
        (config, halved(tensors)),
    ):
        model: Any = architecture.build(own)
        try:
            model.visual.load_state_dict({n.removeprefix("visual."): t for n, t in state.items()})
        except RuntimeError as error:
            raise errors.CheckpointError(f"The deep tower has not {layers} layers.") from error
        towers.append(model.visual)
    return towers[0].eval(), towers[1].train()


def _step(
    deep: torch.nn.Module,
    shallow: torch.nn.Module,
    pixels: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    how: training.TrainingSettings,
) -> float:
    """Take a step; gives the mean cosine before it."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=how.autocasts("cpu")):
        with features.inference(deep):
            wanted = deep(pixels).float()
        found = shallow(pixels).float()
    # Outside inference mode the wanted output is an ordinary constant.
    cosine = torch.nn.functional.cosine_similarity(found, wanted.clone(), dim=-1).mean()
    (1 - cosine).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(list(shallow.parameters()), how.clip)
    optimizer.step()
    return cosine.item()
