"""Temporary folders: made, left by killed processes, and swept by others at the same time."""

import os
import tempfile
from pathlib import Path

import pytest

from mlflow_breadcrumbs.support import scratch


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_there_while_it_is_used(place):
    with scratch.folder() as folder:
        scratch.sweep()
        assert folder.is_dir()
    assert not list(place.iterdir())


def test_what_nobody_locks_is_swept(place):
    (place / f"{scratch.PREFIX}left").mkdir()
    (place / f"{scratch.PREFIX}left" / "weights").write_bytes(b"x")
    (place / "of another program").mkdir()
    scratch.sweep()
    assert [path.name for path in place.iterdir()] == ["of another program"]


@pytest.mark.skipif(os.name == "nt", reason="the maker could not have locked it there")
def test_a_folder_that_is_locked_while_another_process_removes_it_stays(place, monkeypatch):
    """Its maker had not locked it yet when the sweep did, and does when the old lock is gone."""
    made = place / f"{scratch.PREFIX}new"
    made.mkdir()
    remove = scratch.shutil.rmtree
    taken = []

    def interrupted(path, **options):
        if not taken:
            (Path(path) / scratch.LOCK).unlink()
            taken.append(scratch._lock(made))
            (made / "policy.yaml").write_text("approvals: 1\n")
            return  # the folder isn't empty, so it can't be removed
        remove(path, **options)

    monkeypatch.setattr(scratch.shutil, "rmtree", interrupted)
    scratch.sweep()
    assert (made / "policy.yaml").exists()
    scratch.sweep()
    assert (made / "policy.yaml").exists()
    taken[0].release()
