"""What stops a merge on any backend, what the CPU kernels do at the edges, and which is chosen."""

import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
import time

import gpu_device
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, merging, recipe
from mlflow_breadcrumbs.engine.backends import choosing, reference
from mlflow_breadcrumbs.engine.backends.cpu import cpu_backend, grid, kernels
from mlflow_breadcrumbs.engine.backends.gpu import gpu_backend

RECIPE = recipe.MergeRecipe(density=0.2, gamma=0.01, alpha=0.3)


def states(sources=2, tensors=3, size=5000):
    """A base and sources a small step away from it."""
    generator = torch.Generator().manual_seed(0)
    base = {f"t{i}": torch.randn(size, generator=generator) for i in range(tensors)}
    tuned = [
        {
            name: tensor + torch.randn(size, generator=generator) * 0.01
            for name, tensor in base.items()
        }
        for _ in range(sources)
    ]
    return [base, *tuned]


@pytest.fixture
def store(tmp_path):
    def open_all(all_states):
        opened = []
        for number, state in enumerate(all_states):
            path = tmp_path / f"input{number}.safetensors"
            save_file(state, path)
            opened.append(checkpoints.Checkpoint.open(path))
        return opened

    return open_all


def run(opened, output, settings=RECIPE, backend=None, **options):
    labels = [f"source {number}" for number in range(len(opened) - 1)]
    return merging.merge(
        opened[0], opened[1:], settings, output, labels=labels, backend=backend, **options
    )


def words(opened, output, **options):
    """What every backend says when it stops: the same."""
    found = set()
    for backend in (reference.Reference(), cpu_backend.Cpu(3), gpu_backend.Gpu(gpu_device.DEVICE)):
        with pytest.raises(errors.MergeError) as caught:
            run(opened, output, backend=backend, **options)
        found.add(str(caught.value))
        assert not output.exists()
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("unit", ["tensor", "row", "model"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_value_that_is_not_finite_is_named(store, tmp_path, unit, value):
    all_states = states()
    all_states[1]["t2"][7] = value
    all_states[2]["t1"][4000:] = value
    all_states[2]["t2"][3] = value
    settings = recipe.MergeRecipe(density=0.2, unit=unit)
    found = words(store(all_states), tmp_path / "out.safetensors", settings=settings)
    first = "source 0 has .* 't2' at flat index 7" if unit == "model" else "'t1' at flat index 4000"
    assert re.search(first, found)


def test_the_base_is_named_before_a_source(store, tmp_path):
    all_states = states()
    all_states[0]["t1"][4999] = float("nan")
    all_states[1]["t1"][0] = float("nan")
    found = words(store(all_states), tmp_path / "out.safetensors")
    assert found.startswith("the base has nan in the tensor 't1' at flat index 4999")


def test_an_overflow_in_an_earlier_tensor_comes_before_a_nan_in_a_later_one(store, tmp_path):
    all_states = states()
    all_states[0]["t0"][:] = 6e4
    all_states[1]["t0"][:] = torch.linspace(6e4, 7e4, 5000)
    all_states[2]["t0"][:] = 6e4
    all_states[2]["t2"][0] = float("nan")
    settings = recipe.MergeRecipe(density=1, dtype="float16")
    found = words(store(all_states), tmp_path / "out.safetensors", settings=settings)
    assert found.startswith("the merged tensor 't0' overflows float16 at flat index")


def test_an_infinite_task_vector_of_finite_weights_may_be_dropped(store, tmp_path):
    all_states = states(sources=1, tensors=1)
    all_states[0]["t0"][0], all_states[1]["t0"][0] = -3e38, 3e38
    opened = store(all_states)
    options = {"max_norm_ratio": None, "overwrite": True}
    digests = {
        run(opened, tmp_path / "out.safetensors", backend=backend, **options).weights_digest
        for backend in (
            reference.Reference(),
            cpu_backend.Cpu(2),
            gpu_backend.Gpu(gpu_device.DEVICE),
        )
    }
    assert len(digests) == 1


def test_a_source_from_another_base_is_refused_unless_allowed(store, tmp_path):
    all_states = states()
    all_states[2] = {name: torch.randn(5000) for name in all_states[0]}
    opened, output = store(all_states), tmp_path / "out.safetensors"
    assert "source 1 is farther from the base than fine-tuning goes" in words(opened, output)
    run(opened, output, max_norm_ratio=2.0)
    assert output.exists()
    run(opened, output, max_norm_ratio=float("inf"), overwrite=True)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_that_is_none_is_refused(store, tmp_path, limit):
    with pytest.raises(errors.MergeError, match=r"max_norm_ratio is .*; it must be above 0"):
        run(store(states()), tmp_path / "out.safetensors", max_norm_ratio=limit)


def test_digests_of_the_inputs_come_with_the_merge(store, tmp_path):
    opened = store([state | {"steps": torch.tensor(3)} for state in states()])
    recorded = [checkpoints.weights_digest(checkpoint) for checkpoint in opened]
    result = run(opened, tmp_path / "out.safetensors", expected=[None, *recorded[1:]])
    assert [result.base_digest, *result.source_digests] == recorded
    assert result.weights_digest == checkpoints.weights_digest(result.output)
    with pytest.raises(errors.IntegrityError, match=r"source 1 have the digest sha256:.* expected"):
        run(opened, tmp_path / "other.safetensors", expected=[*recorded[:2], recorded[0]])
    assert not (tmp_path / "other.safetensors").exists()


def test_an_input_that_changes_meanwhile_stops_the_merge(store, tmp_path):
    opened = store(states())
    with (tmp_path / "input1.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    with pytest.raises(errors.IntegrityError, match=r"input1.safetensors was written to while"):
        run(opened, tmp_path / "out.safetensors")
    os.truncate(tmp_path / "input1.safetensors", 9000)
    with pytest.raises(errors.CheckpointError, match="ended within the tensor"):
        run(opened, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_disk_that_fills_up_leaves_nothing(store, tmp_path, monkeypatch):
    opened, calls, write = store(states()), itertools.count(), os.pwrite

    def fills_up(*arguments):
        if next(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", fills_up)
    with pytest.raises(errors.CheckpointError, match="No space left on device; it needs"):
        run(opened, tmp_path / "out.safetensors", backend=cpu_backend.Cpu(2))
    assert {path.name for path in tmp_path.iterdir()} == {f"input{i}.safetensors" for i in range(3)}


KILLED = """
import sys
from mlflow_breadcrumbs.engine import checkpoints, merging, recipe
base, *sources = [checkpoints.Checkpoint.open(path) for path in sys.argv[2:]]
settings = recipe.MergeRecipe(density=0.2, gamma=0.01, alpha=0.3)
print("ready", flush=True)
while True:
    merging.merge(base, sources, settings, sys.argv[1], overwrite=True)
"""


def test_a_killed_merge_leaves_no_output_or_the_whole_one(store, tmp_path):
    opened = store(states(tensors=4, size=100_000))
    whole = run(opened, tmp_path / "whole.safetensors").weights_digest
    output = tmp_path / "out.safetensors"
    inputs = [checkpoint.location for checkpoint in opened]
    command = [sys.executable, "-c", KILLED, str(output), *inputs]
    for delay in (0.004, 0.03):
        output.unlink(missing_ok=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        if output.exists():
            assert checkpoints.weights_digest(output) == whole
    assert run(opened, output, overwrite=True).weights_digest == whole


def test_indices_beyond_two_to_the_31():
    """Tensors of more than 2³¹ elements, by simulation: a part that starts there."""
    start = 2**33 + 5
    tau = np.array([1, -2, 2, 2, 3, -2], np.float32)
    two = int(np.float32(2).view(np.uint32))
    cuts = (two, start + 2, two, start + 5)
    kernels.mask_range(tau, start, cuts, np.array([0, 2**31 - 1, 0, 0]))
    assert tau.tolist() == [0, 0, 2, 2, 0, 0]
    pair = (np.zeros(6, np.float32).view(np.uint8), kernels.FLOAT32)
    tuned = (np.array([1, -2, 2, 2, 3, -2], np.float32).view(np.uint8), kernels.FLOAT32)
    below, bits, index = np.zeros(2, np.int64), np.empty(9000, np.uint32), np.empty(9000, np.int64)
    firsts, widths = np.array([two, 0], np.uint32), np.array([1, 0], np.uint32)
    filled = kernels.collect((*pair, *tuned), start, firsts, widths, below, bits, index, 0)
    assert index[:filled].tolist() == [start + 1, start + 2, start + 3, start + 5]
    assert below[0] == 1


def test_every_half_is_converted_exactly():
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    for kind, dtype in ((kernels.FLOAT16, torch.float16), (kernels.BFLOAT16, torch.bfloat16)):
        converted = np.empty(2**16, np.float32)
        kernels.load(halves.view(torch.uint8).numpy(), kind, 0, converted)
        expected = halves.view(dtype).float()
        assert torch.equal(torch.from_numpy(converted).nan_to_num(), expected.nan_to_num())
        assert torch.equal(torch.from_numpy(converted).isnan(), expected.isnan())


@pytest.mark.parametrize("unit", ["tensor", "row", "model"])
def test_masks_and_consensus_leave_the_whole_mean_alone(store, tmp_path, unit):
    all_states = [state | {"matrix": state["t0"].reshape(50, 100).clone()} for state in states()]
    opened, digests = store(all_states), set()
    settings = dataclasses.replace(RECIPE, unit=unit, consensus="mass", vectors="whole_mean")
    for backend in (reference.Reference(), cpu_backend.Cpu(2), gpu_backend.Gpu(gpu_device.DEVICE)):
        result = run(opened, tmp_path / "out.safetensors", settings, backend, overwrite=True)
        digests.add(result.weights_digest)
        kept = {entry.tensor: entry.kept for entry in result.statistics}
        assert kept == {"matrix": 1000, "t0": 5000, "t1": 5000, "t2": 5000}
    assert len(digests) == 1
    base, *tuned = all_states
    merged = load_file(result.output)
    for name in ("t0", "t1", "t2"):
        mean = sum(state[name].double() - base[name].double() for state in tuned) / 2
        expected = base[name] + settings.alpha * mean
        torch.testing.assert_close(merged[name].double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("unit", ["tensor", "row", "model"])
def test_a_grid_of_thresholds_gives_each_recipes_bits(store, tmp_path, unit):
    all_states = [
        {name: tensor.reshape(50, 100) for name, tensor in state.items()} for state in states()
    ]
    opened = store([state | {"scalar": torch.tensor(1.0)} for state in all_states])
    points = [(0.14, 0.01), (0.2, 0.0), (1.0, 0.0), (0.05, 0.5)]
    made = [recipe.MergeRecipe(density=d, gamma=g, unit=unit, alpha=0.4) for d, g in points]
    job = merging.plan(opened[0], opened[1:], made[0])
    for settings, known in zip(made, grid.thresholds(job, points, threads=2), strict=True):
        result, expected = (
            run(opened, tmp_path / "out.safetensors", settings, backend, overwrite=True)
            for backend in (cpu_backend.Cpu(2, known=known), reference.Reference())
        )
        assert result.weights_digest == expected.weights_digest


def test_touched_shares_sum_to_one(store, tmp_path):
    result = run(store(states()), tmp_path / "out.safetensors")
    assert len(result.touched) == 3
    assert sum(result.touched) == pytest.approx(1)
    assert result.touched[1] + 2 * result.touched[2] == pytest.approx(2 * 0.2)
    assert load_file(result.output).keys() == {"t0", "t1", "t2"}


def test_a_backend_is_chosen_by_name_and_device():
    assert choosing.choose().name == "cpu"
    assert choosing.choose(threads=3).threads == 3
    assert choosing.choose(name="reference").name == "reference"
    with pytest.raises(errors.DeviceError, match="backend is 'tpu'; it must be one of auto, refer"):
        choosing.choose(name="tpu")


@pytest.mark.parametrize("vectors", ["same", "mean"])
def test_deep_blocks_get_more_of_what_is_merged_on_every_backend(store, tmp_path, vectors):
    names = ["blocks.0.bias", "blocks.1.bias", "blocks.4.bias", "norm.bias"]
    plain = [{name: state["t0"].clone() for name in names} for state in states(tensors=1)]
    settings = recipe.MergeRecipe(density=1, alpha=0.2, depth=0.4, vectors=vectors)
    opened = store(plain)
    found = []
    for number, backend in enumerate(
        (reference.Reference(), cpu_backend.Cpu(2), gpu_backend.Gpu(gpu_device.DEVICE))
    ):
        output = tmp_path / f"out{number}.safetensors"
        result = run(opened, output, settings=settings, backend=backend)
        found.append(result.weights_digest)
    assert len(set(found)) == 1
    merged, base = load_file(output), plain[0]["norm.bias"]
    total = sum(state["norm.bias"].double() - base.double() for state in plain[1:])
    for name, scale in zip(names, (0.2, 0.3, 0.6, 0.2), strict=True):
        expected = base + scale / (2 if vectors == "mean" else 1) * total
        torch.testing.assert_close(merged[name].double(), expected, atol=1e-6, rtol=1e-6)
