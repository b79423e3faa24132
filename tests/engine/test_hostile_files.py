"""Safetensors files and indexes made to hurt: one clear error, at once."""

import json
import os

import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints


def write(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensor(shape=(1,), start=0, end=4, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def refusal(path):
    with pytest.raises(errors.CheckpointError) as caught:
        checkpoints.Checkpoint.open(path)
    message = str(caught.value)
    assert len(message) < 500
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([0, 2**62], "the integer 4611686018427387904 is beyond ±9007199254740991"),
        ([0, 2**53 - 1], None),
        (
            [0, 2**40, 2**40],
            "the tensor 'x' has the shape [0, 1099511627776, 1099511627776], which",
        ),
        ([0] * 40, "which no library holds: at most 32 dimensions, of less than 2⁵³ elements"),
        ([1] * 5_000, "has the shape [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,…"),
    ],
)
def test_shapes_that_overflow(tmp_path, shape, words):
    end = 0 if 0 in shape else 4
    path = write(tmp_path / "x.safetensors", {"x": tensor(shape, end=end)}, b"\0" * end)
    if words is None:
        assert checkpoints.Checkpoint.open(path).info("x").numel == 0
    else:
        assert words in refusal(path)


def test_600_000_empty_tensors(tmp_path):
    entry = json.dumps(tensor([0], end=0))
    text = ("{" + ",".join(f'"t{n}":{entry}' for n in range(600_000)) + "}").encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    words = "holds 600,000 tensors, 100,000 is the most: no model has so many"
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 300, "has a tensor name of 300 characters ('xxxxxxxx"),
        ("", "has a tensor named ''; a name must not be empty"),
        ("../x", "has a tensor named '../x'; a name must not be empty, hold a NUL or step out"),
        ("a\0b", r"has a tensor named 'a\x00b'"),
    ],
)
def test_names_of_tensors(tmp_path, name, words):
    path = write(tmp_path / "x.safetensors", {name: tensor()}, b"\0" * 4)
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"x":' + "[" * 20_000, "is not a sound safetensors file"),
        ('{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
         '"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "is given twice"),
        (r'{"\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "is not a sound safetens"),
        ('{"x":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', "is not a sound safetensors"),
        ('{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "is not a sound safetensors"),
    ],
)  # fmt: skip
def test_headers(tmp_path, text, words):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + b"\0" * 4)
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 50_000, "is refused: it is nested deeper than 64 levels"),
        (
            '{"weight_map": {"x": "' + "a" * 300 + '.safetensors"}}',
            "names a shard of 312 characters",
        ),
        (
            '{"weight_map": {"x": "' + "é" * 200 + '.safetensors"}}',
            "names a shard of 212 characters",
        ),
        (r'{"weight_map": {"x": "\ud800.safetensors"}}', "is no Unicode text"),
        (r'{"weight_map": {"x": "a\u0000.safetensors"}}', "which is missing"),
        ('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', "'x' is given twice"),
        ('{"metadata": {"total_size": 99999999999999999999}}', "is beyond ±9007199254740991"),
        ('{"weight_map": ["x"]}', "is not a safetensors index: a JSON object with `weight_map`"),
        ("[]", "is not a safetensors index: a JSON object with `weight_map`"),
        ('{"weight_map": {"x": 1}}', "puts the tensor 'x' into 1; a shard must be a file name"),
        ("\ufeff{}", "is not JSON: Unexpected UTF-8 BOM"),
    ],
)
def test_indexes(tmp_path, content, words):
    path = tmp_path / "x.safetensors.index.json"
    path.write_text(content, encoding="utf-8")
    assert words in refusal(path)


def test_more_shards_than_files_can_be_open(tmp_path):
    names = [f"{number}.safetensors" for number in range(600)]
    for name in names:
        write(tmp_path / name, {name: tensor()}, b"\0" * 4)
    path = tmp_path / "x.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {name: name for name in names}}))
    assert "names 600 shards, 500 is the most; make larger shards" in refusal(path)


def test_pipes_folders_and_devices(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    assert "is not a file; name a .safetensors file" in refusal(tmp_path / "x.safetensors")
    os.mkfifo(tmp_path / "y.safetensors.index.json")
    assert "it is a pipe, not a file" in refusal(tmp_path / "y.safetensors.index.json")
    (tmp_path / "z.safetensors").symlink_to("/dev/zero")
    assert "is not a file; name a .safetensors file" in refusal(tmp_path / "z.safetensors")
    (tmp_path / "w.safetensors.index.json").write_text('{"weight_map": {"x": "x.safetensors"}}')
    assert "is not a file" in refusal(tmp_path / "w.safetensors.index.json")
