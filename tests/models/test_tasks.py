"""Task files, their splits, and their mistakes in one line."""

import shutil

import mlflow
import pyarrow as pa
import pytest
import tiny
from pyarrow import parquet

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.registry import task_files


def write(folder, text):
    path = folder / "tasks.yaml"
    path.write_text(text)
    return path


def write_labels(path, labels):
    cells = [{"bytes": b"x", "path": None}] * len(labels)
    parquet.write_table(pa.table({"image": cells, "label": labels}), path)


def test_a_single_tree_is_split_the_same_way_every_time(tmp_path):
    (task,) = tasks.load_tasks(tiny.task_file(tmp_path, count=20))
    sets = {split: task.images(split) for split in tasks.SPLITS}
    assert {split: len(found) for split, found in sets.items()} == {
        "train": 42,
        "validation": 6,
        "test": 12,
    }
    origins = [example.origin for found in sets.values() for example in found.examples]
    assert len(set(origins)) == 60
    (again,) = tasks.load_tasks(tmp_path / "tasks.yaml")
    assert again.images("test").digest == sets["test"].digest
    assert sets["test"].name == "colours/test"


def test_labels_follow_the_order_of_the_task_file(tmp_path):
    (task,) = tasks.load_tasks(tiny.task_file(tmp_path, count=2))
    assert task.classes == ("red", "green", "blue")
    for image, label in task.images("train"):
        assert image.getpixel((8, 8))[label] == max(image.getpixel((8, 8)))


def test_names_of_folders_can_be_mapped(tmp_path):
    tiny.image_tree(tmp_path / "images", 2)
    classes = "{blue: sky, red: fire, green: grass}"
    text = f"tasks: [{{name: t, classes: {classes}, images: {{folder: images}}}}]"
    (task,) = tasks.load_tasks(write(tmp_path, text))
    assert task.classes == ("sky", "fire", "grass")
    for image, label in task.images("train"):
        channel = {"fire": 0, "grass": 1, "sky": 2}[task.classes[label]]
        assert image.getpixel((8, 8))[channel] == max(image.getpixel((8, 8)))


def test_without_classes_the_folders_name_them(tmp_path):
    tiny.image_tree(tmp_path / "images", 2)
    (task,) = tasks.load_tasks(write(tmp_path, "tasks: [{name: t, images: {folder: images}}]"))
    assert task.classes == ("blue", "green", "red")
    assert task.templates == tasks.DEFAULT_TEMPLATES


def test_folders_named_after_splits(tmp_path):
    for split, count in (("train", 10), ("test", 2)):
        tiny.image_tree(tmp_path / "images" / split, count)
    (task,) = tasks.load_tasks(write(tmp_path, "tasks: [{name: t, images: {folder: images}}]"))
    assert [len(task.images(split)) for split in tasks.SPLITS] == [27, 3, 6]
    tiny.image_tree(tmp_path / "images/val", 1)
    (task,) = tasks.load_tasks(tmp_path / "tasks.yaml")
    assert [len(task.images(split)) for split in tasks.SPLITS] == [30, 3, 6]


def test_a_class_may_be_called_test(tmp_path):
    tiny.image_tree(tmp_path / "images", 5)
    (tmp_path / "images/red").rename(tmp_path / "images/test")
    (task,) = tasks.load_tasks(write(tmp_path, "tasks: [{name: t, images: {folder: images}}]"))
    assert task.classes == ("blue", "green", "test")


def test_a_mapping_of_splits(tmp_path):
    tiny.image_tree(tmp_path / "a", 2)
    text = "tasks: [{name: t, images: {folder: {test: a}}}]"
    (task,) = tasks.load_tasks(write(tmp_path, text))
    assert len(task.images("test")) == 6
    with pytest.raises(errors.TaskError, match="Task 't' has no train split; it has test"):
        task.images("train")


def test_parquet_files_of_a_folder_are_told_apart_by_their_names(tmp_path):
    write_labels(tmp_path / "train-00000-of-00002.parquet", [0, 1] * 5)
    write_labels(tmp_path / "train-00001-of-00002.parquet", [0, 1] * 5)
    write_labels(tmp_path / "test-00000-of-00001.parquet", [0, 1])
    text = "tasks: [{name: t, classes: [cat, dog], images: {parquet: .}}]"
    (task,) = tasks.load_tasks(write(tmp_path, text))
    assert [len(task.images(split)) for split in tasks.SPLITS] == [18, 2, 2]
    write_labels(tmp_path / "other.parquet", [0])
    with pytest.raises(errors.TaskError, match=r"mixes files of known splits .* other\.parquet"):
        tasks.load_tasks(tmp_path / "tasks.yaml")[0].images("test")


def test_a_label_outside_the_classes(tmp_path):
    write_labels(tmp_path / "all.parquet", [0, 1, 2] * 10)
    text = "tasks: [{name: t, classes: [cat, dog], images: {parquet: all.parquet}}]"
    (task,) = tasks.load_tasks(write(tmp_path, text))
    with pytest.raises(
        errors.TaskError, match=r"label 2 in row \d+ of .* outside its 2 classes \(0 to 1\)"
    ):
        task.images("train")


def test_numbers_need_names(tmp_path):
    write_labels(tmp_path / "all.parquet", [0, 1])
    text = "tasks: [{name: t, images: {parquet: all.parquet}}]"
    with pytest.raises(errors.TaskError, match=r"carry no class names: list them, label 0 first"):
        _ = tasks.load_tasks(write(tmp_path, text))[0].classes


def test_classes_that_the_images_do_not_have(tmp_path):
    path = tiny.task_file(tmp_path)
    (tmp_path / "images/red").rename(tmp_path / "images/rot")
    (task,) = tasks.load_tasks(path)
    with pytest.raises(
        errors.TaskError, match=r"Only in 'classes': red\. Only in the images: rot\. To rename"
    ):
        task.images("test")


def test_the_limit_holds_per_split_and_spreads_over_the_classes(tmp_path):
    (task,) = tasks.load_tasks(tiny.task_file(tmp_path, count=20, extra="    limit: 9\n"))
    train = task.images("train")
    assert len(train) == 9
    assert {example.label for example in train.examples} == {0, 1, 2}
    assert len(task.images("validation")) == 6


def test_one_class_is_not_enough(tmp_path):
    tiny.image_tree(tmp_path / "images", 2)
    shutil.rmtree(tmp_path / "images/red")
    shutil.rmtree(tmp_path / "images/green")
    (task,) = tasks.load_tasks(write(tmp_path, "tasks: [{name: t, images: {folder: images}}]"))
    with pytest.raises(errors.TaskError, match=r"has 1 class \(blue\); .* at least two"):
        task.images("test")


def test_an_empty_split(tmp_path):
    (task,) = tasks.load_tasks(tiny.task_file(tmp_path, count=1))
    with pytest.raises(errors.TaskError, match="The test split of task 'colours' is empty"):
        task.images("test")


def test_no_such_task(tmp_path):
    found = tasks.load_tasks(write(tmp_path, "tasks: [{name: a, classes: [x, y]}]"))
    assert tasks.find(found, "a").classes == ("x", "y")
    with pytest.raises(errors.TaskError, match="There is no task 'b' in the task file; it has a"):
        tasks.find(found, "b")
    assert not found[0].has_images
    with pytest.raises(errors.TaskError, match=r"Task 'a' has no images\. Add 'images' to it"):
        found[0].images("test")


def test_a_task_without_images_needs_classes(tmp_path):
    (task,) = tasks.load_tasks(write(tmp_path, "tasks: [{name: a}]"))
    with pytest.raises(errors.TaskError, match="no images, so it needs a list of 'classes'"):
        _ = task.classes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: [", "is not YAML"),
        ("[]", "the file: it is .., and must be a mapping with tasks"),
        ("tasks: []", "line 1: tasks: it is .., and must be a list that is not empty"),
        ("tasks: [{classes: [a, b]}]", r"tasks\[0\]\.name: it is missing"),
        ("tasks: [{name: a/b}]", r"tasks\[0\]\.name: 'a/b' can't name a task"),
        ("tasks: [{name: ü}]", "can't name a task"),
        ("tasks: [{name: 'a b'}]", "can't name a task"),
        ("tasks: [{name: 'a%b'}]", "can't name a task"),
        ("tasks: [{name: ..}]", "can't name a task"),
        ("tasks: [{name: a}, {name: a}]", "names a task twice: a"),
        ("tasks: [{name: a, classes: [yes, no]}]", "YAML reads this name as True; put it in quot"),
        ("tasks: [{name: a, templates: [a photo]}]", r"'a photo' needs \{\} exactly once"),
        ("tasks: [{name: a, limit: 0}]", r"tasks\[0\]\.limit: it is 0, and must be at least 1"),
        ("tasks: [{name: a, images: {}}]", "exactly one of folder, parquet and torchvision, not n"),
        (
            "tasks: [{name: a, images: {folder: x, parquet: y}}]",
            "not folder and parquet",
        ),
        ("tasks: [{name: a, image: {}}]", "image: there is no such field; did you mean images"),
    ],
)
def test_mistakes_in_one_line(tmp_path, text, words):
    with pytest.raises(errors.TaskError, match=words) as caught:
        tasks.load_tasks(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "tasks.yaml" in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(errors.TaskError, match=r"absent\.yaml' can't be read: No such file"):
        tasks.load_tasks(tmp_path / "absent.yaml")
    (task,) = tasks.load_tasks(write(tmp_path, "tasks: [{name: a, images: {folder: nowhere}}]"))
    with pytest.raises(errors.TaskError, match=r"no image folder '.*nowhere'"):
        task.images("test")


def test_numbers_as_class_names(tmp_path):
    (task,) = tasks.load_tasks(write(tmp_path, "tasks: [{name: digits, classes: [0, 1, 2.5]}]"))
    assert task.classes == ("0", "1", "2.5")


def test_class_names_must_differ(tmp_path):
    (task,) = tasks.load_tasks(write(tmp_path, "tasks: [{name: a, classes: [x, y, x]}]"))
    with pytest.raises(errors.TaskError, match="names a class twice: x"):
        _ = task.classes


def test_task_file_and_images_in_mlflow(tmp_path):
    """The task file is an artifact, and its relative paths are relative to it there."""
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = mlflow.create_experiment("data", artifact_location=str(tmp_path / "artifacts"))
    (tmp_path / "data").mkdir()
    tiny.task_file(tmp_path / "data")
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_artifacts(str(tmp_path / "data"), "study")
    (local,) = tasks.load_tasks(tmp_path / "data/tasks.yaml")
    (remote,) = task_files.load(f"runs:/{run.info.run_id}/study/tasks.yaml")
    assert remote.images("test").digest == local.images("test").digest
    uri = f"runs:/{run.info.run_id}/study/images"
    (mixed,) = task_files.load(
        write(tmp_path, f"tasks: [{{name: t, images: {{folder: '{uri}'}}}}]")
    )
    assert len(mixed.images("test")) == 6
    with pytest.raises(errors.TaskError, match="can't be fetched"):
        task_files.load(f"runs:/{run.info.run_id}/study/absent.yaml")


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    text = "tasks:\n- name: a\n  classes: [x, y]\n  name: b\n"
    with pytest.raises(errors.TaskError, match="line 4: name is given twice"):
        tasks.load_tasks(write(tmp_path, text))


def test_a_folder_alone_is_short_for_the_mapping(tmp_path):
    long, short = (
        tasks.load_tasks(write(tmp_path, f"tasks: [{{name: a, images: {images}}}]"))[0]
        for images in ("{folder: images}", "images")
    )
    tiny.task_file(tmp_path)
    assert short.images("test").digest == long.images("test").digest
