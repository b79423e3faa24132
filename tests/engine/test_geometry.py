"""The sums over task vectors, held against plain arithmetic on whole tensors."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, merging, recipe
from mlflow_breadcrumbs.engine.backends import reference
from mlflow_breadcrumbs.engine.backends.cpu import geometry, masking

SHAPES = {"a.weight": (37, 53), "b.bias": (11,), "c": (), "d.empty": (0, 4), "e.long": (3, 60001)}


def make(folder, *, dtype=torch.float32, sources=3):
    """Checkpoints of awkward shapes; source 1 leaves half of its elements alone."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    states = [base]
    for number in range(sources):
        state = {}
        for name, tensor in base.items():
            change = 0.1 * torch.randn(tensor.shape, generator=generator)
            if number == 1:
                change = torch.where(torch.rand(tensor.shape, generator=generator) < 0.5, change, 0)
            state[name] = tensor + change
        states.append(state)
    opened = []
    for number, state in enumerate(states):
        path = folder / f"{number}.safetensors"
        save_file({name: tensor.to(dtype) for name, tensor in state.items()}, path)
        opened.append(checkpoints.Checkpoint.open(path))
    return opened


def plain(job):
    """The same sums, tensor by tensor, in float64, with the masks as by definition."""
    keep, found = reference.keep_of(job), {}
    for name in job.merged:
        base = job.base.tensor(name).double()
        tau = [source.tensor(name).double() - base for source in job.sources]
        exact = [source.tensor(name).float() - base.float() for source in job.sources]
        if job.base.info(name).dtype == torch.float64:
            exact = tau
        kept = [vector * keep(number, exact[number]) for number, vector in enumerate(tau)]
        pairs = [[(one * other) for other in kept] for one in kept]
        found[name] = geometry.Geometry(
            elements=base.numel(),
            base_energy=float((base * base).sum()),
            products=np.array([[float((a * b).sum()) for b in tau] for a in tau]),
            kept_energy=np.array([float((vector * vector).sum()) for vector in kept]),
            both=np.array([[int((p != 0).sum()) for p in row] for row in pairs]),
            opposed=np.array([[int((p < 0).sum()) for p in row] for row in pairs]),
        )
    return found


@pytest.mark.parametrize(
    ("unit", "dtype"),
    [
        ("tensor", torch.float32),
        ("row", torch.bfloat16),
        ("model", torch.float32),
        ("model", torch.float64),
    ],
)
def test_the_sums_are_those_of_plain_arithmetic(tmp_path, unit, dtype):
    settings = recipe.MergeRecipe(density=0.3, gamma=0.05, unit=unit)
    base, *sources = make(tmp_path, dtype=dtype)
    job = merging.plan(base, sources, settings)
    read = []
    found = geometry.measure(job, threads=2, advance=read.append)
    assert sum(read) == sum(checkpoint.nbytes for checkpoint in job.inputs)
    assert list(found) == sorted(SHAPES)
    for name, expected in plain(job).items():
        made = found[name]
        assert made.elements == expected.elements
        # Sums of float32 products, block by block: six digits.
        np.testing.assert_allclose(made.base_energy, expected.base_energy, rtol=1e-5)
        np.testing.assert_allclose(made.products, expected.products, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(made.kept_energy, expected.kept_energy, rtol=1e-5)
        np.testing.assert_array_equal(made.both, expected.both)
        np.testing.assert_array_equal(made.opposed, expected.opposed)


def test_a_worked_example(tmp_path):
    """τ_0 = (3, 4, 0, 0) and τ_1 = (0, −4, 3, 0) on a base of norm 10; all is kept."""
    base = torch.tensor([5.0, 5.0, 5.0, 5.0])
    changes = [torch.tensor([3.0, 4.0, 0, 0]), torch.tensor([0, -4.0, 3.0, 0])]
    opened = []
    for number, state in enumerate([base, *(base + change for change in changes)]):
        save_file({"x": state}, tmp_path / f"{number}.safetensors")
        opened.append(checkpoints.Checkpoint.open(tmp_path / f"{number}.safetensors"))
    job = merging.plan(opened[0], opened[1:], recipe.MergeRecipe(density=1.0))
    found = geometry.measure(job, threads=1, advance=lambda _: None)["x"]
    assert found.base_norm == 10
    assert found.norms.tolist() == [5, 5]
    assert found.ratios.tolist() == [0.5, 0.5]
    assert found.cosines.tolist() == [[1, -16 / 25], [-16 / 25, 1]]
    assert found.energy_kept.tolist() == [1, 1]
    assert found.both.tolist() == [[2, 1], [1, 2]]
    assert found.overlaps.tolist() == [[1, 0.5], [0.5, 1]]
    assert found.conflicts.tolist() == [[0, 1], [1, 0]]


def test_a_vector_points_exactly_where_it_points():
    energies = np.random.default_rng(0).uniform(0, 10, 1000)
    nothing = np.zeros((1000, 1000), np.int64)
    found = geometry.Geometry(1, 1.0, np.diag(energies), energies, nothing, nothing)
    assert (np.diagonal(found.cosines) == 1).all()


def test_nothing_divides_by_zero(tmp_path):
    base, *_ = make(tmp_path, sources=1)
    zero = tmp_path / "zero.safetensors"
    save_file({"x": torch.zeros(4)}, zero)
    with checkpoints.Checkpoint.open(zero) as nothing:
        for start, sources in ((base, [base, base]), (nothing, [nothing])):
            job = merging.plan(start, sources, recipe.MergeRecipe(density=0.5))
            parts = geometry.measure(job, threads=1, advance=lambda _: None)
            found = geometry.total(parts.values(), len(sources))
            for values in (found.norms, found.ratios, found.cosines, found.energy_kept):
                assert not np.any(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_that_is_not_finite_is_named(tmp_path, dtype):
    base = {"x": torch.ones(2 * masking.BLOCK, dtype=dtype)}
    broken = {"x": base["x"].clone()}
    broken["x"][masking.BLOCK + 7] = float("nan")
    save_file(base, tmp_path / "base.safetensors")
    save_file(broken, tmp_path / "broken.safetensors")
    opened = [
        checkpoints.Checkpoint.open(tmp_path / f"{name}.safetensors") for name in ("base", "broken")
    ]
    job = merging.plan(opened[0], opened[1:], recipe.MergeRecipe(density=0.5), ["broken"])
    words = f"broken has nan in the tensor 'x' at flat index {masking.BLOCK + 7}"
    with pytest.raises(errors.MergeError, match=words):
        geometry.measure(job, threads=2, advance=lambda _: None)
