"""The choice of the device."""

import pytest
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import devices


def test_auto_takes_what_there_is():
    assert devices.choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert devices.choose_device("cpu") == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_asked_for_and_absent(name):
    with pytest.raises(
        errors.DeviceError,
        match=rf"Device '{name}' was asked for, but torch .* finds no CUDA device. Use '--device a",
    ):
        devices.choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "mps"])
def test_unknown_devices(name):
    with pytest.raises(errors.DeviceError, match="give auto, cpu, cuda or cuda:N"):
        devices.choose_device(name)


def test_the_cpus_allocation_failure_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**60, dtype=torch.uint8)
    assert devices.is_out_of_memory(failed.value)
    assert devices.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not devices.is_out_of_memory(other.value)
