"""Images from folders, Parquet, torchvision and memory."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
import tiny
from PIL import Image
from pyarrow import parquet

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.models import image_sets, readers


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    return buffer.getvalue()


def write_parquet(path, rows, names=None, image="image", label="label"):
    """`rows` are (image cell, label); `names` go into the Hugging Face metadata."""
    table = pa.table({image: [row[0] for row in rows], label: [row[1] for row in rows]})
    if names:
        features = {
            image: {"_type": "Image"},
            label: {"names": names, "_type": "ClassLabel"},
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    parquet.write_table(table, path)
    return path


def test_folders_are_read_in_the_order_of_their_names(tmp_path):
    pool = readers.read_folders({"all": tiny.image_tree(tmp_path / "images", 3)})["all"]
    assert pool.names == ("blue", "green", "red")
    assert [example.label for example in pool.examples] == [0] * 3 + [1] * 3 + [2] * 3
    assert pool.examples[0].image().getpixel((0, 0))[2] > 150


def test_classes_are_those_of_all_splits_together(tmp_path):
    tiny.image_tree(tmp_path / "train", 1)
    tiny.image_tree(tmp_path / "test", 1)
    (tmp_path / "test/blue/0.png").unlink()
    pools = readers.read_folders({s: tmp_path / s for s in ("train", "test")})
    assert pools["test"].names == ("blue", "green", "red")
    assert [example.label for example in pools["test"].examples] == [1, 2]


def test_hidden_and_other_files_are_no_images(tmp_path):
    tiny.image_tree(tmp_path, 1)
    (tmp_path / "red/.hidden.png").write_bytes(b"")
    (tmp_path / "red/notes.txt").write_text("")
    (tmp_path / ".git").mkdir()
    assert len(readers.read_folders({"all": tmp_path})["all"].examples) == 3


def test_no_images(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(errors.TaskError, match=r"no images in .* a folder per class"):
        readers.read_folders({"all": tmp_path})
    with pytest.raises(errors.TaskError, match="There is no folder"):
        readers.read_folders({"test": tmp_path / "absent"})


def test_an_unreadable_image(tmp_path):
    tiny.image_tree(tmp_path, 1)
    (tmp_path / "red/0.png").write_bytes(b"not a picture")
    (tmp_path / "green/0.png").write_bytes((tmp_path / "green/0.png").read_bytes()[:60])
    examples = readers.read_folders({"all": tmp_path})["all"].examples
    assert examples[0].image().mode == "RGB"
    for example in examples[1:]:
        with pytest.raises(errors.TaskError, match=r"The image .*0\.png can't be decoded"):
            example.image()
    (tmp_path / "blue/0.png").unlink()
    with pytest.raises(errors.TaskError, match=r"blue/0\.png can't be read"):
        examples[0].image()


def test_parquet_in_the_hugging_face_layout(tmp_path):
    picture = tiny.pixels("red", 1)[0]
    (tmp_path / "beside.png").write_bytes(png(picture))
    rows = [
        ({"bytes": png(picture), "path": None}, 1),
        ({"bytes": None, "path": "beside.png"}, 0),
    ]
    pool = readers.read_parquet([write_parquet(tmp_path / "a.parquet", rows, ["cat", "dog"])])
    assert pool.names == ("cat", "dog")
    assert [example.label for example in pool.examples] == [1, 0]
    for example in pool.examples:
        assert np.array_equal(np.asarray(example.image()), picture)


def test_parquet_with_bytes_and_other_column_names(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", [(png(tiny.pixels("red", 1)[0]), 3)], image="img", label="fine"
    )
    pool = readers.read_parquet([path], image_column="img", label_column="fine")
    assert pool.names is None
    assert pool.examples[0].label == 3
    with pytest.raises(errors.TaskError, match="has no column 'image', 'label'; it has img, fine"):
        readers.read_parquet([path])


def test_bad_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(errors.TaskError, match="is not a Parquet file"):
        readers.read_parquet([tmp_path / "a.parquet"])
    cell = {"bytes": b"x", "path": None}
    negative = write_parquet(tmp_path / "b.parquet", [(cell, 0), (cell, -1)])
    with pytest.raises(errors.TaskError, match=r"label -1 in row 1 of .*b\.parquet"):
        readers.read_parquet([negative])
    empty = write_parquet(tmp_path / "c.parquet", [({"bytes": None, "path": None}, 0)])
    with pytest.raises(errors.TaskError, match=r"in row 0 .* neither bytes nor a path"):
        readers.read_parquet([empty]).examples[0].image()
    one = write_parquet(tmp_path / "d.parquet", [(cell, 0)], ["a", "b"])
    other = write_parquet(tmp_path / "e.parquet", [(cell, 0)], ["b", "a"])
    with pytest.raises(errors.TaskError, match="names the classes"):
        readers.read_parquet([one, other])


def test_torchvision_with_a_train_flag(tmp_path):
    """MNIST's files are simple enough to be written by hand."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for word, count in (("train", 5), ("t10k", 2)):
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (raw / f"{word}-images-idx3-ubyte").write_bytes(header + bytes(count * 28 * 28))
        labels = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + bytes(range(count))
        (raw / f"{word}-labels-idx1-ubyte").write_bytes(labels)
    pools = readers.read_torchvision("MNIST", root=tmp_path)
    assert {split: len(pool.examples) for split, pool in pools.items()} == {"train": 5, "test": 2}
    assert pools["train"].names[3] == "3 - three"
    assert [example.label for example in pools["test"].examples] == [0, 1]
    assert pools["test"].examples[0].image().size == (28, 28)


def test_torchvision_without_splits(tmp_path):
    tiny.image_tree(tmp_path / "eurosat/2750", 2)
    pools = readers.read_torchvision("EuroSAT", root=tmp_path)
    assert list(pools) == ["all"]
    assert pools["all"].names == ("blue", "green", "red")


def test_torchvision_that_is_not_there(tmp_path):
    with pytest.raises(errors.TaskError, match="no data set 'MNIST2'"):
        readers.read_torchvision("MNIST2", root=tmp_path)
    with pytest.raises(errors.TaskError, match=r"MNIST can't be read .* Set 'download: true'"):
        readers.read_torchvision("MNIST", root=tmp_path)


def test_the_digest_sees_content_and_not_names_or_order(tmp_path):
    tiny.image_tree(tmp_path, 2)

    def digest():
        pool = readers.read_folders({"all": tmp_path})["all"]
        return image_sets.ImageSet("x", pool.names, pool.examples).digest

    first = digest()
    (tmp_path / "red/0.png").rename(tmp_path / "red/z.png")
    assert digest() == first
    content = (tmp_path / "red/z.png").read_bytes()
    (tmp_path / "red/z.png").write_bytes(content + b"\0")
    assert digest() != first
    (tmp_path / "red/z.png").write_bytes(content)
    (tmp_path / "red/z.png").rename(tmp_path / "blue/z.png")
    assert digest() != first


def test_the_digest_is_for_ever():
    """A golden: an auditor years later must find the same number."""
    assert tiny.image_set(1).digest == (
        "sha256:2321137e367613f98d169493359fb2b9b27b2aaba269cdc9ddfff0d34bcd9abb"
    )


def test_dividing_is_stratified_and_stable():
    pool = image_sets.Pool(tiny.image_set(10).examples, None)
    rest, aside = image_sets.divide(pool, 0.2)
    assert [example.label for example in aside.examples] == [0, 0, 1, 1, 2, 2]
    assert len(rest.examples) == 24
    assert image_sets.divide(pool, 0.2)[1] == aside
    lone = image_sets.Pool(tiny.image_set(1).examples, None)
    assert image_sets.divide(lone, 0.9)[1].examples == ()


def test_the_stable_order_is_a_permutation():
    assert sorted(image_sets.stable_order(100)) == list(range(100))
    assert image_sets.stable_order(5) == [4, 3, 0, 1, 2]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [("[" * 5000, "nested deeper than 64 levels"), ("{", "is not JSON"), ("1", None), ("{}", None)],
)
def test_the_metadata_of_a_parquet_file_is_within_limits(tmp_path, metadata, words):
    path = write_parquet(
        tmp_path / "images.parquet", [({"bytes": png(np.zeros((4, 4, 3), np.uint8))}, 0)]
    )
    table = parquet.read_table(path).replace_schema_metadata({"huggingface": metadata})
    parquet.write_table(table, path)
    if words is None:
        assert readers.read_parquet([path]).names is None
        return
    with pytest.raises(errors.TaskError, match=words):
        readers.read_parquet([path])
