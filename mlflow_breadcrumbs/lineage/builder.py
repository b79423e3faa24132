"""What built a version: this package's code, the libraries, the machine, the user."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import mlflow_breadcrumbs
from mlflow_breadcrumbs.support import extras

LIBRARIES = ("mlflow", "torch", "open_clip_torch", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """The versions of this package and of the libraries that touch the numbers."""
    return {"mlflow_breadcrumbs": mlflow_breadcrumbs.__version__} | {
        name: importlib.metadata.version(name) for name in LIBRARIES
    }


def code() -> dict[str, Any]:
    """This package's code as an in-toto ResourceDescriptor.

    Its digest is the git commit, where it runs from a git checkout or was installed from one; its
    annotations have the package's version and, in a checkout, whether files differ from the commit.
    """
    descriptor: dict[str, Any] = {
        "name": "mlflow_breadcrumbs",
        "annotations": {"role": "code", "version": mlflow_breadcrumbs.__version__},
    }
    folder = Path(mlflow_breadcrumbs.__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    # A package inside another project's repository (a virtual environment, say) is not its code.
    if commit is not None and _git(folder, "ls-files", "--error-unmatch", __file__) is not None:
        dirty = bool(_git(folder, "status", "--porcelain", "--", str(folder)))
        descriptor["annotations"]["dirty"] = dirty
    else:
        commit = _installed_commit()
    if commit is not None:
        descriptor["digest"] = {"gitCommit": commit}
    else:
        descriptor["uri"] = f"pkg:pypi/mlflow-breadcrumbs@{mlflow_breadcrumbs.__version__}"
    return descriptor


def host(device: str) -> dict[str, Any]:
    """The class of this machine, without its name: processors, memory, accelerator, system.

    Args:
        device: the torch device that models ran on.
    """
    described: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "system": platform.system(),
        "release": platform.release(),
        "python": platform.python_version(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        described["memoryGiB"] = round(memory / 2**30)
    if device.startswith("cuda"):
        import torch  # only who has run a model there waits for it

        described["accelerator"] = torch.cuda.get_device_name(device)
    return described


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints about a folder; `None` where there is no git or it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _installed_commit() -> str | None:
    """The commit that pip installed this package from (PEP 610), if it was from git."""
    try:
        origin = importlib.metadata.distribution(extras.DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    commit: str | None = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
    return commit


def _processor() -> str:
    """The processor's model; the machine's architecture where the system doesn't say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
