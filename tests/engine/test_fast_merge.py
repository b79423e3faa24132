"""Every way to compute a merge gives the same bits: the reference, the CPU and the GPU backend."""

import gpu_device
import pytest
import torch
import zoos
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import merging, recipe
from mlflow_breadcrumbs.engine.backends import reference
from mlflow_breadcrumbs.engine.backends.cpu import cpu_backend, masking, reading, selection
from mlflow_breadcrumbs.engine.backends.gpu import gpu_backend, layout

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
        vectors=draw(st.sampled_from(["same", "mean"])),
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("merges")


def outcome(opened, made, output, backend, **options):
    """The result of a merge, or the words it stopped with."""
    options = {"max_norm_ratio": None, "overwrite": True, "verify": True} | options
    labels = [f"source {number}" for number in range(len(opened) - 1)]
    try:
        return merging.merge(
            opened[0], opened[1:], made, output, labels=labels, backend=backend, **options
        )
    except errors.MergeError as error:
        return str(error)


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


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(merges())
def test_the_cpu_gives_the_references_bits(folder, case):
    states, made, work = case
    opened = zoos.opened(states, folder)
    expected = outcome(opened, made, folder / "expected.safetensors", reference.Reference())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "BLOCK", work["block"])
        patch.setattr(masking, "LONG", work["long"])
        patch.setattr(selection, "SAMPLE", work["sample"])
        patch.setattr(cpu_backend, "LARGE", work["large"])
        patch.setattr(reading, "PART", work["part"])
        result = outcome(
            opened,
            made,
            folder / "result.safetensors",
            cpu_backend.Cpu(work["threads"]),
            max_shard_size=work["shard"],
        )
    assert_same(result, expected)


def check_gpu(folder, case):
    states, made, work = case
    opened = zoos.opened(states, folder)
    expected = outcome(opened, made, folder / "expected.safetensors", reference.Reference())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "TILE", work["tile"])
        patch.setattr(layout, "SHORT", work["short"])
        result = outcome(
            opened,
            made,
            folder / "result.safetensors",
            gpu_backend.Gpu(gpu_device.DEVICE, piece=work["piece"], memory=work["memory"]),
            max_shard_size=work["shard"],
        )
    assert_same(result, expected)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(merges())
def test_the_gpu_gives_the_references_bits(folder, case):
    check_gpu(folder, case)


@pytest.mark.slow
@settings(
    max_examples=28, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(merges())
def test_the_gpu_gives_the_references_bits_more_often(folder, case):
    check_gpu(folder, case)
