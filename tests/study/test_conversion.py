"""The pretrained tower's conversion, on a small graph with the same names."""

import dataclasses

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import architecture, image_sets
from mlflow_breadcrumbs.sources import training
from study import conversion, distilling

WIDTH, HEADS, LAYERS, PATCH = 8, 2, 2, 14


def graph(side=5, seed=0):
    """Tensors as `read_graph` gives them, of a tower with a position table of side × side."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    tensors = {
        "embeddings.cls_token": random(1, 1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": random(WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": random(WIDTH),
        conversion.CLASS_POSITION: random(1, 1, WIDTH),
        conversion.PATCH_POSITIONS: random(1, side * side, WIDTH),
        "layernorm.weight": random(WIDTH) + 1,
        "layernorm.bias": random(WIDTH),
    }
    shapes = {
        "attention.attention.query": (WIDTH, WIDTH),
        "attention.attention.key": (WIDTH, WIDTH),
        "attention.attention.value": (WIDTH, WIDTH),
        "attention.output.dense": (WIDTH, WIDTH),
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
        "norm1": (WIDTH,),
        "norm2": (WIDTH,),
    }
    for layer in range(LAYERS):
        own = f"encoder.layer.{layer}"
        for name, shape in shapes.items():
            tensors[f"{own}.{name}.weight"] = random(*shape)
            tensors[f"{own}.{name}.bias"] = random(shape[0])
        for number in (1, 2):
            tensors[f"{own}.layer_scale{number}.lambda1"] = random(WIDTH) + 1
    return tensors


def attend(own, tokens):
    """Attention as the graph computes it: query, key and value each by itself."""
    count = tokens.shape[1]

    def part(name):
        weight, bias = (own[f"attention.attention.{name}.{kind}"] for kind in ("weight", "bias"))
        return (tokens @ weight.T + bias).view(-1, count, HEADS, WIDTH // HEADS).transpose(1, 2)

    scores = part("query") @ part("key").transpose(2, 3) / (WIDTH // HEADS) ** 0.5
    mixed = (scores.softmax(-1) @ part("value")).transpose(1, 2).reshape(-1, count, WIDTH)
    return mixed @ own["attention.output.dense.weight"].T + own["attention.output.dense.bias"]


def forward(tensors, pixels):
    """The class token as the graph computes it, its table of the image's own size."""

    def norm(values, prefix, own):
        weight, bias = own[f"{prefix}.weight"], own[f"{prefix}.bias"]
        return nn.functional.layer_norm(values, (WIDTH,), weight, bias, eps=1e-6)

    patches = nn.functional.conv2d(
        pixels,
        tensors["embeddings.patch_embeddings.projection.weight"],
        tensors["embeddings.patch_embeddings.projection.bias"],
        stride=PATCH,
    )
    first = tensors["embeddings.cls_token"].expand(len(pixels), 1, WIDTH)
    tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], 1)
    tokens = tokens + torch.cat(
        [tensors[conversion.CLASS_POSITION], tensors[conversion.PATCH_POSITIONS]], 1
    )
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        tokens = tokens + own["layer_scale1.lambda1"] * attend(own, norm(tokens, "norm1", own))
        hidden = norm(tokens, "norm2", own) @ own["mlp.fc1.weight"].T + own["mlp.fc1.bias"]
        hidden = nn.functional.gelu(hidden) @ own["mlp.fc2.weight"].T + own["mlp.fc2.bias"]
        tokens = tokens + own["layer_scale2.lambda1"] * hidden
    return norm(tokens, "layernorm", tensors)[:, 0]


def test_the_converted_tower_computes_what_the_graph_does(tmp_path):
    tensors, size = graph(side=3), 3 * PATCH
    path = tmp_path / "vit.json"
    conversion.write_config(path, size)
    text = path.read_text().replace('"embed_dim": 384', f'"embed_dim": {WIDTH}')
    text = text.replace('"width": 384', f'"width": {WIDTH}').replace(
        '"layers": 12', f'"layers": {LAYERS}'
    )
    path.write_text(text.replace('"head_width": 64', f'"head_width": {WIDTH // HEADS}'))
    model = architecture.build(architecture.load_config(str(path))).eval()
    converted = conversion.convert(tensors, size)
    visual = {name.removeprefix("visual."): tensor for name, tensor in converted.items()}
    model.visual.load_state_dict(visual)
    pixels = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        # float32 sums in another order
        torch.testing.assert_close(model.visual(pixels), forward(tensors, pixels))


@pytest.fixture
def deep(tmp_path):
    """A converted tower of two layers, and the configuration of one of half the depth."""
    path = tmp_path / "vit.json"
    conversion.write_config(path, 3 * PATCH, layers=1)
    text = path.read_text().replace("384", str(WIDTH))
    path.write_text(text.replace('"head_width": 64', f'"head_width": {WIDTH // HEADS}'))
    tensors = conversion.convert(graph(side=3), 3 * PATCH)
    conversion.write(tmp_path / "deep.safetensors", tensors)
    return path, tmp_path / "deep.safetensors"


def test_a_shallow_base_comes_nearer_to_the_deep_one(deep, tmp_path):
    config, checkpoint = deep
    images = [
        image_sets.from_arrays(colour, ["any"], tiny.pixels(colour, 12), [0] * 12)
        for colour in tiny.COLOURS
    ]
    target = tmp_path / "shallow.safetensors"
    how = training.TrainingSettings(steps=1, batch_size=8, learning_rate=1e-3, precision="float32")
    before = distilling.distil(config, checkpoint, images, target, how)
    after = distilling.distil(
        config, checkpoint, images, target, dataclasses.replace(how, steps=120)
    )
    assert before < after
    model = architecture.build(architecture.load_config(str(config)))
    state = load_file(target)
    model.visual.load_state_dict({n.removeprefix("visual."): t for n, t in state.items()})


def test_every_second_block_is_kept_the_last_among_them():
    names = [f"visual.transformer.resblocks.{layer}.ln_1.weight" for layer in range(4)]
    tensors = {name: torch.full((1,), float(n)) for n, name in enumerate(names)}
    kept = distilling.halved({**tensors, "visual.proj": torch.zeros(1)})
    assert {name: tensor.item() for name, tensor in kept.items()} == {
        names[0]: 1.0,
        names[1]: 3.0,
        "visual.proj": 0.0,
    }


def test_a_deep_base_of_another_depth_is_refused(deep, tmp_path):
    config, checkpoint = deep
    config.write_text(config.read_text().replace('"layers": 1', '"layers": 3'))
    with pytest.raises(errors.CheckpointError, match="has not 6 layers"):
        distilling.distil(config, checkpoint, [], tmp_path / "none.safetensors")


def test_a_position_table_is_resampled_as_a_picture():
    table = torch.arange(16.0)[:, None].repeat(1, 3)  # 4 × 4, growing down and to the right
    assert conversion.resample(table, 4) is table
    smaller = conversion.resample(table, 2)
    assert smaller.shape == (4, 3)
    square = smaller[:, 0].view(2, 2)
    # A plane stays one: the same step from row to row and from column to column.
    torch.testing.assert_close(square[1, 0] - square[0, 0], square[1, 1] - square[0, 1])
    torch.testing.assert_close(square.mean(), table.mean())
    even = conversion.resample(torch.full((9, 2), 0.25), 5)
    torch.testing.assert_close(even, torch.full((25, 2), 0.25))
    with pytest.raises(errors.CheckpointError, match="5 rows, no square"):
        conversion.resample(torch.zeros(5, 3), 2)


def test_the_bias_of_the_patches_goes_into_their_positions_and_not_into_the_class_token():
    tensors = graph(side=3)
    bias = tensors["embeddings.patch_embeddings.projection.bias"]
    positions = conversion.convert(tensors, 3 * PATCH)["visual.positional_embedding"]
    torch.testing.assert_close(positions[0], tensors[conversion.CLASS_POSITION][0, 0])
    torch.testing.assert_close(positions[1:], tensors[conversion.PATCH_POSITIONS][0] + bias)
