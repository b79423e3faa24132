"""A disk that is full or read-only: under the temporary files, and under the artifacts."""

import subprocess
import tempfile

import mlflow
import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import runs


@pytest.fixture
def disk(tmp_path):
    """A real file system of one megabyte, less than the weights; its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def merge(zoo):
    settings = recipe.MergeRecipe.from_method("task_arithmetic", sources=2)
    return flow.merge(
        flow.MergeRequest(
            zoo.base, zoo.sources[:2], "merged", settings, device="cpu", backend="reference"
        )
    )


def refused(zoo, error, words):
    with pytest.raises(error, match=words):
        merge(zoo)
    client = mlflow.MlflowClient()
    assert not client.search_model_versions("name = 'merged'")
    kind = "tags.`breadcrumbs.kind` = 'merge'"
    assert not client.search_logged_models([runs.experiment_id()], filter_string=kind)
    failed = client.search_runs([runs.experiment_id()], kind)
    assert {run.info.status for run in failed} <= {"FAILED"}


def test_no_room_for_temporary_files(zoo, disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    words = r"cannot write .*disk/.*: No space left on device; it needs .* GB are free"
    refused(zoo, errors.CheckpointError, words)
    assert not list(disk.iterdir())
    remount(disk, "ro")
    words = r"cannot make a temporary folder: .*Read-only file system.* \(TMPDIR\), then"
    refused(zoo, errors.RegistryError, words)


def test_no_room_for_artifacts(zoo, disk):
    mlflow.create_experiment("full", artifact_location=str(disk))
    mlflow.set_experiment("full")
    words = "cannot log the merged model: .*No space left on device"
    refused(zoo, errors.RegistryError, words)
    remount(disk, "ro")
    refused(zoo, errors.RegistryError, "merge merged stopped: Read-only file system .*; make room")
    remount(disk, "rw,size=20m")
    assert merge(zoo).version.version == "1"
