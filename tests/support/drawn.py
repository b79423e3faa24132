"""Merges drawn at random, hard in many ways, and what makes two results of one the same."""

import pytest
import torch
from hypothesis import strategies as st

from mlflow_breadcrumbs.engine import recipe

SHAPES = [(), (0,), (3, 0), (1,), (2, 3), (1023,), (7, 149), (13, 1), (5, 64), (3, 2, 200), (4099,)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
PATTERNS = ["normal", "ties", "zeros", "denormal", "same", "coarse"]


def numbers(shape, pattern, generator):
    """Random float32 of a shape that is hard in one way."""
    values = torch.randn(shape, generator=generator)
    if pattern == "ties":
        return values.sign() * torch.randint(0, 3, shape, generator=generator)
    if pattern == "zeros":
        return torch.zeros(shape)
    if pattern == "denormal":
        return values * 1e-39
    if pattern == "same":
        return values.sign() * 0.5
    if pattern == "coarse":
        return (values * 8).round() / 64
    return values


@st.composite
def merges(draw):
    """States of a base and its sources, a recipe, and how the work is cut up."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    sources = draw(st.integers(1, 4))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    states = [{} for _ in range(sources + 1)]
    for number, shape in enumerate(shapes):
        name = f"layer.{number}"
        if draw(st.integers(0, 9)) == 0:
            same = torch.randint(-9, 9, shape, generator=generator)
            for state in states:
                state[name] = same.clone()
            continue
        pattern = draw(st.sampled_from(PATTERNS))
        base = numbers(shape, draw(st.sampled_from(PATTERNS)), generator)
        states[0][name] = base.to(draw(st.sampled_from(FLOATS)))
        for state in states[1:]:
            dtype = draw(st.sampled_from([*FLOATS, states[0][name].dtype]))
            state[name] = (states[0][name].double() + numbers(shape, pattern, generator)).to(dtype)
    if not any(tensor.is_floating_point() for tensor in states[0].values()):
        states = [state | {"last": torch.ones(3)} for state in states]
    density = draw(st.sampled_from([0.14, 0.2, 0.29, 0.5, 0.003, 1.0]))
    made = recipe.MergeRecipe(
        density=density,
        gamma=draw(st.sampled_from([0.0, 0.01, 0.1, 0.5])) if density <= 0.5 else 0.0,
        alpha=draw(st.sampled_from([0.3, -0.7, 0.0, 1.0])),
        weights=draw(
            st.sampled_from([(), tuple([0.7, -0.4, 0.0, 2.5][:sources]), (1 / 3,) * sources])
        ),
        unit=draw(st.sampled_from(["tensor", "row", "model"])),
        consensus=draw(st.sampled_from(["none", "mass"])),
        combine=draw(st.sampled_from(["sum", "mean"])),
        vectors=draw(st.sampled_from(["same", "mean", "whole_mean"])),
        dtype=draw(st.sampled_from(["base", "base", "float32", "bfloat16", "float64"])),
    )
    work = {
        "threads": draw(st.integers(1, 4)),
        "block": draw(st.sampled_from([1, 100, 2048, 1 << 18])),
        "sample": draw(st.sampled_from([8, 1 << 14])),
        "long": draw(st.sampled_from([1, 100, 1 << 16])),
        "large": draw(st.sampled_from([1, 1 << 22])),
        "part": draw(st.sampled_from([64, 1000, 1 << 22])),
        "shard": draw(st.sampled_from([None, None, 5000])),
        "tile": draw(st.sampled_from([1024, 4096])),
        "short": draw(st.sampled_from([1, 100, 8192])),
        "piece": draw(st.sampled_from([1, 50_000, 1 << 27])),
        "memory": draw(st.sampled_from([3, 100_000, 1 << 30])),
    }
    return states, made, work


def assert_same(result, expected):
    if isinstance(expected, str):
        assert result == expected
        return
    assert result.weights_digest == expected.weights_digest
    assert result.base_digest == expected.base_digest
    assert result.source_digests == expected.source_digests
    assert result.touched == pytest.approx(expected.touched)
    for ours, theirs in zip(result.statistics, expected.statistics, strict=True):
        assert (ours.tensor, ours.source, ours.elements, ours.kept) == (
            theirs.tensor,
            theirs.source,
            theirs.elements,
            theirs.kept,
        )
        assert ours.smallest_kept == theirs.smallest_kept
        assert ours.largest_kept == theirs.largest_kept
        # Sums of the same float64 squares in another order.
        assert ours.energy == pytest.approx(theirs.energy, rel=1e-9)
        assert ours.energy_kept == pytest.approx(theirs.energy_kept, rel=1e-9)
