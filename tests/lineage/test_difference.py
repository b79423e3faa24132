"""Two versions side by side."""

import math

import pytest
import torch
from safetensors.torch import save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.lineage import difference
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import versions


def merge(zoo, sources, alpha):
    return flow.merge(
        flow.MergeRequest(
            base=zoo.base,
            sources=sources,
            registered_model="merged",
            recipe=recipe.MergeRecipe.from_method("breadcrumbs", sources=len(sources), alpha=alpha),
            tasks=zoo.tasks,
            device="cpu",
        )
    ).version.uri


def test_two_merges_differ_in_sources_recipe_metrics_and_weights(zoo):
    one, other = merge(zoo, zoo.sources[:2], 0.3), merge(zoo, zoo.sources[1:], 1.0)
    found = difference.diff(one, other)
    assert found.uris == (one, other)
    assert [(row["role"], row["uri"], row["one"], row["other"]) for row in found.sources] == [
        ("base", zoo.base, 1.0, 1.0),
        ("source", zoo.sources[0], 1.0, None),
        ("source", zoo.sources[1], 1.0, 1.0),
        ("source", zoo.sources[2], None, 1.0),
    ]
    assert found.recipe == ({"field": "alpha", "one": 0.3, "other": 1},)
    metrics = {row["metric"]: row for row in found.metrics}
    assert {name.partition("/")[2] for name in metrics if "accuracy/" in name} == {"tints"}
    assert metrics["average_accuracy"]["one"] == metrics["accuracy/tints"]["one"]
    assert not any("second" in name for name in metrics)
    shared = metrics["accuracy/tints"]
    assert shared["change"] == shared["other"] - shared["one"]
    groups = {entry.group: entry for entry in found.groups}
    block = groups["visual.transformer.resblocks.0"]
    assert block.different == block.tensors > 1
    assert 0 < block.relative < 1
    text = groups["transformer.resblocks.0"]
    assert (text.different, text.distance, text.relative, text.largest) == (0, 0, 0, 0)
    assert found.only == ((), ())
    assert difference.diff(one, one).groups[0].distance == 0


def opened(path, tensors):
    save_file(tensors, path)
    return versions.OpenedVersion(None, (path.name,), "breadcrumbs", path.parent, {})


def test_the_distance_is_the_norm_of_the_difference_per_group(tmp_path):
    one = {"b.10.w": torch.tensor([3.0, 4.0]), "b.2.w": torch.ones(2), "x": torch.zeros(2)}
    other = {"b.10.w": torch.tensor([3.0, 7.0]), "b.2.w": torch.ones(2), "x": torch.ones(2)}
    one |= {"b.10.v": torch.zeros(2), "shape": torch.ones(2), "left": torch.ones(1)}
    other |= {"b.10.v": torch.full((2,), 4.0), "shape": torch.ones(3)}
    groups, only = difference.distances(
        opened(tmp_path / "one.safetensors", one), opened(tmp_path / "other.safetensors", other)
    )
    assert [group.group for group in groups] == ["b.2", "b.10", "x"]
    equal, ten, zero = groups
    assert (equal.different, equal.distance) == (0, 0)
    assert ten.distance == pytest.approx(math.sqrt(9 + 32))
    assert ten.relative == pytest.approx(math.sqrt(41) / 5)
    assert (ten.tensors, ten.different, ten.largest) == (2, 2, 4.0)
    assert (zero.relative, zero.largest) == (None, 1.0)
    assert only == (("left", "shape"), ("shape",))


def test_an_unknown_version_is_an_error(zoo):
    with pytest.raises(errors.RegistryError, match="cannot resolve models:/none/1"):
        difference.diff(zoo.base, "models:/none/1")
