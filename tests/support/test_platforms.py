"""Systems that lack what Linux has: every module is imported, and files are read and written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, writing
from mlflow_breadcrumbs.support import descriptors

IMPORT_ALL = """
import builtins, importlib, os, pkgutil, sys

HIDDEN = ("fcntl", "resource", "pwd", "grp", "termios")
for name in ("posix_fallocate", "sched_getaffinity", "preadv", "pread", "pwrite"):
    delattr(os, name)
import_before = builtins.__import__


def import_as_on_windows(name, globals=None, *rest, **named):
    # Other packages have ways of their own for Windows, which they look up by the system's name.
    if name in HIDDEN and (globals or {}).get("__name__", "").startswith("mlflow_breadcrumbs"):
        raise ModuleNotFoundError(name)
    return import_before(name, globals, *rest, **named)


builtins.__import__ = import_as_on_windows
import mlflow_breadcrumbs

for found in pkgutil.walk_packages(mlflow_breadcrumbs.__path__, "mlflow_breadcrumbs."):
    if found.name.endswith(".__main__"):
        continue
    try:
        importlib.import_module(found.name)
    except ModuleNotFoundError as error:
        assert error.name == "triton", (found.name, error)  # is on Linux alone
print("imported", len([name for name in sys.modules if name.startswith("mlflow_breadcrumbs")]))
"""


def test_every_module_is_imported_without_what_unix_has():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 100


@pytest.fixture(params=["macos", "windows"])
def system(request, monkeypatch):
    """This system, without the calls that another one lacks."""
    missing = {"macos": ("posix_fallocate", "preadv")}
    missing["windows"] = (*missing["macos"], "pread", "pwrite")
    for name in missing[request.param]:
        monkeypatch.delattr(os, name)


def test_a_checkpoint_is_written_and_read(system, tmp_path):
    tensor = torch.arange(1023, dtype=torch.float32)
    infos = {"x": checkpoints.TensorInfo(torch.float32, (1023,))}
    with writing.CheckpointWriter(tmp_path / "x.safetensors", infos) as writer:
        writer.write("x", tensor)
    with checkpoints.Checkpoint.open(tmp_path / "x.safetensors") as opened:
        assert torch.equal(opened.tensor("x"), tensor)
    descriptor = descriptors.open_to_read(tmp_path / "x.safetensors")
    out = bytearray(8)
    assert descriptors.read_into(descriptor, memoryview(out), 0) == 8
    os.close(descriptor)
    assert out == (tmp_path / "x.safetensors").read_bytes()[:8]


def test_a_full_disk_is_found_before_any_work(system, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    infos = {"x": checkpoints.TensorInfo(torch.float32, (1023,))}
    with (
        pytest.raises(errors.CheckpointError, match=r"No space left.*0.00 GB are free"),
        writing.CheckpointWriter(tmp_path / "x.safetensors", infos),
    ):
        pass
    assert not list(Path(tmp_path).iterdir())
