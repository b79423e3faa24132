"""Merges that decompose matrices: an independent version, every backend, what must stop them."""

import formulas
import gpu_device
import numpy as np
import pytest
import torch
import zoos
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import merging, recipe, tolerance
from mlflow_breadcrumbs.engine.backends import reference, singular
from mlflow_breadcrumbs.engine.backends.cpu import cpu_backend, decomposing, masking
from mlflow_breadcrumbs.engine.backends.gpu import gpu_backend

SHAPES = [(), (0,), (0, 4), (1,), (9,), (1, 6), (6, 1), (12, 20), (31, 8), (3, 2, 5)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def run(opened, made, output, backend=None, **options):
    options = {"max_norm_ratio": None, "overwrite": True, "verify": True} | options
    labels = [f"source {number}" for number in range(len(opened) - 1)]
    return merging.merge(
        opened[0], opened[1:], made, output, labels=labels, backend=backend, **options
    )


def states(sources=3, dtype=torch.float32, seed=0):
    """A base of every kind of tensor, and sources a small step away from it."""
    generator = torch.Generator().manual_seed(seed)
    base = {
        f"t{number}": torch.randn(shape, generator=generator).to(dtype)
        for number, shape in enumerate(SHAPES)
    }
    tuned = [
        {
            name: (tensor.double() + 0.01 * torch.randn(tensor.shape, generator=generator)).to(
                dtype
            )
            for name, tensor in base.items()
        }
        for _ in range(sources)
    ]
    return [base, *tuned]


def by_formula(made, contributions, whole, weights):
    """What a matrix's sources are combined to."""
    if made.combine == "covariance":
        found = formulas.covariance_by_formula(
            contributions, whole, made.ridge, made.normalize, made.center
        )
    elif made.combine == "ace":
        found = formulas.ace_by_formula(contributions, whole, made.ridge)
    elif made.combine == "mean":
        present = sum(w * (c != 0) for w, c in zip(weights, contributions, strict=True))
        total = np.sum(contributions, axis=0, dtype=np.float64)
        found = total / np.where(sum(c != 0 for c in contributions), present, 1)
    elif made.combine == "sum":
        found = np.sum(contributions, axis=0, dtype=np.float64)
    else:
        formula = {
            "tsv": formulas.tsv_by_formula,
            "iso": formulas.iso_by_formula,
            "iso_cts": formulas.iso_cts_by_formula,
        }
        found = formula[made.combine](contributions)
    if made.calibrate == "svc":
        floor = {"tsv": 1, "iso": 0.2, "iso_cts": 0.2}.get(made.combine, 1 / len(whole))
        total = sum(contributions) if made.combine in ("iso", "iso_cts") else None
        found = formulas.calibrated_by_formula(found, whole, floor, total)
    return found


def expected(all_states, made):
    """The merge in plain NumPy: the reference's masks, then the papers' formulas."""
    base, *tuned = all_states
    weights = [np.float32(weight) for weight in made.weight_of(len(tuned))]
    merged = {}
    for name, tensor in base.items():
        theta = tensor.float()
        if not made.merges(name):
            merged[name] = tensor
            continue
        contributions, whole = [], []
        for state, weight in zip(tuned, weights, strict=True):
            tau = state[name].float() - theta
            kept = reference.keep_mask(tau, made.unit, made.density, made.gamma)
            contributions.append(torch.where(kept, tau, 0.0).numpy() * weight)
            whole.append(tau.numpy() * weight)
        if made.consensus == "mass":
            signs = np.sum(contributions, axis=0) >= 0
            contributions = [np.where((c > 0) == signs, c, 0) for c in contributions]
        if made.vectors == "whole_mean" and theta.dim() != 2:
            update = np.mean(whole, axis=0, dtype=np.float64)
        elif theta.dim() == 2 and theta.numel():
            update = by_formula(made, contributions, whole, weights)
        elif made.vectors == "same":
            update = np.sum(contributions, axis=0, dtype=np.float64)
        else:
            update = np.mean(contributions, axis=0, dtype=np.float64)
        update = np.float64(made.alpha) * update
        merged[name] = torch.as_tensor(theta.double().numpy() + update).to(tensor.dtype)
    return merged


@pytest.mark.parametrize(
    "fields",
    [
        {"combine": "tsv", "density": 1},
        {"combine": "iso", "density": 1},
        {"combine": "tsv", "density": 0.5, "gamma": 0.1, "alpha": 0.7, "weights": (1, -0.5, 2)},
        {"combine": "iso", "density": 0.3, "gamma": 0.05, "unit": "row", "alpha": 2},
        {"combine": "tsv", "density": 1, "exclude": ("t7", "t4")},
        {"combine": "iso", "density": 1, "include": ("t[5-9]",)},
        {"combine": "covariance", "density": 1},
        {"combine": "covariance", "density": 0.5, "alpha": 0.7, "weights": (1, -0.5, 2)},
        {"combine": "covariance", "density": 0.5, "gamma": 0.1, "ridge": 0.1, "normalize": True},
        {"density": 0.14, "gamma": 0.01, "calibrate": "svc"},
        {"density": 0.5, "calibrate": "svc", "consensus": "mass", "weights": (1, -0.5, 2)},
        {"density": 0.5, "calibrate": "svc", "combine": "mean", "vectors": "mean"},
        {"density": 0.5, "calibrate": "svc", "vectors": "same", "alpha": 0.3},
        {"density": 1, "calibrate": "svc", "combine": "tsv"},
        {"density": 0.14, "gamma": 0.01, "calibrate": "svc", "vectors": "whole_mean"},
        {"combine": "tsv", "density": 0.3, "consensus": "mass", "vectors": "whole_mean"},
        {"combine": "covariance", "density": 0.5, "ridge": 0.01, "center": True},
        {"combine": "iso_cts", "density": 1},
        {"combine": "iso", "density": 1, "calibrate": "svc"},
        {"combine": "iso_cts", "density": 0.5, "calibrate": "svc", "weights": (1, -0.5, 2)},
        {"combine": "ace", "density": 1, "ridge": 1e-5},
        {"combine": "ace", "density": 0.5, "ridge": 1e-5, "weights": (1, -0.5, 200)},
    ],
)
def test_a_merge_is_what_the_papers_say(tmp_path, fields):
    all_states, made = states(), recipe.MergeRecipe(**fields)
    result = run(zoos.opened(all_states, tmp_path), made, tmp_path / "out.safetensors")
    merged = load_file(result.output)
    for name, tensor in expected(all_states, made).items():
        torch.testing.assert_close(merged[name], tensor, atol=2e-7, rtol=2e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", ["tsv_m", "iso_c"])
def test_every_dtype(tmp_path, method, dtype):
    all_states = states(dtype=dtype)
    made = recipe.MergeRecipe.from_method(method, sources=3)
    result = run(zoos.opened(all_states, tmp_path), made, tmp_path / "out.safetensors")
    merged = load_file(result.output)
    allowed = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    for name, tensor in expected(all_states, made).items():
        assert merged[name].dtype == dtype
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=allowed)


@st.composite
def merges(draw):
    """States, a recipe that decomposes, and how the work is cut up."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    sources = draw(st.integers(1, 4))
    found = [{} for _ in range(sources + 1)]
    for number, shape in enumerate(draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))):
        name = f"layer.{number}"
        base = torch.randn(shape, generator=generator)
        wide = draw(st.integers(0, 9)) == 0
        found[0][name] = base.double() if wide else base.to(draw(st.sampled_from(FLOATS)))
        for state in found[1:]:
            step = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.0, 0.1]))
            state[name] = (base + step).to(draw(st.sampled_from(FLOATS)))
    density = draw(st.sampled_from([0.14, 0.5, 1.0]))
    made = recipe.MergeRecipe(
        density=density,
        gamma=draw(st.sampled_from([0.0, 0.1])) if density < 1 else 0.0,
        alpha=draw(st.sampled_from([0.3, -0.7, 1.0])),
        weights=draw(st.sampled_from([(), (0.7, -0.4, 0.0, 2.5)[:sources]])),
        unit=draw(st.sampled_from(["tensor", "row", "model"])),
        consensus=draw(st.sampled_from(["none", "mass"])),
        combine=draw(st.sampled_from(recipe.COMBINE)),
        calibrate=draw(st.sampled_from(["none", "svc"])),
        dtype=draw(st.sampled_from(["base", "base", "bfloat16", "float64"])),
    )
    return found, made, draw(st.integers(1, 4)), draw(st.sampled_from([1, 100, 1 << 16]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("merges")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(merges())
def test_on_one_machine_every_backend_gives_the_same_bits(folder, case):
    found, made, threads, long = case
    opened = zoos.opened(found, folder)
    backends = [reference.Reference(), cpu_backend.Cpu(threads), cpu_backend.Cpu(1)]
    if gpu_device.DEVICE == "cpu":  # a real GPU has other last bits
        backends.append(gpu_backend.Gpu("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "LONG", long)
        results = [run(opened, made, folder / "out.safetensors", backend) for backend in backends]
    first = results[0]
    for result in results[1:]:
        assert result.weights_digest == first.weights_digest
        assert (result.base_digest, result.source_digests) == (
            first.base_digest,
            first.source_digests,
        )
        assert result.touched == pytest.approx(first.touched)
        for ours, theirs in zip(result.statistics, first.statistics, strict=True):
            assert (ours.tensor, ours.source, ours.kept) == (
                theirs.tensor,
                theirs.source,
                theirs.kept,
            )
            assert (ours.smallest_kept, ours.largest_kept) == (
                theirs.smallest_kept,
                theirs.largest_kept,
            )
            assert ours.energy_kept == pytest.approx(theirs.energy_kept, rel=1e-9)


PRESETS = {name: recipe.MergeRecipe.from_method(name, sources=3) for name in recipe.PRESETS}


@pytest.mark.parametrize("method", [name for name, made in PRESETS.items() if not made.bit_exact])
def test_the_device_of_the_gpu_backend_decomposes_within_the_tolerance(tmp_path, method):
    made = PRESETS[method]
    opened = zoos.opened(states(), tmp_path)
    ours = run(opened, made, tmp_path / "gpu.safetensors", gpu_backend.Gpu(gpu_device.DEVICE))
    theirs = run(opened, made, tmp_path / "cpu.safetensors", cpu_backend.Cpu(2))
    found = tolerance.differences(
        load_file(ours.output), load_file(theirs.output), made, theirs.tolerances
    )
    assert all(difference.within for difference in found)


def test_masks_and_touched_are_those_of_the_sum(tmp_path):
    opened = zoos.opened(states(), tmp_path)
    fields = {"density": 0.3, "gamma": 0.1, "consensus": "mass"}
    plain = run(opened, recipe.MergeRecipe(**fields), tmp_path / "sum.safetensors")
    ours = run(opened, recipe.MergeRecipe(combine="iso", **fields), tmp_path / "iso.safetensors")
    assert ours.statistics == plain.statistics
    assert ours.touched == plain.touched
    assert (plain.tolerances, ours.tolerances) == ({}, {"F32": 1e-6})


def test_tensors_that_are_no_matrices_have_fixed_bits(tmp_path):
    """They are what a sum gives whose alpha is divided by the number of sources."""
    opened = zoos.opened(states(), tmp_path)
    fields = {"density": 0.3, "gamma": 0.1, "weights": (1, 0.5, 2)}
    output = tmp_path / "out.safetensors"
    merged = [
        load_file(run(opened, recipe.MergeRecipe(**fields, **more), output).output)
        for more in ({"alpha": 0.7 / 3}, {"alpha": 0.7, "combine": "tsv"})
    ]
    for name, tensor in merged[0].items():
        if tensor.dim() != 2:
            assert torch.equal(merged[1][name], tensor)


def test_one_source_gives_the_source(tmp_path):
    all_states = states(sources=1)
    made = recipe.MergeRecipe.from_method("tsv_m", sources=1)
    result = run(zoos.opened(all_states, tmp_path), made, tmp_path / "out.safetensors")
    for name, tensor in load_file(result.output).items():
        torch.testing.assert_close(tensor, all_states[1][name], atol=1e-6, rtol=1e-5)


def test_a_source_like_the_base_changes_nothing_but_the_rank(tmp_path):
    base, tuned, _, _ = states()
    made = recipe.MergeRecipe.from_method("iso_c", sources=2)
    merged = [
        load_file(run(zoos.opened(some, tmp_path), made, tmp_path / "out.safetensors").output)
        for some in ([base, tuned], [base, tuned, base])
    ]
    assert torch.equal(merged[0]["t7"], merged[1]["t7"])


@pytest.mark.parametrize("unit", ["tensor", "model"])
def test_a_value_that_is_not_finite_is_named_as_ever(tmp_path, unit):
    all_states = states()
    all_states[1]["t8"][3, 2] = float("nan")
    all_states[3]["t7"][0, 5] = float("inf")
    opened = zoos.opened(all_states, tmp_path)
    found = set()
    for combine in ("sum", "tsv", "iso"):
        made = recipe.MergeRecipe(density=0.5, unit=unit, combine=combine)
        for backend in (reference.Reference(), cpu_backend.Cpu(3)):
            with pytest.raises(errors.MergeError) as caught:
                run(opened, made, tmp_path / "out.safetensors", backend)
            found.add(str(caught.value))
    assert len(found) == 1
    first = "source 0 has nan in the tensor 't8'" if unit == "model" else "source 2 has inf"
    assert found.pop().startswith(first)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("backend", [reference.Reference(), cpu_backend.Cpu(2)])
def test_a_change_beyond_float32_is_explained(tmp_path, backend):
    all_states = states()
    all_states[0]["t7"][1, 1], all_states[2]["t7"][1, 1] = -3e38, 3e38
    made = recipe.MergeRecipe(density=1, combine="tsv")
    words = "source 1 changes the tensor 't7' at flat index 21 by more than float32 can hold, so"
    with pytest.raises(errors.MergeError, match=words):
        run(zoos.opened(all_states, tmp_path), made, tmp_path / "out.safetensors", backend)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_result_that_overflows_is_explained(tmp_path):
    made = recipe.MergeRecipe(density=1, combine="iso", alpha=1e9, dtype="float16")
    with pytest.raises(errors.MergeError, match=r"'t.' overflows float16 at flat index \d+; lower"):
        run(zoos.opened(states(), tmp_path), made, tmp_path / "out.safetensors")


@pytest.mark.parametrize("backend", [reference.Reference(), cpu_backend.Cpu(2)])
def test_a_decomposition_that_fails_names_the_tensor(tmp_path, monkeypatch, backend):
    def fails(*arguments, **options):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    made = recipe.MergeRecipe(density=1, combine="tsv")
    words = r"the tensor 't5' failed \(failed to converge\); leave it out \(--exclude\), or"
    with pytest.raises(errors.MergeError, match=words):
        run(zoos.opened(states(), tmp_path), made, tmp_path / "out.safetensors", backend)


def test_a_device_without_room_is_named(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(singular, "combine", fails)
    made = recipe.MergeRecipe(density=1, combine="tsv")
    with pytest.raises(errors.DeviceError, match="ran out of memory on 'cpu'; free the device, or"):
        run(
            zoos.opened(states(), tmp_path),
            made,
            tmp_path / "out.safetensors",
            cpu_backend.Cpu(2),
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_progress_comes_to_all_bytes(tmp_path):
    opened = zoos.opened(states(), tmp_path)
    told = []
    job = merging.plan(opened[0], opened[1:], recipe.MergeRecipe(density=1, combine="tsv"))

    class Nowhere:
        def write(self, name, tensor):
            pass

    decomposing.Decomposing(2).run(job, Nowhere(), told.append)
    assert sum(told) == sum(checkpoint.nbytes for checkpoint in opened)
    assert len(told) == len(opened) * len(SHAPES)


def test_threads_are_given_back(tmp_path):
    before = torch.get_num_threads()
    made = recipe.MergeRecipe(density=1, combine="iso")
    run(zoos.opened(states(), tmp_path), made, tmp_path / "out.safetensors", cpu_backend.Cpu(3))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("method", ["actmat", "tact"])
def test_as_many_rows_in_all_as_columns_do_not_blow_up_the_mean(tmp_path, method):
    """With four sources, four times as wide as high, the covariances' sum is nearly singular."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(48, 192, generator=generator)
    tuned = [base + 0.01 * torch.randn(48, 192, generator=generator) for _ in range(4)]
    opened = zoos.opened([{"w": each} for each in (base, *tuned)], tmp_path)
    mean = float((torch.stack(tuned) - base).mean(0).norm())
    lengths = []
    for fields in ({}, {"ridge": 0.0}):
        made = recipe.MergeRecipe.from_method(method, sources=4, **fields)
        result = run(opened, made, tmp_path / f"{len(lengths)}.safetensors")
        lengths.append(float((load_file(result.output)["w"] - base).norm()) / mean)
    ours, published = lengths
    assert ours < 15  # three sources: 5, five: 8.5
    assert published > 3 * ours
