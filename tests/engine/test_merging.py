"""The merge: golden files, an independent implementation, and what must stop it."""

import itertools
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import checkpoints, merging, recipe

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture
def store(tmp_path):
    """Writes state dicts to files and opens them."""
    numbers = itertools.count()

    def open_all(*states):
        opened = []
        for state in states:
            path = tmp_path / f"{next(numbers)}.safetensors"
            save_file(state, path)
            opened.append(checkpoints.Checkpoint.open(path))
        return opened

    return open_all


def run(opened, settings, output, **options):
    base, *sources = opened
    labels = [f"source {number}" for number in range(len(sources))]
    options = {"max_norm_ratio": None} | options  # random sources are far from a random base
    result = merging.merge(base, sources, settings, output, labels=labels, **options)
    return result, load_file(result.output) if result.output == Path(output) else None


# What two independent programs made of the same inputs.


@pytest.mark.parametrize(
    ("golden", "fields"),
    [
        ("row_keep0.14_remove0.01_alpha0.3", {"density": 0.14, "gamma": 0.01, "alpha": 0.3}),
        ("row_keep0.20_remove0.10_alpha0.4", {"density": 0.20, "gamma": 0.10, "alpha": 0.4}),
    ],
)
def test_rows_equal_the_papers_code_to_the_bit(tmp_path, golden, fields):
    opened = [
        checkpoints.Checkpoint.open(GOLDENS / f"{name}.safetensors")
        for name in ("base", "source0", "source1", "source2")
    ]
    settings = recipe.MergeRecipe(unit="row", **fields)
    _, merged = run(opened, settings, tmp_path / "out.safetensors")
    expected = load_file(GOLDENS / f"merged_{golden}.safetensors")
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


@pytest.mark.parametrize("consensus", ["none", "mass"])
def test_tensors_equal_mergekit(tmp_path, consensus):
    opened = [
        checkpoints.Checkpoint.open(GOLDENS / f"{name}.safetensors")
        for name in ("base", "source0", "source1", "source2")
    ]
    settings = recipe.MergeRecipe(
        density=0.14, gamma=0.01, alpha=1.0, weights=(0.3, 0.3, 0.3), consensus=consensus
    )
    _, merged = run(opened, settings, tmp_path / "out.safetensors")
    signed = "signed_" if consensus == "mass" else ""
    expected = load_file(
        GOLDENS / f"merged_tensor_{signed}density0.14_gamma0.01_weight0.3.safetensors"
    )
    for name in expected:  # mergekit scales each task vector before it sums: 2e-7
        torch.testing.assert_close(merged[name], expected[name], atol=2e-7, rtol=0)


# The specification once more, element by element in NumPy scalars.


def by_hand(base, sources, settings):
    """Every tensor merged with loops over elements, as the specification is written."""
    weights = settings.weight_of(len(sources))
    names = sorted(name for name in base if settings.merges(name))

    def magnitudes(source, name):
        one, two = np.float32(source[name].numpy()), np.float32(base[name].numpy())
        return (one - two).reshape(-1)

    def ranks_kept(values):
        n = len(values)
        high = int(Fraction(str(settings.gamma)) * n)
        keep = int(Fraction(str(settings.density)) * n)
        order = sorted(range(n), key=lambda i: (abs(values[i]), i))
        return set(order[n - high - keep : n - high])

    masks = []
    for source in sources:
        mask = {}
        if settings.unit == "model":
            long = [(name, i) for name in names for i in range(base[name].numel())]
            long = [(name, i) for name, i in long if base[name].dim()]
            taus = {name: magnitudes(source, name) for name in names}
            kept = ranks_kept([taus[name][i] for name, i in long])
            for name in names:
                mask[name] = {i for k, (other, i) in enumerate(long) if k in kept and other == name}
                if base[name].dim() == 0:
                    mask[name] = {0}
        for name in names if settings.unit != "model" else []:
            tau = magnitudes(source, name)
            if base[name].dim() == 0:
                mask[name] = {0}
                continue
            length = base[name].shape[-1] if settings.unit == "row" else len(tau)
            mask[name] = {
                start + i
                for start in range(0, len(tau), length)
                for i in ranks_kept(tau[start : start + length])
            }
        masks.append(mask)

    merged = {}
    for name in base:
        merged[name] = base[name].clone()
        if name not in names:
            continue
        flat = np.float32(base[name].numpy()).reshape(-1)
        for i in range(len(flat)):
            terms = [
                (np.float32(w), np.float32(w) * magnitudes(source, name)[i])
                for w, source, mask in zip(weights, sources, masks, strict=True)
                if i in mask[name]
            ]
            if settings.consensus == "mass":
                total = np.float32(0)
                for _, term in terms:
                    total = total + term
                terms = [(w, t) for w, t in terms if (t > 0) == (total >= 0) and t != 0]
            acc, divisor = np.float32(0), np.float32(0)
            for weight, term in terms:
                acc = acc + term
                divisor = divisor + (weight if term != 0 else np.float32(0))
            if settings.combine == "mean" and any(term != 0 for _, term in terms):
                acc = acc / divisor
            flat[i] = flat[i] + np.float32(settings.alpha) * acc
        merged[name] = torch.from_numpy(flat).reshape(base[name].shape).to(base[name].dtype)
    return merged


STATES = [
    {
        "a.weight": torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)),
        "b.bias": torch.randn(3, generator=torch.Generator().manual_seed(10 + seed)).round(),
        "c.scale": torch.tensor(1.0 + seed / 8),
        "d.conv": torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(20 + seed)).half(),
    }
    for seed in range(4)
]


@pytest.mark.parametrize("unit", recipe.UNITS)
@pytest.mark.parametrize(
    ("consensus", "combine", "weights"),
    [
        ("none", "sum", ()),
        ("mass", "sum", (0.5, 2.0, -1.0)),
        ("none", "mean", (1.0, 3.0, 0.25)),
        ("mass", "mean", ()),
    ],
)
@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (1.0, 0.0), (0.29, 0.0), (0.3, 0.7)])
def test_every_recipe_equals_the_specification(
    tmp_path, store, unit, consensus, combine, weights, density, gamma
):
    settings = recipe.MergeRecipe(
        density=density,
        gamma=gamma,
        alpha=0.7,
        unit=unit,
        consensus=consensus,
        combine=combine,
        weights=weights,
        exclude=("b.*",),
    )
    _, merged = run(store(*STATES), settings, tmp_path / "out.safetensors")
    expected = by_hand(STATES[0], STATES[1:], settings)
    for name in expected:
        assert torch.equal(merged[name], expected[name]), name


def test_presets_do_what_their_names_say(tmp_path, store):
    opened = store(*STATES)
    settings = recipe.MergeRecipe.from_method("weight_average", sources=3)
    _, merged = run(opened, settings, tmp_path / "average.safetensors")
    for name in STATES[0]:
        mean = torch.stack([state[name].double() for state in STATES[1:]]).mean(0)
        atol = 2e-3 if merged[name].dtype == torch.float16 else 1e-6
        torch.testing.assert_close(merged[name].double(), mean, atol=atol, rtol=0)
    settings = recipe.MergeRecipe.from_method("task_arithmetic", sources=1, alpha=1)
    _, merged = run(opened[:2], settings, tmp_path / "one.safetensors")
    torch.testing.assert_close(merged["a.weight"], STATES[1]["a.weight"], atol=1e-6, rtol=0)


def test_zero_alpha_gives_the_base(tmp_path, store):
    settings = recipe.MergeRecipe(density=0.5, alpha=0)
    _, merged = run(store(*STATES), settings, tmp_path / "out.safetensors")
    assert all(torch.equal(merged[name], STATES[0][name]) for name in merged)


def test_mixed_dtypes_and_the_output_dtype(tmp_path, store):
    base, *sources = STATES
    mixed = [
        {name: tensor.to(dtype) for name, tensor in source.items()}
        for source, dtype in zip(
            sources, [torch.bfloat16, torch.float16, torch.float64], strict=True
        )
    ]
    settings = recipe.MergeRecipe(density=0.5, dtype="bfloat16", exclude=("b.bias",))
    _, merged = run(store(base, *mixed), settings, tmp_path / "out.safetensors")
    assert merged["a.weight"].dtype == merged["c.scale"].dtype == torch.bfloat16
    assert merged["b.bias"].dtype == torch.float32  # not merged: the base's, untouched
    widened = [{name: tensor.float() for name, tensor in source.items()} for source in mixed]
    expected = by_hand(base, widened, settings)
    assert torch.equal(merged["a.weight"], expected["a.weight"].bfloat16())


def test_a_float64_base_keeps_its_precision(tmp_path, store):
    base = {"x": torch.tensor([1 + 2**-50, 2.0], dtype=torch.float64)}
    source = {"x": torch.tensor([1 + 2**-50, 2.5], dtype=torch.float64)}
    _, merged = run(store(base, source), recipe.MergeRecipe(density=1), tmp_path / "o.safetensors")
    assert torch.equal(merged["x"], source["x"])


def test_integers_and_bools_are_the_bases(tmp_path, store):
    extra = {"ids": torch.arange(3), "flag": torch.tensor([True])}
    opened = store(*({**state, **extra} for state in STATES))
    _, merged = run(opened, recipe.MergeRecipe(density=0.5), tmp_path / "out.safetensors")
    assert torch.equal(merged["ids"], extra["ids"])
    assert torch.equal(merged["flag"], extra["flag"])


def test_integers_that_differ_stop_the_merge(tmp_path, store):
    opened = store(
        {"x": torch.ones(2), "ids": torch.tensor([0, 1, 2])},
        {"x": torch.ones(2), "ids": torch.tensor([0, 7, 2])},
    )
    words = r"source 0 has 7 in the int64 tensor 'ids' at flat index 1, the base has 1; integer"
    with pytest.raises(errors.MergeError, match=words):
        run(opened, recipe.MergeRecipe(density=0.5), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_empty_tensors_and_one_source(tmp_path, store):
    opened = store(
        {"x": torch.empty(0, 3), "y": torch.ones(4)}, {"x": torch.empty(0, 3), "y": torch.zeros(4)}
    )
    for unit in recipe.UNITS:
        settings = recipe.MergeRecipe(density=0.5, gamma=0.25, alpha=1, unit=unit)
        _, merged = run(opened, settings, tmp_path / f"{unit}.safetensors")
        assert merged["x"].shape == (0, 3)
        assert merged["y"].tolist() == [1, 0, 0, 1]  # all equal: the index decides


def test_a_source_equal_to_the_base_changes_nothing(tmp_path, store):
    opened = store(STATES[0], STATES[0])
    result, merged = run(opened, recipe.MergeRecipe(density=0.5), tmp_path / "out.safetensors")
    assert all(torch.equal(merged[name], STATES[0][name]) for name in merged)
    assert sum(entry.energy for entry in result.statistics) == 0


def test_tied_weights_stay_equal(tmp_path, store):
    def tied(value):
        weight = torch.full((4, 4), value) * torch.arange(16).reshape(4, 4)
        return {"embedding": weight.clone(), "head": weight.clone()}

    opened = store(tied(1.0), tied(1.5), tied(0.25))
    _, merged = run(opened, recipe.MergeRecipe(density=0.5), tmp_path / "out.safetensors")
    assert torch.equal(merged["embedding"], merged["head"])


def test_two_hundred_sources(tmp_path, store):
    states = [{"x": torch.full((3,), float(number))} for number in range(201)]
    settings = recipe.MergeRecipe.from_method("weight_average", sources=200)
    _, merged = run(store(*states), settings, tmp_path / "out.safetensors")
    torch.testing.assert_close(merged["x"], torch.full((3,), 100.5))


def test_no_source_is_an_error(tmp_path, store):
    with pytest.raises(errors.MergeError, match=r"there are no sources; .*--source"):
        run(store(STATES[0]), recipe.MergeRecipe(density=0.5), tmp_path / "out.safetensors")


def test_every_difference_is_listed(tmp_path, store):
    base = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2), "n": torch.arange(2)}
    one = {
        "a": torch.ones(2),
        "c": torch.ones(3),
        "z": torch.ones(1),
        "y": torch.ones(1),
        "n": torch.arange(2),
    }
    two = dict(base, n=torch.ones(2))
    with pytest.raises(errors.MergeError) as caught:
        run(store(base, one, two), recipe.MergeRecipe(density=0.5), tmp_path / "out.safetensors")
    assert str(caught.value).splitlines() == [
        "the sources don't have the base's tensors:",
        "  source 0: missing: b",
        "  source 0: extra: y, z",
        "  source 0: other shape: c [3] instead of [2]",
        "  source 1: other kind of dtype: n float32 instead of int64",
        "They are not fine-tuned from it. Give the base that they come from",
    ]
    assert not list(tmp_path.glob("out*"))


def test_patterns_that_choose_nothing_are_an_error(tmp_path, store):
    settings = recipe.MergeRecipe(density=0.5, include=("nothing.*",))
    with pytest.raises(errors.MergeError, match=r"matches include \['nothing\.\*'\]"):
        run(store(*STATES), settings, tmp_path / "out.safetensors")


def test_float8_is_refused_with_the_remedy(tmp_path, store):
    eight = {"x": torch.ones(4).to(torch.float8_e4m3fn)}
    with pytest.raises(errors.MergeError, match="float8_e4m3fn, which can't be merged; convert"):
        run(store(eight, eight), recipe.MergeRecipe(density=0.5), tmp_path / "out.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("unit", recipe.UNITS)
@pytest.mark.parametrize("exclude", [(), ("a.weight",)])
def test_an_input_that_is_not_finite_stops_the_merge(tmp_path, store, value, place, unit, exclude):
    states = [{name: tensor.clone() for name, tensor in state.items()} for state in STATES]
    states[place]["a.weight"][2, 3] = value
    states[place]["a.weight"][4, 0] = value
    owner = "the base" if place == 0 else "source 1"
    settings = recipe.MergeRecipe(density=0.5, unit=unit, exclude=exclude)
    words = rf"{owner} has {value} in the tensor 'a\.weight' at flat index 17; a merge needs finite"
    with pytest.raises(errors.MergeError, match=words):
        run(store(*states), settings, tmp_path / "out.safetensors")
    assert not [name for name in os.listdir(tmp_path) if name.startswith((".", "out"))]


def test_a_result_that_overflows_stops_the_merge(tmp_path, store):
    base, source = {"x": torch.ones(3)}, {"x": torch.tensor([1.0, 3.0, 1.0])}
    settings = recipe.MergeRecipe(density=1, alpha=1e9, dtype="float16")
    words = r"the merged tensor 'x' overflows float16 at flat index 1; lower alpha"
    with pytest.raises(errors.MergeError, match=words):
        run(store(base, source), settings, tmp_path / "out.safetensors")


def test_weights_that_do_not_match_are_named(tmp_path, store):
    settings = recipe.MergeRecipe(density=0.5, weights=(1.0,))
    with pytest.raises(errors.RecipeError, match="the recipe has 1 weight for 3 sources"):
        run(store(*STATES), settings, tmp_path / "out.safetensors")


def test_sharded_in_and_out_give_the_same_digest(tmp_path, store):
    settings = recipe.MergeRecipe(density=0.5, gamma=0.1, unit="model")
    whole, _ = run(store(*STATES), settings, tmp_path / "whole.safetensors")
    again, _ = run(store(*STATES), settings, tmp_path / "again.safetensors")
    sharded, _ = run(store(*STATES), settings, tmp_path / "parts.safetensors", max_shard_size=50)
    assert sharded.output.name == "parts.safetensors.index.json"
    assert whole.weights_digest == again.weights_digest == sharded.weights_digest
    assert checkpoints.weights_digest(sharded.output) == whole.weights_digest
    base = checkpoints.Checkpoint.open(sharded.output)
    from_shards, _ = run([base, *store(*STATES[1:])], settings, tmp_path / "next.safetensors")
    from_whole, _ = run(
        [checkpoints.Checkpoint.open(whole.output), *store(*STATES[1:])],
        settings,
        tmp_path / "next2.safetensors",
    )
    assert from_shards.weights_digest == from_whole.weights_digest


def test_statistics_say_what_the_mask_did(tmp_path, store):
    settings = recipe.MergeRecipe(density=0.4, gamma=0.2)
    opened = store({"x": torch.zeros(5)}, {"x": torch.tensor([3.0, -1, 5, 2, -4])})
    result, merged = run(opened, settings, tmp_path / "out.safetensors")
    (entry,) = result.statistics
    assert (entry.elements, entry.kept) == (5, 2)
    assert (entry.smallest_kept, entry.largest_kept) == (3.0, 4.0)
    assert (entry.energy, entry.energy_kept) == (55.0, 25.0)
    assert merged["x"].tolist() == [3, 0, 0, 0, -4]


def test_progress_counts_every_byte_once(tmp_path, store):
    seen = []

    class Stage:
        def __enter__(self):
            return seen.append

        def __exit__(self, *exc):
            return None

    def report(description, *, total, unit=""):
        assert unit == "bytes"
        seen.append(-total)
        return Stage()

    opened = store(*STATES)
    settings = recipe.MergeRecipe(density=0.5, exclude=("b.*",))
    run(opened, settings, tmp_path / "out.safetensors", show=report)
    assert sum(seen) == 0
