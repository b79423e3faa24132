"""Which device does the work, and how a lack of its memory shows."""

import re

import torch

from mlflow_breadcrumbs import errors

_CUDA = re.compile(r"cuda(:\d+)?")


def choose_device(device: str = "auto") -> str:
    """Choose the torch device: `auto` is the first CUDA device, or the CPU where there is none.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: The name is another one, or CUDA was asked for and is absent.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    if not _CUDA.fullmatch(device):
        raise errors.DeviceError(f"Unknown device '{device}': give auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise errors.DeviceError(
            f"Device '{device}' was asked for, but torch {torch.__version__} finds no CUDA device. "
            "Use '--device auto' or '--device cpu', or check `nvidia-smi` and torch's CUDA build."
        )
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise errors.DeviceError(
            f"Device '{device}' was asked for, but there are {count} CUDA devices, "
            f"cuda:0 to cuda:{count - 1}."
        )
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether torch raised this because an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def free_cache(device: str) -> None:
    """Give cached blocks back to the device, so that a smaller batch can have them."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
