"""Paths that stay in a folder."""

import os

from mlflow_breadcrumbs.support import confined


def test_what_is_inside_and_what_is_not(tmp_path):
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    for path in ("root/a", "root/deep/b", "secret", "beside/c", "rooted"):
        (tmp_path / path).write_text("")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "away").symlink_to(tmp_path / "beside")
    (root / "in").symlink_to(root / "deep/b")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")

    assert confined.inside(root, "a") == root / "a"
    assert confined.inside(root, "deep/../a") == root / "a"
    assert confined.inside(root, str(root / "deep/b")) == root / "deep/b"
    assert confined.inside(root, "in") == root / "deep/b"
    refused = ["../secret", str(tmp_path / "secret"), "out", "away/c", "loop", "pipe", "deep", "."]
    refused += ["nothing", "a\0", "x" * 5000, "", f"{root}ed", "~", "deep/../../secret", "a/b"]
    assert [each for each in refused if confined.inside(root, each)] == []
    assert confined.inside(tmp_path / "absent", "a") is None


def test_a_root_that_is_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert confined.inside(tmp_path / "link", "a") == tmp_path / "real/a"
