"""The GPU backend: how it cuts up its work, device memory, awkward tensors, machine code."""

import json
import logging
import os
import re
import subprocess
import sys

import gpu_device
import numpy as np
import pytest
import torch
import zoos
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, merging, recipe
from mlflow_breadcrumbs.engine.backends import choosing, reference
from mlflow_breadcrumbs.engine.backends.gpu import gpu_backend, inputs, layout
from mlflow_breadcrumbs.engine.shards import local

DEVICE = gpu_device.DEVICE


def awkward():
    """Tensors of awkward shapes, each full of awkward numbers."""
    generator = torch.Generator().manual_seed(0)
    numbers = {
        "normal": torch.randn(10_007, generator=generator),
        "ties": torch.randint(-2, 3, (10_007,), generator=generator).float(),
        "same": torch.full((10_007,), -0.5),
        "zeros": torch.zeros(10_007),
        "denormals": torch.randn(10_007, generator=generator) * 1e-40,
    }
    shapes = [(), (0,), (3, 0), (1,), (1023,), (7, 149), (10_007,)]
    base, tuned = {}, {}
    for kind, values in numbers.items():
        for shape in shapes:
            name = f"{kind} {shape}"
            n = torch.Size(shape).numel()
            base[name] = torch.zeros(shape)
            if kind == "normal":
                base[name] = torch.randn(shape, generator=generator)
            tuned[name] = base[name] + values[:n].reshape(shape)
    return base, tuned


@pytest.mark.parametrize("unit", ["tensor", "row", "model"])
def test_awkward_tensors(tmp_path, unit):
    base, tuned = awkward()
    opened = zoos.opened([base, tuned], tmp_path)
    made = recipe.MergeRecipe(density=0.3, gamma=0.1, unit=unit, alpha=0.7)
    ours, expected = (
        merging.merge(
            opened[0],
            opened[1:],
            made,
            tmp_path / f"{backend.name}.safetensors",
            backend=backend,
            max_norm_ratio=None,
        )
        for backend in (gpu_backend.Gpu(DEVICE), reference.Reference())
    )
    assert ours.weights_digest == expected.weights_digest
    assert [entry.kept for entry in ours.statistics] == [e.kept for e in expected.statistics]
    denormals = load_file(ours.output)["denormals (10007,)"]
    assert denormals.abs().max() < torch.finfo(torch.float32).tiny
    assert unit == "model" or denormals.count_nonzero() > 0


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.integers(2, 4),
    st.integers(1, 6),
)
def test_a_schedule_never_moves_what_kernels_may_be_reading(order, slots, passes):
    pieces = [f"piece {number}" for number in range(6)]
    order = [pieces[number] for number in order] * passes
    visits = inputs.schedule(order, slots)
    assert [visit.piece for visit in visits] == order
    held, last = {}, {}
    for number, (before, visit) in enumerate(zip([None, *visits], visits, strict=False)):
        if visit.load:
            assert before is None or before.slot != visit.slot
            assert visit.after == last.get(visit.slot, -1) + 1
            held[visit.slot] = visit.piece
        assert held[visit.slot] == visit.piece
        last[visit.slot] = number
    loaded = [visit for visit in visits if visit.load]
    if len(set(order)) <= slots:
        assert len(loaded) == len(set(order))
    assert [visit.piece for visit in visits if visit.first] == list(dict.fromkeys(order))
    assert all(visit.load for visit in visits if visit.first)


def planned(states, folder, **options):
    opened = zoos.opened(states, folder)
    settings = recipe.MergeRecipe(density=0.2, gamma=0.01, **options)
    return merging.plan(opened[0], opened[1:], settings)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([(3,), (17, 40), (2, 9000), (5, 2, 100), (30_000,), (1, 20_000)]),
        min_size=1,
        max_size=5,
    ),
    st.lists(st.sampled_from([torch.float32, torch.bfloat16]), min_size=2, max_size=4),
    st.sampled_from([1, 100_000, 5_000_000, 1 << 27]),
    st.sampled_from(["tensor", "row", "model"]),
)
def test_tiles_cover_every_element_once(tmp_path_factory, shapes, dtypes, nbytes, unit):
    states = [
        {f"t{i}": torch.zeros(shape, dtype=dtype) for i, shape in enumerate(shapes)}
        for dtype in dtypes
    ]
    job = planned(states, tmp_path_factory.mktemp("planned"), unit=unit)
    covered = {name: np.zeros(job.base.info(name).numel, int) for name in job.merged}
    for found in layout.rounds(job, nbytes):
        for piece in found.pieces:
            # A unit that is masked in one tile is not cut; and tensors start at round positions.
            largest = max(nbytes, 4 * layout.SHORT * len(dtypes)) + 5000
            assert piece.nbytes <= largest
            assert len(piece.table) == len(piece.owner) == piece.launches[-1].last
            for tile, owner in zip(piece.table, piece.owner, strict=True):
                segment = piece.segments[owner]
                start = segment.start + tile[layout.POSITION] - segment.position
                count = tile[layout.LENGTH] * tile[layout.ROWS]
                covered[segment.name][start : start + count] += 1
            if piece.long:
                units = piece.table[: piece.long.last, layout.UNIT]
                assert (np.diff(units) >= 0).all()
                assert units[-1] < len(found.ranks)
    assert all((count == 1).all() for count in covered.values())


def test_pieces_are_as_small_with_many_sources(tmp_path):
    state = {"t": torch.zeros(300_000)}
    few, many = (
        layout.rounds(planned([state] * (sources + 1), tmp_path), 1_000_000) for sources in (1, 60)
    )
    assert max(piece.nbytes for found in few for piece in found.pieces) <= 1_000_000
    assert max(piece.nbytes for found in many for piece in found.pieces) <= 1_000_000


def test_a_tensor_of_more_than_two_to_the_31_elements_is_cut_up(tmp_path):
    """Nothing is read: the file is a header and a hole."""
    n = 2**31 + 5000
    entry = {"dtype": "F16", "shape": [n], "data_offsets": [0, 2 * n]}
    header = json.dumps({"t": entry}).encode()
    for number in range(2):
        with (tmp_path / f"{number}.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 2 * n)
    opened = [checkpoints.Checkpoint.open(tmp_path / f"{i}.safetensors") for i in range(2)]
    job = merging.plan(opened[0], opened[1:], recipe.MergeRecipe(density=0.2, gamma=0.01))
    (found,) = layout.rounds(job, layout.PIECE)
    assert found.pieces[-1].segments[0].stop == n
    assert sum(int(piece.table[:, layout.LENGTH].sum()) for piece in found.pieces) == n
    assert max(piece.nbytes for piece in found.pieces) <= layout.PIECE
    assert found.ranks.tolist() == [[n - n // 100 - n // 5, n - n // 100]]


@pytest.fixture
def small_device(monkeypatch):
    """A function that makes allocations of more than so many bytes fail, as a full device does."""
    empty = torch.empty

    def limit(nbytes):
        def limited(*shape, **options):
            if options.get("dtype") == torch.uint8 and shape[0] > nbytes:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return empty(*shape, **options)

        monkeypatch.setattr(torch, "empty", limited)

    return limit


def test_out_of_memory_means_smaller_pieces(tmp_path, small_device, caplog, monkeypatch):
    monkeypatch.setattr(gpu_backend, "SMALLEST", 1000)
    generator = torch.Generator().manual_seed(0)
    base = {"t": torch.randn(9000, generator=generator)}
    opened = zoos.opened([base, {"t": base["t"] * 1.01}], tmp_path)
    made = recipe.MergeRecipe(density=0.2, gamma=0.01)
    whole = merging.merge(opened[0], opened[1:], made, tmp_path / "whole.safetensors")
    small_device(60_000)
    told = []

    class Show:
        def __call__(self, *_, **__):
            return self

        def __enter__(self):
            return told.append

        def __exit__(self, *_):
            return None

    with caplog.at_level(logging.WARNING):
        result = merging.merge(
            opened[0],
            opened[1:],
            made,
            tmp_path / "out.safetensors",
            backend=gpu_backend.Gpu(DEVICE, piece=100_000),
            show=Show(),
        )
    assert result.weights_digest == whole.weights_digest
    assert "out of memory on cpu: starting again with pieces of" in caplog.text or DEVICE != "cpu"
    assert sum(told) == sum(checkpoint.nbytes for checkpoint in opened)


def test_a_device_that_is_too_small_is_named(tmp_path, small_device):
    opened = zoos.opened([{"t": torch.ones(9000)}, {"t": torch.ones(9000) * 1.1}], tmp_path)
    small_device(100)
    with pytest.raises(errors.DeviceError, match=r"ran out of memory on .* use --device cpu"):
        merging.merge(
            opened[0],
            opened[1:],
            recipe.MergeRecipe(density=0.2),
            tmp_path / "out.safetensors",
            backend=gpu_backend.Gpu(DEVICE),
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_inputs_that_end_early_stop_the_merge(tmp_path):
    opened = zoos.opened([{"t": torch.ones(9000)}, {"t": torch.ones(9000) * 1.1}], tmp_path)
    with (tmp_path / "input1.safetensors").open("r+b") as file:
        file.truncate(9000)
    with pytest.raises(errors.CheckpointError, match="ended within the tensor"):
        merging.merge(
            opened[0],
            opened[1:],
            recipe.MergeRecipe(density=0.2),
            tmp_path / "out.safetensors",
            backend=gpu_backend.Gpu(DEVICE),
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_the_gpu_backend_is_chosen_with_a_cuda_device(monkeypatch):
    with pytest.raises(errors.DeviceError, match=r"backend is 'gpu' and device is 'cpu'; .*cuda"):
        choosing.choose("cpu", "gpu")
    with pytest.raises(errors.DeviceError, match="give auto, cpu, cuda or cuda:N"):
        choosing.choose("tpu")
    if torch.cuda.is_available():
        assert choosing.choose("cuda").name == choosing.choose(name="gpu").name == "gpu"
        assert choosing.choose("cuda", "cpu").name == "cpu"
        return
    for device, name in (("cuda", "auto"), ("auto", "gpu"), ("cuda:1", "gpu")):
        with pytest.raises(errors.DeviceError, match="finds no CUDA device"):
            choosing.choose(device, name)


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine.backends import choosing
try:
    choosing._gpu("cuda")
except errors.DeviceError as error:
    print(error)
print(choosing.choose().name)
"""


def test_without_triton_the_remedy_is_named():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=True
    )
    assert "needs Triton, which can't be imported" in done.stdout
    assert "torch's CUDA builds on Linux" in done.stdout
    assert done.stdout.endswith("cpu\n")


COMPILED = """
import itertools, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mlflow_breadcrumbs.engine.backends.gpu import layout, selection
from mlflow_breadcrumbs.engine.backends.gpu import triton_kernels as kernels

POINTERS = {
    "raw": "*u8", "offsets": "*i64", "kinds": "*i32", "table": "*i64", "magnitudes": "*i32",
    "histogram": "*i64", "equal": "*i32", "ties": "*i32", "cuts": "*i32", "scales": "*fp32",
    "seen": "*i32", "energies": "*fp64", "base_energy": "*fp64", "bad": "*i32", "touches": "*i64",
    "prefixes": "*i32", "ranks": "*i64", "units": "i32", "sources": "i32",
}

def ptx(kernel, merged="*fp32", **constants):
    names = kernel.arg_names
    types = POINTERS | {"merged": merged}
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
               if types.get(n, "").startswith("*")},
    )
    target = GPUTarget("cuda", 90, 32)
    asm = compile(source, target=target, options=kernels.options(constants)).asm
    # A division is made of fused multiply-adds; it still rounds once.
    return asm["ptx"] if constants.get("MEAN") else asm["ptx"] + asm["sass"]

tile = {"BLOCK": layout.TILE, "ALIGNED": True}
print(ptx(kernels.count_digits, CUTS=2, SHIFT=20, WIDTH=11, BINS=selection.BINS, BASE_KIND=0,
          KIND=0, **tile))
print(ptx(kernels.read_digits, CUTS=2, WIDTH=11, BINS=selection.BINS))
print(ptx(kernels.count_equal, BASE_KIND=1, KIND=-1, **tile))
print(ptx(kernels.place_cuts, BASE_KIND=2, KIND=2, **tile))
variants = [(1, layout.TILE, False, 0, "*fp32"), (1, layout.TILE, False, 1, "*u16"),
            (2, 1024, True, 2, "*fp16")]
for rows, columns, rowwise, kind, merged in variants:
    print(ptx(kernels.merge_tiles, merged=merged, TILE_ROWS=rows, TILE_COLUMNS=columns,
              TOUCH_BINS=64, ROWWISE=rowwise, CONSENSUS=kind > 0, MEAN=kind > 0, BASE_KIND=kind,
              KIND=kind, OUT_KIND=kind, ALIGNED=True))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for GPUs on Linux only")
def test_the_machine_code_rounds_as_the_definition_does(tmp_path):
    """Compiling needs no GPU: no fused multiply-add, nothing flushed, divisions to nearest."""
    environment = {
        "TRITON_CACHE_DIR": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    code = done.stdout
    assert code.count(".visible .entry") == 7
    assert "fma.rn.f32" not in code
    assert "FADD" in code
    assert "FFMA" not in code
    assert ".ftz" not in code
    assert "div.rn.f32" in code
    assert "div.full" not in code
    assert "div.approx" not in code
    assert not re.search(r"(atom|red)\.\S+\.add\.f", code)
    assert "ld.global.v4.b32" in code


@pytest.mark.parametrize("unit", ["tensor", "row"])
def test_shards_have_the_bits_of_a_merge_in_one_go(tmp_path, unit):
    opened = zoos.opened(awkward(), tmp_path)
    made = recipe.MergeRecipe(density=0.3, gamma=0.1, unit=unit, alpha=0.7)
    whole = merging.merge(
        opened[0],
        opened[1:],
        made,
        tmp_path / "whole.safetensors",
        backend=reference.Reference(),
        max_norm_ratio=None,
    )
    parts = local.merge(
        opened[0],
        opened[1:],
        made,
        tmp_path / "parts.safetensors",
        backend=gpu_backend.Gpu(DEVICE),
        max_norm_ratio=None,
        max_shard_size=100_000,
    )
    assert parts.output.name.endswith(".index.json")
    assert parts.weights_digest == whole.weights_digest
