"""Reading checkpoints: layouts, digests, and every kind of damaged or unsafe file."""

import hashlib
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import bundles, checkpoints

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.scale": torch.tensor(1.5),
    "c.half": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
    "d.ids": torch.arange(5),
    "e.empty": torch.empty(0, 4),
    "f.flag": torch.tensor([True, False, True]),
}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def write(path, header, data=b""):
    """A file with this header (an object or raw bytes) and these data bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def shards(folder, weight_map, **files):
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_tensors_are_read_as_they_were_written(file):
    with checkpoints.Checkpoint.open(file) as checkpoint:
        assert checkpoint.names == tuple(sorted(TENSORS))
        for name, tensor in TENSORS.items():
            assert checkpoint.info(name) == (tensor.dtype, tuple(tensor.shape))
            assert torch.equal(checkpoint.tensor(name), tensor)
            checkpoint.release(name)
            assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.nbytes == 24 + 4 + 4 + 40 + 3


def test_unaligned_tensors_are_read_too(tmp_path):
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    path = write(tmp_path / "x.safetensors", header, b"\x07" + struct.pack("<f", 2.5))
    assert checkpoints.Checkpoint.open(path).tensor("b").item() == 2.5


def test_the_digest_is_independent_of_layout_and_sees_every_bit(tmp_path, file):
    expected = checkpoints.weights_digest(file)
    assert expected == checkpoints.state_dict_digest(dict(reversed(TENSORS.items())))
    assert expected.startswith("sha256:")
    first = {name: TENSORS[name] for name in list(TENSORS)[:2]}
    second = {name: TENSORS[name] for name in list(TENSORS)[2:]}
    weight_map = dict.fromkeys(first, "one.safetensors") | dict.fromkeys(second, "two.safetensors")
    index = shards(tmp_path, weight_map, one=first, two=second)
    assert checkpoints.weights_digest(index) == expected

    def changed(**tensors):
        return checkpoints.state_dict_digest(TENSORS | tensors)

    assert changed(**{"b.scale": torch.tensor(1.5000001)}) != expected
    assert changed(**{"a.weight": TENSORS["a.weight"].reshape(3, 2)}) != expected
    assert changed(**{"e.empty": torch.empty(4, 0)}) != expected
    assert changed(**{"d.ids": TENSORS["d.ids"].to(torch.uint64)}) != expected


def test_the_digest_of_known_tensors_never_changes():
    """Registered versions carry it: a change here would orphan them."""
    content = hashlib.sha256(struct.pack("<2f", 1.0, 2.0)).hexdigest()
    text = f'[["x","F32",[2],"{content}"]]'
    golden = "sha256:79a823ae74428915172167e33d66e58b84c5d5714cf878f19696f876f2593a52"
    assert golden == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    assert checkpoints.state_dict_digest({"x": torch.tensor([1.0, 2.0])}) == golden


def entry(shape=(1,), offsets=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="1-empty"),
        pytest.param(b"\x01\x02\x03\x04", id="1-four-bytes"),
        pytest.param(struct.pack("<Q", 0), id="2-header-length-0"),
        pytest.param(struct.pack("<Q", 10_000) + b"{}", id="2-header-beyond-file"),
        pytest.param(struct.pack("<Q", 2**63) + b"{}", id="2-header-2^63"),
        pytest.param(struct.pack("<Q", 100_000_001) + b"{}", id="2-header-over-100MB"),
        pytest.param(struct.pack("<Q", 4) + b"nope", id="3-not-json"),
        pytest.param(struct.pack("<Q", 2) + b"[]", id="3-not-an-object"),
        pytest.param(struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc", id="3-not-utf8"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        errors.CheckpointError, match=rf"bad.safetensors \({len(content)} bytes\) is not a sound"
    ):
        checkpoints.Checkpoint.open(path)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        pytest.param({"a": entry(), "b": entry()}, b"\0" * 4, id="4-overlap"),
        pytest.param({"a": entry(offsets=(4, 8))}, b"\0" * 8, id="4-hole"),
        pytest.param({"a": entry()}, b"\0" * 9, id="4-trailing"),
        pytest.param({"a": entry(offsets=(4, 0))}, b"\0" * 4, id="4-reversed"),
        pytest.param({"a": entry(shape=(-1,))}, b"\0" * 4, id="5-negative"),
        pytest.param({"a": entry(shape=(0.5,))}, b"\0" * 4, id="5-fractional"),
        pytest.param({"a": entry(shape=(2**40, 2**40))}, b"\0" * 4, id="5-overflow"),
        pytest.param({"a": entry(shape=(2,))}, b"\0" * 4, id="6-bytes"),
        pytest.param({"a": entry(dtype="F33")}, b"\0" * 4, id="7-dtype"),
    ],
)
def test_lying_headers_are_refused(tmp_path, header, data):
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(errors.CheckpointError, match="is not a sound safetensors file"):
        checkpoints.Checkpoint.open(path)


def test_truncated_files_are_refused(file):
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(errors.CheckpointError, match="is not a sound safetensors file"):
        checkpoints.Checkpoint.open(file)


@pytest.mark.parametrize("name", ["", "a\0b", "../up", "a/../../b", "..\\b"])
def test_unsafe_names_are_refused(tmp_path, name):
    path = write(tmp_path / "bad.safetensors", {name: entry()}, b"\0" * 4)
    with pytest.raises(errors.CheckpointError, match="has a tensor named"):
        checkpoints.Checkpoint.open(path)


def test_no_tensors_are_refused(tmp_path):
    path = write(tmp_path / "bad.safetensors", {"__metadata__": {"format": "pt"}})
    with pytest.raises(errors.CheckpointError, match="holds no tensors"):
        checkpoints.Checkpoint.open(path)


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480])
def test_a_header_whose_length_looks_like_a_pickle(tmp_path, length):
    """The first bytes of a file are its header's length, and may be those of a pickle."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = write(tmp_path / "model.safetensors", header.ljust(length), b"ab")
    with checkpoints.Checkpoint.open(path) as found:
        assert bytes(found.raw("a")) == b"ab"


def test_pickles_are_never_read(tmp_path):
    class Payload:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was executed",))

    path = tmp_path / "model.safetensors"
    torch.save({"x": torch.ones(1)}, path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(errors.CheckpointError, match="is a PyTorch pickle, not safetensors"):
        checkpoints.Checkpoint.open(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(errors.CheckpointError, match="is a PyTorch pickle, not safetensors"):
        checkpoints.Checkpoint.open(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(errors.CheckpointError, match=r"none\.safetensors: No such file"):
        checkpoints.Checkpoint.open(tmp_path / "none.safetensors")


def test_a_folder_must_hold_one_checkpoint(tmp_path, file):
    assert checkpoints.Checkpoint.open(tmp_path).location == str(file)
    save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(errors.CheckpointError, match="holds 2 checkpoints"):
        checkpoints.Checkpoint.open(tmp_path)


ONE = {"x": torch.ones(2)}
TWO = {"y": torch.ones(3)}


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path):
    index = shards(tmp_path, {"x": "one.safetensors", "y": "two.safetensors"}, one=ONE)
    with pytest.raises(
        errors.CheckpointError, match=r"names the shard 'two\.safetensors', which is"
    ):
        checkpoints.Checkpoint.open(index)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    index = shards(
        tmp_path, {"x": "one.safetensors", "y": "two.safetensors"}, one=ONE, two=ONE | TWO
    )
    with pytest.raises(
        errors.CheckpointError, match=r"two\.safetensors disagree.*not in the index x"
    ):
        checkpoints.Checkpoint.open(index)


def test_a_tensor_that_a_shard_lacks_is_named(tmp_path):
    index = shards(tmp_path, {"x": "one.safetensors", "z": "one.safetensors"}, one=ONE)
    with pytest.raises(errors.CheckpointError, match=r"missing z\. Make the shards"):
        checkpoints.Checkpoint.open(index)


@pytest.mark.parametrize("target", ["../one.safetensors", "/etc/passwd", "", "a/b", "..", 7])
def test_shards_outside_the_folder_are_refused(tmp_path, target):
    index = shards(tmp_path, {"x": target})
    with pytest.raises(errors.CheckpointError, match="must be a file name beside the index"):
        checkpoints.Checkpoint.open(index)


def test_shards_behind_a_symlink_that_leads_elsewhere_are_refused(tmp_path):
    """A link to a file beside it, or in the same cache of Hugging Face, is followed."""
    snapshot = tmp_path / "models--org--bert" / "snapshots" / "c0ffee"
    blobs = snapshot.parent.parent / "blobs"
    for folder in (snapshot, blobs, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    index = shards(snapshot, {"x": "link.safetensors"}, one=ONE)
    link = snapshot / "link.safetensors"
    link.symlink_to("one.safetensors")
    assert checkpoints.Checkpoint.open(index).names == ("x",)
    for place in (blobs, tmp_path / "elsewhere"):
        link.unlink()
        save_file(ONE, place / "0123")
        link.symlink_to(os.path.relpath(place / "0123", snapshot))
        if place == blobs:
            assert checkpoints.Checkpoint.open(index).names == ("x",)
    with pytest.raises(errors.CheckpointError, match=r"nor in the same Hugging Face cache; copy"):
        checkpoints.Checkpoint.open(index)
    shutil.copytree(snapshot, tmp_path / "copy")  # as cp -rL does
    assert checkpoints.Checkpoint.open(tmp_path / "copy" / index.name).names == ("x",)


def test_several_checkpoints_are_read_as_one(tmp_path):
    """The first as it is, each further one with its place before its names; none hides another."""
    (tmp_path / "2_Dense").mkdir()
    index = shards(tmp_path, {"x": "one.safetensors"}, one=ONE)
    save_file(TWO | ONE, tmp_path / "2_Dense" / "model.safetensors")
    save_file(TWO, tmp_path / "value, head.safetensors")
    paths = [str(tmp_path / name) for name in (index.name, "2_Dense/model.safetensors")]
    several = bundles.of([*paths, str(tmp_path / "value, head.safetensors")])
    assert bundles.parse(Path(several.location)) == several
    with checkpoints.Checkpoint.open(Path(several.location)) as opened:
        assert opened.names == ("2_Dense/x", "2_Dense/y", "value, head/y", "x")
        assert torch.equal(opened.tensor("2_Dense/y"), TWO["y"])
        assert [opened.prefix(name) for name in opened.names] == [
            *("2_Dense/", "2_Dense/", "value, head/", "")
        ]
        assert len(opened.files) == 3
    save_file({"2_Dense/x": torch.ones(1)}, tmp_path / "one.safetensors")
    index.write_text(json.dumps({"weight_map": {"2_Dense/x": "one.safetensors"}}))
    with pytest.raises(errors.CheckpointError, match=r"has two tensors '2_Dense/x', one"):
        checkpoints.Checkpoint.open(several.location)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_file_that_is_no_index_is_refused(tmp_path, content):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(errors.CheckpointError, match=r"is not (a safetensors index|JSON)"):
        checkpoints.Checkpoint.open(index)
