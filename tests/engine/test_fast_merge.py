"""Every way to compute a merge gives the same bits: the reference, the CPU and the GPU backend."""

import drawn
import gpu_device
import pytest
import zoos
from hypothesis import HealthCheck, given, settings

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import merging
from mlflow_breadcrumbs.engine.backends import reference
from mlflow_breadcrumbs.engine.backends.cpu import cpu_backend, masking, reading, selection
from mlflow_breadcrumbs.engine.backends.gpu import gpu_backend, layout


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


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn.merges())
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
    drawn.assert_same(result, expected)


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
    drawn.assert_same(result, expected)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn.merges())
def test_the_gpu_gives_the_references_bits(folder, case):
    check_gpu(folder, case)


@pytest.mark.slow
@settings(
    max_examples=28, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn.merges())
def test_the_gpu_gives_the_references_bits_more_often(folder, case):
    check_gpu(folder, case)
