"""Weights are not written twice without need, and never shared with who may change them."""

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import mlflow
import pytest
import tiny

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.engine import checkpoints, recipe
from mlflow_breadcrumbs.pipeline import flow, recording
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.sources import importing
from mlflow_breadcrumbs.support import copies

FILE = flavor.WEIGHTS_FILE


@pytest.fixture
def weights(tmp_path):
    """A checkpoint that a user has."""
    path = tmp_path / "weights.safetensors"
    flavor.write_weights(tiny.model(tiny.config(tmp_path)).state_dict(), path)
    return path


@pytest.fixture
def mounted(tmp_path):
    """A real file system: `mounted("xfs")` with shared extents, `mounted("tmpfs")` without."""
    folders = []

    def mount(kind):
        folder = tmp_path / kind
        folder.mkdir()
        command = ["mount", "-t", kind, "-o", "size=64m", kind, str(folder)]
        if kind == "xfs":
            image = tmp_path / "image"
            image.touch()
            os.truncate(image, 2**29)
            if shutil.which("mkfs.xfs") is None:
                pytest.skip("no XFS can be made here")
            subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
            command = ["mount", "-o", "loop", str(image), str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def stored(uri):
    """The weights of a version in the store."""
    return Path(versions.resolve(uri).location.removeprefix("file://")) / FILE


def log(tmp_path, weights, **options):
    """Log a model with ready weights; the store's file of them."""
    with mlflow.start_run():
        info = flavor.log_model(
            "model", config=tiny.config(tmp_path), weights=weights, pip_requirements=[], **options
        )
    folder = Path(info.artifact_path.removeprefix("file://"))
    assert {"MLmodel", "open_clip_config.json", "requirements.txt", FILE} <= set(os.listdir(folder))
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    recorded = info.flavors["breadcrumbs"]["weights_digest"]
    assert recorded == checkpoints.weights_digest(folder / FILE)
    return folder / FILE


def change(path):
    """Flip a bit of the last byte, in place."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def is_shared(path):
    """Whether other files share the bytes of this one."""
    os.sync()
    told = subprocess.run(["filefrag", "-v", str(path)], capture_output=True, text=True, check=True)
    return "shared" in told.stdout


def merge(zoo):
    settings = recipe.MergeRecipe.from_method("task_arithmetic", sources=2)
    return flow.merge(
        flow.MergeRequest(
            zoo.base, zoo.sources[:2], "merged", settings, device="cpu", backend="reference"
        )
    )


def test_a_merge_writes_its_weights_once(zoo, monkeypatch):
    seen = []
    log_masks = recording.log_masks

    def watched(run_id, taken, merged):
        seen.append(merged.output.stat())
        log_masks(run_id, taken, merged)

    monkeypatch.setattr(recording, "log_masks", watched)
    version = merge(zoo).version
    found = stored(version.uri)
    assert (found.stat().st_dev, found.stat().st_ino) == (seen[0].st_dev, seen[0].st_ino)
    assert found.stat().st_nlink == 1, "the workspace is gone, and its name of the file with it"
    assert found.stat().st_mode == seen[0].st_mode
    assert checkpoints.weights_digest(found) == version.weights_digest
    assert found.stat().st_size < mlflow.models.Model.load(str(found.parent)).model_size_bytes


def test_a_merge_into_a_store_on_another_file_system(zoo, mounted, monkeypatch):
    near = merge(zoo).version.weights_digest
    monkeypatch.setattr(tempfile, "tempdir", str(mounted("tmpfs")))
    mlflow.MlflowClient().delete_registered_model("merged")
    version = merge(zoo).version
    assert version.weights_digest == near
    assert checkpoints.weights_digest(stored(version.uri)) == near


def test_weights_that_are_given_up_become_the_stores(store, tmp_path, weights):
    number, content = weights.stat().st_ino, weights.read_bytes()
    found = log(tmp_path, weights, keep_weights=False)
    assert found.stat().st_ino == number
    assert found.read_bytes() == content


def test_weights_that_the_caller_keeps_are_copied(store, tmp_path, weights):
    content = weights.read_bytes()
    found = log(tmp_path, weights)
    assert found.stat().st_ino != weights.stat().st_ino
    change(weights)
    assert found.read_bytes() == content


@pytest.mark.parametrize("where", ["beside the store", "xfs", "tmpfs"])
def test_an_imported_checkpoint_can_be_changed_later(store, mounted, monkeypatch, weights, where):
    if where != "beside the store":
        folder = mounted(where)
        (folder / "tmp").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        mlflow.create_experiment(where, artifact_location=str(folder / "artifacts"))
        mlflow.set_experiment(where)
        weights = Path(shutil.copy(weights, folder))
    version = importing.import_checkpoint(
        str(weights),
        architecture_name=tiny.config_file(store_folder(store)),
        registered_model="imported",
        device="cpu",
    )
    found = stored(version.uri)
    assert found.stat().st_ino != weights.stat().st_ino
    if where == "xfs":
        assert is_shared(found)
    change(weights)
    assert checkpoints.weights_digest(found) == version.weights_digest
    assert checkpoints.weights_digest(weights) != version.weights_digest


def store_folder(store):
    return Path(store.removeprefix("sqlite:///")).parent


def test_a_saved_folder_does_not_change_with_the_checkpoint(tmp_path, weights):
    content = weights.read_bytes()
    flavor.save_model(tmp_path / "saved", config=tiny.config(tmp_path), weights=weights)
    change(weights)
    assert (tmp_path / "saved" / FILE).read_bytes() == content


def test_a_folder_that_hands_its_group_down_gets_a_file_of_that_group(store, tmp_path, weights):
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can give a folder to any group")
    folder = tmp_path / "group"
    folder.mkdir()
    os.chown(folder, -1, 4242)
    folder.chmod(0o2775)
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("g", str(folder)))
    found = log(tmp_path, weights, keep_weights=False)
    assert found.stat().st_gid == 4242
    assert found.parent.stat().st_mode & stat.S_ISGID


def test_an_example_is_tried_with_the_weights_in_their_place(store, tmp_path, weights, caplog):
    import pandas as pd

    example = pd.DataFrame({"image": ["red.png"]})
    log(tmp_path, weights, keep_weights=False, input_example=example)
    assert not [
        each for each in caplog.records if "cannot read the checkpoint" in each.getMessage()
    ]


def test_a_version_whose_bytes_changed_in_the_store_is_found(zoo):
    version = merge(zoo).version
    change(stored(version.uri))
    settings = recipe.MergeRecipe.from_method("task_arithmetic", sources=1)
    again = flow.MergeRequest(zoo.base, (version.uri,), "twice", settings, device="cpu")
    with pytest.raises(errors.IntegrityError, match="they were changed"):
        flow.merge(again)


def test_clones_share_until_one_is_written_to(mounted, weights):
    folder = mounted("xfs")
    original = Path(shutil.copy(weights, folder))
    content = original.read_bytes()
    assert copies.clone(original, folder / "clone")
    assert is_shared(folder / "clone")
    change(original)
    assert (folder / "clone").read_bytes() == content
    assert not copies.clone(original, folder / "clone"), "what is there stays"
    assert (folder / "clone").read_bytes() == content


def test_no_clones_between_file_systems(mounted, tmp_path, weights):
    other = mounted("tmpfs") / "clone"
    assert not copies.clone(weights, other)
    assert not copies.move(weights, other)
    assert weights.exists()
    assert not other.exists()
    copies.copy(weights, other)
    assert other.read_bytes() == weights.read_bytes()
