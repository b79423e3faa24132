"""Writing checkpoints: whole or not at all, in one file or in shards."""

import json
import os
import resource
import signal
import stat

import pytest
import torch
from safetensors.torch import load_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, writing

TENSORS = {
    "big": torch.arange(10, dtype=torch.float32),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "ids": torch.arange(4),
    "scalar": torch.tensor(2.0),
    "nothing": torch.empty(0, 3),
    "größe/✓": torch.zeros(2),
}
INFOS = {
    name: checkpoints.TensorInfo(tensor.dtype, tuple(tensor.shape))
    for name, tensor in TENSORS.items()
}


def write_all(path, **options):
    with writing.CheckpointWriter(path, INFOS, **options) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    return writer


def test_one_file_reads_back_everywhere(tmp_path):
    writer = write_all(tmp_path / "out.safetensors")
    assert writer.output == tmp_path / "out.safetensors"
    loaded = load_file(writer.output)
    assert set(loaded) == set(TENSORS)
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)
    assert writer.weights_digest == checkpoints.weights_digest(writer.output)
    assert writer.weights_digest == checkpoints.state_dict_digest(TENSORS)
    assert os.listdir(tmp_path) == ["out.safetensors"]
    assert stat.S_IMODE(writer.output.stat().st_mode) & 0o444 == 0o444


@pytest.mark.parametrize(("size", "files"), [(1, 6), (40, 3), (80, 2), (10_000, 1)])
def test_shards_hold_at_most_their_size_and_have_the_same_digest(tmp_path, size, files):
    writer = write_all(tmp_path / "out.safetensors", max_shard_size=size)
    assert checkpoints.weights_digest(writer.output) == checkpoints.state_dict_digest(TENSORS)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) == files
    if files > 1:
        assert writer.output.name == "out.safetensors.index.json"
        assert shards[0].name == f"out-00001-of-{files:05}.safetensors"
        index = json.loads(writer.output.read_text())
        assert set(index["weight_map"]) == set(TENSORS)
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
        for shard in shards:
            loaded = load_file(shard)
            assert len(loaded) == 1 or sum(t.nbytes for t in loaded.values()) <= size


def test_an_error_leaves_nothing(tmp_path):
    def interrupted():
        with writing.CheckpointWriter(tmp_path / "out.safetensors", INFOS) as writer:
            writer.write("big", TENSORS["big"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_a_tensor_left_out_leaves_nothing(tmp_path):
    def incomplete():
        with writing.CheckpointWriter(tmp_path / "out.safetensors", INFOS) as writer:
            for name in ("big", "scalar", "nothing", "größe/✓"):
                writer.write(name, TENSORS[name])

    with pytest.raises(ValueError, match="never written: half, ids"):
        incomplete()
    assert os.listdir(tmp_path) == []


def test_an_output_that_exists_is_kept_unless_overwritten(tmp_path):
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(errors.CheckpointError, match=r"the output .* exists; .*--overwrite"):
        write_all(path)
    assert path.read_bytes() == b"precious"
    write_all(path, overwrite=True)
    assert checkpoints.weights_digest(path) == checkpoints.state_dict_digest(TENSORS)


def test_an_index_that_exists_is_kept_too(tmp_path):
    (tmp_path / "out.safetensors.index.json").write_text("{}")
    with pytest.raises(errors.CheckpointError, match="exists"):
        write_all(tmp_path / "out.safetensors")


def test_the_output_must_be_named_safetensors(tmp_path):
    with pytest.raises(errors.CheckpointError, match=r"must end in \.safetensors"):
        write_all(tmp_path / "out.bin")


def test_a_full_disk_is_found_before_any_work(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    infos = {"x": checkpoints.TensorInfo(torch.float32, (10_000_000,))}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        with (
            pytest.raises(errors.CheckpointError, match=r"cannot write .*out\.safetensors"),
            writing.CheckpointWriter(tmp_path / "out.safetensors", infos),
        ):
            pytest.fail("the work had begun")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_says_how_much_is_needed():
    infos = {"x": checkpoints.TensorInfo(torch.float32, (2**40,))}
    target = "/dev/shm/breadcrumbs-test/out.safetensors"
    with (
        pytest.raises(errors.CheckpointError, match=r"it needs 4398\.05 GB and .* GB are free"),
        writing.CheckpointWriter(target, infos),
    ):
        pytest.fail("the work had begun")
    assert not os.path.exists("/dev/shm/breadcrumbs-test/out.safetensors")


def test_a_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with (
        pytest.raises(errors.CheckpointError, match=r"cannot write .*; write to another folder"),
        writing.CheckpointWriter(blocked / "out.safetensors", INFOS),
    ):
        pytest.fail("the work had begun")


def test_a_disk_that_takes_no_files_is_named(tmp_path):
    target = "/proc/breadcrumbs/out.safetensors"
    with (
        pytest.raises(
            errors.CheckpointError, match=r"cannot write /proc/.*write to another folder"
        ),
        writing.CheckpointWriter(target, INFOS),
    ):
        pytest.fail("the work had begun")


def test_memory_holds_what_a_file_would(tmp_path):
    file = write_all(tmp_path / "out.safetensors")
    writer = writing.MemoryWriter(INFOS)
    for _ in range(2):  # a second merge overwrites the first
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    assert writer.weights_digest == file.weights_digest
    for name, tensor in TENSORS.items():
        assert writer.tensors[name].dtype == tensor.dtype
        assert torch.equal(writer.tensors[name], tensor)


def test_an_output_replaces_all_files_of_the_one_before(tmp_path):
    path = tmp_path / "out.safetensors"
    (tmp_path / "out-of-it.safetensors").touch()
    for size, kinds in ((None, 1), (16, 2), (10_000, 1), (30, 2)):
        writer = write_all(path, max_shard_size=size, overwrite=True)
        opened = checkpoints.Checkpoint.open(writer.output)
        assert checkpoints.weights_digest(opened) == writer.weights_digest
        names = {file.name for file in tmp_path.glob("out*")} - {"out-of-it.safetensors"}
        shards = {shard.name for shard in writer._shards}
        assert names == shards | ({writer.output.name} if kinds == 2 else set())
    writer.output.write_text("[]")
    write_all(path, overwrite=True)
    assert path.exists()
    assert not writer.output.exists()
    assert (tmp_path / "out-of-it.safetensors").exists()
