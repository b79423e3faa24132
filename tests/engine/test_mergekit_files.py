"""Files of mergekit: the same result as its own, and what a recipe can't say, all of it at once."""

import itertools
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import checkpoints, mergekit_files

GOLDENS = Path(__file__).parents[1] / "goldens"
FILES = sorted((GOLDENS / "mergekit").glob("*.yaml"))
NEAR = 2e-7
"""mergekit scales every task vector before it sums them."""
STEP = {"linear": 2**-23}
"""Of float32, relative: mergekit sums whole weights there, up to 2 and more, and not changes."""


def read(text, tmp_path):
    (tmp_path / "theirs.yaml").write_text(text)
    return mergekit_files.read(tmp_path / "theirs.yaml")


def run(*arguments, code=0):
    done = CliRunner().invoke(cli.main, [str(each) for each in arguments])
    assert done.exit_code == code, done.output
    return done


def test_there_is_a_vector_of_every_method():
    assert {mergekit_files.read(file).recipe.consensus for file in FILES} == {"none", "mass"}
    text = "".join(file.read_text() for file in FILES)
    assert all(f"merge_method: {method}\n" in text for method in mergekit_files.METHODS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_result_is_mergekits(file, tmp_path, monkeypatch):
    """`tests/goldens/mergekit/make.py` made the vectors, with mergekit 0.1.5."""
    monkeypatch.chdir(GOLDENS)
    output = tmp_path / "merged.safetensors"
    run("merge-files", "--mergekit", file, "--output", output)
    ours, theirs = load_file(output), load_file(file.with_suffix(".safetensors"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        step = STEP.get(file.stem, 0)
        torch.testing.assert_close(ours[name], tensor, atol=NEAR, rtol=step)
        base = load_file("base.safetensors")[name]
        assert not torch.equal(tensor, base)


TASK = """\
merge_method: task_arithmetic
base_model: base
models:
  - model: one
    parameters: {weight: 0.5}
  - model: two
    parameters: {weight: 0.25}
"""


def test_what_a_file_becomes(tmp_path):
    found = read(TASK, tmp_path)
    assert (found.base, found.sources, found.notes) == ("base", ("one", "two"), ())
    assert (found.recipe.weights, found.recipe.alpha) == ((0.5, 0.25), 1.0)
    assert (found.recipe.density, found.recipe.gamma, found.recipe.dtype) == (1.0, 0.0, "base")
    ties = read(TASK.replace("task_arithmetic", "ties") + "parameters: {density: 0.2}", tmp_path)
    assert (ties.recipe.combine, ties.recipe.consensus, ties.recipe.unit) == (
        "mean",
        "mass",
        "tensor",
    )
    assert "keeps an element of every tensor at least" in ties.notes[0]
    half = read(TASK + "dtype: bfloat16\nout_dtype: float32\n", tmp_path)
    assert half.recipe.dtype == "float32"
    assert "mergekit computes in bfloat16" in half.notes[0]
    plain = read(TASK + "parameters: {normalize: true, lambda: 3}", tmp_path)
    assert plain.recipe.alpha == 4.0
    same = read(
        TASK + "tokenizer_source: base\nparameters: {int8_mask: true, rescale: false}", tmp_path
    )
    assert same.recipe == found.recipe


def test_the_first_model_of_a_linear_merge_is_its_base(tmp_path):
    text = TASK.replace("task_arithmetic", "linear").replace("base_model: base\n", "")
    found = read(text, tmp_path)
    assert (found.base, found.sources) == ("one", ("two",))
    assert found.recipe.alpha * found.recipe.weights[0] == pytest.approx(1 / 3)
    assert "one, its first model, is the base" in found.notes[-1]


REFUSED = {
    "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]": (
        "line 1: merge_method is slerp, which is none of linear, task_arithmetic"
    ),
    "base_model: a\nmodels: [{model: b}]": "there is no merge_method",
    "merge_method: ties\nmodels: [{model: b}]": "ties needs a base_model",
    "merge_method: ties\nbase_model: a\nmodels: [{model: b}]": "line 3: b has no weight",
    "merge_method: ties\nbase_model: a": "there is no list of models",
    "merge_method: linear\nslices: [{sources: []}]": "line 2: slices take models apart",
    TASK + "tokenizer_source: union": "line 8: tokenizer_source changes more than weights",
    TASK + "colour: red": "line 8: colour is unknown here",
    TASK + "parameters: {epsilon: 0.1}": "the parameter epsilon is unknown here",
    TASK + "parameters: {rescale: true}": "the parameter rescale is unknown here",
    TASK + "parameters: {lambda: [0.1, 0.5]}": "lambda has a gradient over the layers",
    TASK + "parameters:\n  lambda:\n    - {filter: mlp, value: 1}\n    - value: 0.5": (
        "line 10: lambda has filters, and a recipe has one number for all tensors"
    ),
    TASK + "parameters: {lambda: much}": "lambda is much, which is no number",
    TASK + "parameters: {lambda: .nan}": "lambda is nan, which is no number",
    TASK + "dtype: int8": "dtype is int8, which is none of float32",
    TASK.replace("model: one", "model: one+lora"): "one+lora adds an adapter",
    TASK.replace("weight: 0.5", "weight: 0.5, lambda: 2"): "lambda is of the whole merge",
    TASK.replace("task_arithmetic", "ties").replace("weight: 0.5", "weight: 0.5, density: 0.3"): (
        "density differs between models (0.3, 1), and a recipe has one"
    ),
    TASK.replace("task_arithmetic", "ties").replace("weight: 0.5", "weight: -0.5"): (
        "ties with normalize and a weight below zero is no mean"
    ),
    TASK.replace("task_arithmetic", "breadcrumbs") + "parameters: {density: 0.6, gamma: 0.5}": (
        "density 0.6 + gamma 0.5 is more than 1"
    ),
    TASK.replace("task_arithmetic", "linear") + "parameters: {normalize: false}": (
        "weights that add up to 0.75 and without normalize scales the base too"
    ),
    "- a list": "is not a mapping with `merge_method`",
    "merge_method: [": "is not YAML",
}


@pytest.mark.parametrize(("text", "words"), REFUSED.items(), ids=itertools.count())
def test_what_a_recipe_can_not_say(text, words, tmp_path):
    with pytest.raises(errors.RecipeError) as caught:
        read(text, tmp_path)
    assert words in str(caught.value)


def test_every_fault_at_once(tmp_path):
    text = TASK.replace("weight: 0.5", "weight: [0.1, 0.2]")
    with pytest.raises(errors.RecipeError) as caught:
        read(text + "tokenizer_source: union\nparameters: {t: 1}\n", tmp_path)
    first, *faults = str(caught.value).splitlines()
    assert first.endswith("theirs.yaml is refused:")
    assert [fault.split(":")[0].strip() for fault in faults] == ["line 5", "line 8", "line 9"]


def test_the_options_that_say_the_same_are_refused(tmp_path):
    (tmp_path / "theirs.yaml").write_text(TASK)
    words = ("--mergekit", tmp_path / "theirs.yaml")
    for more in (("--base", "a"), ("--source", "b"), ("--alpha", 1), ("--method", "ties")):
        done = run("merge-files", *words, *more, "--output", tmp_path / "out", code=2)
        assert f"leave out {more[0]}" in " ".join(done.output.split())
    done = run("merge-files", "--output", tmp_path / "out", code=2)
    assert "Missing option '--base' (or '--mergekit')" in done.output
    done = run("merge", *words, "--from", "m/1", "--registered-model", "x", code=2)
    assert "leave out --from" in " ".join(done.output.split())


def test_registered_versions(zoo, tmp_path):
    base, *sources = (uri.removeprefix("models:/") for uri in (zoo.base, *zoo.sources[:2]))
    (tmp_path / "theirs.yaml").write_text(
        TASK.replace("one", sources[0])
        .replace("two", f"models:/{sources[1]}")
        .replace("base_model: base", f"base_model: {base}")
    )
    words = ("--registered-model", "theirs", "--tasks", "none")
    done = run("merge", "--mergekit", tmp_path / "theirs.yaml", *words)
    assert "models:/theirs/1 registered" in done.output
    named = ("--base", base, "--source", f"{sources[0]}=0.5", "--source", f"{sources[1]}=0.25")
    again = run("merge", *named, "--density", 1, "--gamma", 0, "--alpha", 1, *words)
    assert "models:/theirs/1 exists already" in again.output


def test_folders_as_transformers_writes_them(tmp_path, monkeypatch):
    torch.manual_seed(0)
    weights = torch.randn(4, 5)
    for name in ("base", "one", "two"):
        (tmp_path / name).mkdir()
        tuned = {"w": weights + 0.1 * torch.randn(4, 5)}
        save_file(tuned, tmp_path / name / "model.safetensors")
    (tmp_path / "theirs.yaml").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    run("merge-files", "--mergekit", "theirs.yaml", "--output", "out.safetensors")
    with checkpoints.Checkpoint.open(tmp_path / "out.safetensors") as merged:
        found = merged.tensor("w")
    base, one, two = (
        load_file(f"{name}/model.safetensors")["w"] for name in ("base", "one", "two")
    )
    torch.testing.assert_close(found, base + 0.5 * (one - base) + 0.25 * (two - base))
