"""When two results of a merge count as the same."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from mlflow_breadcrumbs.engine import checkpoints, merging, recipe, tolerance

TSV = recipe.MergeRecipe(density=1, combine="tsv", exclude=("left.*",))


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(8, 20, generator=generator),
        "bias": torch.randn(20, generator=generator),
        "left.matrix": torch.randn(4, 4, generator=generator),
    }


def off(state, name, by):
    """A copy in which a tensor is off by a relative norm."""
    gap = torch.ones_like(state[name])
    return state | {name: state[name] + by * gap * (state[name].norm() / gap.norm())}


def found(one, other, settings=TSV, allowed=None):
    return tolerance.differences(one, other, settings, allowed or {"F32": 1e-6})


def test_nothing_differs():
    assert found(tensors(), tensors()) == ()


@pytest.mark.parametrize(
    ("name", "by", "within"),
    [
        ("matrix", 5e-7, True),
        ("matrix", 2e-6, False),
        ("bias", 5e-7, False),  # its bits are fixed
        ("left.matrix", 5e-7, False),  # it is the base's
    ],
)
def test_only_decomposed_matrices_may_differ(name, by, within):
    (difference,) = found(off(tensors(), name, by), tensors())
    assert (difference.tensor, difference.within) == (name, within)
    assert difference.relative == pytest.approx(by, rel=0.2)
    assert difference.elements <= difference.total == tensors()[name].numel()


def test_a_recipe_with_fixed_bits_allows_nothing():
    sum_of_all = dataclasses.replace(TSV, combine="sum")
    (difference,) = found(off(tensors(), "matrix", 1e-7), tensors(), sum_of_all)
    assert not difference.within
    signed = tensors() | {"matrix": torch.zeros(8, 20)}
    (difference,) = found(signed | {"matrix": -torch.zeros(8, 20)}, signed, sum_of_all)
    assert (difference.elements, difference.within) == (0, False)


def test_another_dtype_is_never_within():
    state = tensors()
    (difference,) = found(state | {"matrix": state["matrix"].double()}, state)
    assert (difference.relative, difference.within) == (0, False)
    (difference,) = found(
        off({"matrix": state["matrix"].half()}, "matrix", 1e-3),
        {"matrix": state["matrix"].half()},
    )
    assert not difference.within  # no tolerance was stated for float16


def test_missing_and_reshaped_tensors_are_never_within():
    state = tensors()
    other = {"matrix": state["matrix"][:4], "bias": state["bias"]}
    differences = found(state, other)
    assert [entry.tensor for entry in differences] == ["left.matrix", "matrix"]
    assert not any(entry.within for entry in differences)


def test_the_tolerance_is_of_the_output_dtype(tmp_path):
    base = {"matrix": torch.ones(3, 4), "half": torch.ones(3, 4).half(), "bias": torch.ones(2)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(base, tmp_path / "tuned.safetensors")
    files = [checkpoints.Checkpoint.open(tmp_path / f"{n}.safetensors") for n in ("base", "tuned")]

    def tolerances(**fields):
        settings = recipe.MergeRecipe(density=1, **fields)
        return tolerance.tolerances(merging.plan(files[0], files[1:], settings))

    assert tolerances() == {}
    assert tolerances(combine="tsv") == {"F32": 1e-6, "F16": 3.1e-5}
    assert tolerances(combine="iso", dtype="bfloat16") == {"BF16": 8.8e-5}
    assert tolerances(combine="iso", exclude=("half",)) == {"F32": 1e-6}
    assert tolerances(combine="iso", include=("bias",)) == {}
