"""Running statistics and counters of normalization layers: the base's, said so, never summed."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import checkpoints, merging, recipe, running
from mlflow_breadcrumbs.engine.backends import choosing


def state(step=0):
    """A layer and its BatchNorm, trained for so many steps from the same start."""
    generator = torch.Generator().manual_seed(step)
    drift = 0.1 * torch.rand(64, generator=generator) if step else torch.zeros(64)
    return {
        "conv.weight": torch.linspace(-1, 1, 640).reshape(64, 10) + drift[:, None],
        "bn.weight": torch.ones(64) + drift,
        "bn.running_mean": torch.zeros(64) + drift,
        # Each source's variance is smaller: three changes added up go below zero.
        "bn.running_var": torch.full((64,), 0.1) - (0.09 if step else 0),
        "bn.num_batches_tracked": torch.tensor(100 + 7 * step),
    }


@pytest.fixture
def paths(tmp_path):
    made = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for number, path in enumerate(made):
        save_file(state(number), path)
    return made


def merge(paths, settings, output, **options):
    base, *sources = (checkpoints.Checkpoint.open(path) for path in paths)
    options = {"max_norm_ratio": None} | options
    result = merging.merge(base, sources, settings, output, **options)
    return result, load_file(output)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("unit", recipe.UNITS)
def test_they_are_the_bases_whatever_the_sources_have(paths, tmp_path, backend, unit):
    settings = recipe.MergeRecipe(density=0.5, unit=unit)
    result, merged = merge(
        paths, settings, tmp_path / "out.safetensors", backend=choosing.choose("cpu", backend)
    )
    base = state()
    for name in ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked"):
        assert torch.equal(merged[name], base[name])
    assert not torch.equal(merged["bn.weight"], base["bn.weight"])
    assert result.running == ("bn.num_batches_tracked", "bn.running_mean", "bn.running_var")
    assert result.merged_tensors == 2


def test_what_is_merged_has_the_bits_that_it_has_without_them(paths, tmp_path):
    settings = recipe.MergeRecipe(density=0.3, gamma=0.01, unit="model")
    _, merged = merge(paths, settings, tmp_path / "with.safetensors")
    for path in paths:
        kept = {n: t for n, t in load_file(path).items() if n in ("conv.weight", "bn.weight")}
        save_file(kept, path)
    _, bare = merge(paths, settings, tmp_path / "without.safetensors")
    assert all(torch.equal(merged[name], tensor) for name, tensor in bare.items())


def test_a_pattern_that_names_them_takes_them_in(paths, tmp_path):
    settings = recipe.MergeRecipe(density=1, include=("*", "*.running_mean"))
    result, merged = merge(paths, settings, tmp_path / "out.safetensors")
    assert result.running == ("bn.num_batches_tracked", "bn.running_var")
    assert not torch.equal(merged["bn.running_mean"], state()["bn.running_mean"])


def test_as_releases_before_did_a_variance_becomes_negative(paths, tmp_path):
    for path in paths:
        content = load_file(path)
        del content["bn.num_batches_tracked"]
        save_file(content, path)
    settings = recipe.MergeRecipe(density=1)
    _, merged = merge(paths, settings, tmp_path / "out.safetensors", keep_running=False)
    assert float(merged["bn.running_var"].min()) < 0


def test_an_excluded_integer_tensor_may_differ(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for number, path in enumerate(paths):
        save_file({"x": torch.ones(4) + number, "ids": torch.tensor([0, number])}, path)
    with pytest.raises(errors.MergeError, match=r"or --exclude the tensor, and the base's is kept"):
        merge(paths, recipe.MergeRecipe(density=1), tmp_path / "out.safetensors")
    settings = recipe.MergeRecipe(density=1, exclude=("ids",))
    _, merged = merge(paths, settings, tmp_path / "out.safetensors")
    assert merged["ids"].tolist() == [0, 0]


def test_the_command_says_so(paths, tmp_path):
    sources = [part for path in paths[1:] for part in ("--source", str(path))]
    arguments = ["merge-files", "--base", str(paths[0]), *sources, "--overwrite"]
    arguments += ["--output", str(tmp_path / "out.safetensors"), "--max-norm-ratio", "inf"]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.output
    said = (
        "the running statistics and counters of normalization layers are the base's: "
        "bn.num_batches_tracked, bn.running_mean, bn.running_var. They were measured on images "
        "and don't add up."
    )
    assert f"Note: {said}" in done.output
    found = json.loads(CliRunner().invoke(cli.main, [*arguments, "--json"]).stdout)
    assert found["notes"][0].startswith(said)


def test_a_long_list_is_shortened():
    names = [f"layer{number}.running_var" for number in range(9)]
    assert "layer2.running_var, … (9 tensors). They" in running.note(names)
