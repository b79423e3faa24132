"""The bench gives the numbers that `scoring.accuracy` gives, from files and from memory."""

import pytest
import tiny
import torch
from safetensors.torch import load_file

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.evaluation import bench, scoring
from mlflow_breadcrumbs.models import architecture, task_heads


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    config = tiny.config(folder)
    generator = torch.Generator().manual_seed(0)
    head = task_heads.Head(
        "colours", tuple(tiny.COLOURS), ("{}",), "file", torch.randn(3, 12, generator=generator)
    )
    weights = folder / "weights.safetensors"
    flavor.write_weights(tiny.model(config, seed=3).state_dict(), weights)
    return config, {"colours": tiny.image_set(8)}, {"colours": head}, weights


def reference(setting, limit=None):
    config, sets, owned, weights = setting
    model = architecture.build(config)
    flavor.load_weights(model, weights)
    return scoring.accuracy(
        model,
        owned["colours"],
        sets["colours"].subset(limit),
        architecture.preprocess(config),
        batch_size=5,
    )


@pytest.mark.parametrize("memory", [bench.MEMORY, 7 * 3 * 16 * 16 * 4, 0])
@pytest.mark.parametrize("limit", [None, 10])
def test_accuracies_are_those_of_the_evaluation(setting, memory, limit):
    config, sets, owned, weights = setting
    made = bench.Bench(config, sets, owned, batch_size=5, memory=memory)
    expected = reference(setting, limit)
    assert made.accuracies(weights, limit=limit) == {"colours": expected}
    assert made.accuracies(load_file(weights), ["colours"], limit) == {"colours": expected}


def test_other_weights_give_other_numbers(setting):
    config, sets, owned, _ = setting
    made = bench.Bench(config, sets, owned)
    found = {
        made.accuracies(tiny.model(config, seed=seed).state_dict())["colours"].correct
        for seed in range(6)
    }
    assert len(found) > 1


def test_a_head_of_other_classes_is_refused(setting):
    config, sets, owned, _ = setting
    other = task_heads.Head("colours", ("a", "b", "c"), ("{}",), "file", owned["colours"].weight)
    with pytest.raises(errors.TaskError, match="the classes of the head and of the images differ"):
        bench.Bench(config, sets, {"colours": other})
