"""Which backend computes a merge, by device and by name."""

import functools

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import backends, writing
from mlflow_breadcrumbs.support import devices, processes, progress

NAMES = ("auto", "reference", "cpu", "gpu")


class ChosenThere:
    """A backend that is chosen where it computes, which may be a machine with another device.

    Args:
        device: as for `choose`.
        asked: one of `NAMES`.
        threads: as for `choose`.
    """

    def __init__(
        self, device: str = "auto", asked: str = "auto", *, threads: int | None = None
    ) -> None:
        found = "gpu" if device.startswith("cuda") else "cpu"
        self.name = found if asked == "auto" else asked
        self._chosen = functools.partial(choose, device, asked, threads=threads)

    def run(
        self, job: backends.Job, writer: writing.Writer, advance: progress.Advance
    ) -> backends.Outcome:
        """See `backends.Backend.run`."""
        return self._chosen().run(job, writer, advance)


def choose(
    device: str = "auto", name: str = "auto", *, threads: int | None = None
) -> backends.Backend:
    """The backend for a device.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the CPU, even where there is a GPU: a
            merge is bound by how fast the checkpoints can be read.
        name: one of `NAMES`; `auto` is `gpu` where a CUDA device was asked for, otherwise `cpu`.
        threads: of the CPU backend; the number of processors when not given.

    Raises:
        DeviceError: the name is none of them, or the device or Triton is absent.
    """
    if name not in NAMES:
        raise errors.DeviceError(f"backend is {name!r}; it must be one of {', '.join(NAMES)}")
    if device != "auto":
        device = devices.choose_device(device)
    if name == "gpu" and device == "cpu":
        raise errors.DeviceError(
            "backend is 'gpu' and device is 'cpu'; the gpu backend needs --device cuda"
        )
    if name == "gpu" or (name == "auto" and device.startswith("cuda")):
        return _gpu(devices.choose_device("cuda" if device == "auto" else device))
    if name == "reference":
        from mlflow_breadcrumbs.engine.backends import reference

        return reference.Reference()
    from mlflow_breadcrumbs.engine.backends.cpu import cpu_backend

    return cpu_backend.Cpu(threads or processes.processors())


def _gpu(device: str) -> backends.Backend:
    try:
        from mlflow_breadcrumbs.engine.backends.gpu import gpu_backend
    except ImportError as error:
        raise errors.DeviceError(
            f"the gpu backend needs Triton, which can't be imported ({error}). It comes with "
            "torch's CUDA builds on Linux: install one of those, or use --backend cpu"
        ) from error
    return gpu_backend.Gpu(device)
