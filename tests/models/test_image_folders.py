"""Folders of images: what is taken, what is skipped and counted, what is refused."""

import os

import pytest
import tiny
from PIL import Image

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import image_folders, readers, tasks


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def read(root):
    pool = readers.read_folders({"all": root})["all"]
    return [(pool.names[each.label], each.origin[len(f"{root}/") :]) for each in pool.examples]


def test_what_other_programs_leave_is_counted_and_no_image(tmp_path, caplog):
    touch(
        tmp_path,
        "cat/1.png",
        "cat/deep/2.JFIF",
        "cat/3.avif",
        "cat/.ipynb_checkpoints/1-checkpoint.png",
        "cat/@eaDir/1.png/SYNOPHOTO_THUMB.jpg",
        "cat/._1.png",
        "cat/Thumbs.db",
        "cat/notes.txt",
        "cat/more.txt",
        "cat/README",
        "dog/1.png",
        "__MACOSX/cat/._1.png",
        ".ipynb_checkpoints/x.png",
        "labels.csv",
    )
    (tmp_path / "cat/folder.png").mkdir()
    os.mkfifo(tmp_path / "cat/pipe.png")
    assert read(tmp_path) == [
        ("cat", "cat/1.png"),
        ("cat", "cat/3.avif"),
        ("cat", "cat/deep/2.JFIF"),
        ("dog", "dog/1.png"),
    ]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        f"'{tmp_path}': 4 images in 2 classes. Files that were skipped: "
        "1 beside the class folders, 2 hidden or another program's, 2 in '.ipynb_checkpoints', "
        "1 in '@eaDir', 1 in '__MACOSX', 2 of the kind '.txt', 1 that are no plain files, "
        "1 without a suffix."
    )


def test_a_clean_tree_says_nothing(tmp_path, caplog):
    readers.read_folders({"all": tiny.image_tree(tmp_path, 1)})
    assert caplog.records == []


@pytest.mark.parametrize("suffix", ["jfif", "avif", "JPG", "webp", "tif", "jp2"])
def test_images_by_any_of_their_names(tmp_path, suffix):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        kind = {"jfif": "jpeg", "JPG": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}.get(suffix, suffix)
        Image.new("RGB", (8, 8)).save(tmp_path / name / f"1.{suffix}", format=kind)
    pool = readers.read_folders({"all": tmp_path})["all"]
    assert [each.image().size for each in pool.examples] == [(8, 8)] * 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_not_skipped(tmp_path):
    touch(tmp_path, "cat/1.png", "cat/locked/2.png")
    (tmp_path / "cat/locked").chmod(0)
    with pytest.raises(errors.TaskError, match=r"can't be read: .*locked"):
        readers.read_folders({"all": tmp_path})


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Train", "Test"), ("training", "testing")]
)
def test_splits_by_their_names(tmp_path, train, test):
    touch(tmp_path, f"{train}/cat/1.png", f"{test}/cat/1.png", "readme.txt", "__MACOSX/x.png")
    found = image_folders.splits(tmp_path)
    assert found == {"train": tmp_path / train, "test": tmp_path / test}


def test_a_task_reads_them(tmp_path):
    for split, count in (("Training", 10), ("TEST", 2)):
        tiny.image_tree(tmp_path / "images" / split, count)
    (tmp_path / "tasks.yaml").write_text("tasks: [{name: t, images: {folder: images}}]")
    (task,) = tasks.load_tasks(tmp_path / "tasks.yaml")
    assert task.classes == ("blue", "green", "red")
    assert [len(task.images(split)) for split in tasks.SPLITS] == [27, 3, 6]


@pytest.mark.parametrize(
    "paths",
    [
        ["cat/1.png", "dog/1.png"],
        ["car/1.png", "train/1.png"],  # vehicles
        ["car/red/1.png", "train/1.png"],
        ["train/notes.txt", "cat/1.png", "dog/1.png"],
    ],
)
def test_classes(tmp_path, paths):
    assert image_folders.splits(touch(tmp_path, *paths)) == {"all": tmp_path}


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (
            ["train/cat/1.png", "test/cat/1.png", "cat/1.png"],
            "'test', 'train' as splits, or as classes; the others are 'cat'. If they are splits, "
            "write 'folder: {test: ROOT/test, train: ROOT/train}' and have a folder per class in",
        ),
        (["train/1.png", "test/1.png"], "'test', 'train' holds images without folders of classes"),
        (["Train/1.png", "Test/1.png"], "'Test', 'Train' holds images without folders of classes"),
        (["train/cat/1.png", "test/1.png"], "or as classes; 'test' holds images without folders"),
    ],
)
def test_two_readings(tmp_path, paths, words):
    touch(tmp_path, *paths)
    with pytest.raises(errors.TaskError) as caught:
        image_folders.splits(tmp_path)
    said = str(caught.value).replace(str(tmp_path), "ROOT")
    assert said.startswith("'ROOT' can be read in two ways: ")
    assert words in said
    assert said.endswith("if they are classes, give them names that no split has.")


def test_a_split_under_two_names(tmp_path):
    touch(tmp_path, "train/cat/1.png", "Training/cat/1.png", "test/cat/1.png")
    with pytest.raises(errors.TaskError) as caught:
        image_folders.splits(tmp_path)
    said = str(caught.value)
    assert "'Training' and 'train', which are both the train split. Keep one of them" in said


def test_parquet_files_of_other_programs_are_left_out(tmp_path):
    touch(tmp_path, ".ipynb_checkpoints/train-0.parquet", "._train-0.parquet")
    (tmp_path / "tasks.yaml").write_text("tasks: [{name: t, images: {parquet: .}}]")
    (task,) = tasks.load_tasks(tmp_path / "tasks.yaml")
    with pytest.raises(errors.TaskError, match=r"There are no \*\.parquet files in"):
        task.images("train")
