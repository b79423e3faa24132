"""Layer groups of real models' names."""

import pytest

from mlflow_breadcrumbs.engine import layer_groups


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("visual.transformer.resblocks.3.attn.in_proj_weight", "visual.transformer.resblocks.3"),
        ("visual.transformer.resblocks.10.ln_1.bias", "visual.transformer.resblocks.10"),
        ("visual.conv1.weight", "visual.conv1"),
        ("visual.class_embedding", "visual.class_embedding"),
        ("logit_scale", "logit_scale"),
        ("visual.layer1.0.conv1.weight", "visual.layer1.0"),
        ("encoder.layer.11.output.dense.weight", "encoder.layer.11"),
        ("0.weight", "0"),
    ],
)
def test_a_tensor_belongs_to_its_layer(name, expected):
    names = [
        "visual.transformer.resblocks.3.attn.in_proj_weight",
        "visual.transformer.resblocks.10.ln_1.bias",
        "visual.conv1.weight",
        "visual.class_embedding",
        "logit_scale",
        "visual.layer1.0.conv1.weight",
        "encoder.layer.11.output.dense.weight",
        "0.weight",
    ]
    assert layer_groups.group(names)[name] == expected


def test_layers_are_counted_as_people_do():
    names = [f"blocks.{number}.weight" for number in (10, 2, 1)]
    assert list(layer_groups.group(names).values()) == ["blocks.1", "blocks.2", "blocks.10"]


def test_depth_counts_from_the_first_block_to_the_last_of_its_stack():
    names = [
        *(f"visual.transformer.resblocks.{number}.ln_1.bias" for number in range(3)),
        *(f"transformer.resblocks.{number}.attn.in_proj_weight" for number in range(11)),
        *("visual.conv1.weight", "head.0.weight", "logit_scale"),
    ]
    found = layer_groups.depths(names)
    assert [found[name] for name in names[:3]] == [0, 0.5, 1]
    assert found["transformer.resblocks.1.attn.in_proj_weight"] == 0.1
    assert not {"visual.conv1.weight", "head.0.weight", "logit_scale"} & set(found)
