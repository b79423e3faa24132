"""Patterns of tensors' names that match nothing: refused where they are named, else said."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import files, recipe

COMMANDS = {
    "merge-files": ("--output", "out.safetensors"),
    "merge-files --dry-run": ("--output", "out.safetensors"),
    "plan": ("--output", "out.safetensors"),
}
"""What merges or plans files, with what else it needs."""


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """A base with two layers, and a source that has a head besides."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    states = [{"layer.0.weight": torch.ones(4, 4), "layer.1.weight": torch.ones(4, 4)}]
    states.append({name: tensor + 0.1 for name, tensor in states[0].items()})
    states[1]["score.weight"] = torch.randn(2, 4)
    for name, state in zip(("base", "one"), states, strict=True):
        save_file(state, f"{name}.safetensors")
    return "base.safetensors", "one.safetensors"


def run(command, paths, *arguments, code=0):
    base, source = paths
    words = [*command.split(), "--base", base, "--source", source, *COMMANDS[command], *arguments]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--include", "--exclude", "--own"])
@pytest.mark.parametrize("method", ["auto", "task_arithmetic"])
def test_a_pattern_that_is_named_must_match(paths, command, option, method):
    given = ("--exclude", "score.*", option, "layers.1.*", "--method", method)
    said = run(command, paths, *given, code=1).output
    words = (
        "the pattern 'layers.1.*' matches none of the 3 tensors of the base and the sources; the "
        "nearest are layer.1.weight, layer.0.weight, score.weight. Correct it, or leave it out"
    )
    assert words in " ".join(said.split())


@pytest.mark.parametrize("option", ["--exclude", "--own"])
def test_a_pattern_of_what_only_a_source_has_matches(paths, option):
    found = json.loads(run("merge-files", paths, option, "score.*", "--json").stdout)
    assert not any("matches no tensor" in note for note in found.get("notes", ()))


def test_one_of_a_recipe_is_said_and_does_nothing(paths, tmp_path):
    plain = recipe.MergeRecipe(density=1, exclude=("score.*",))
    other = recipe.MergeRecipe(
        density=1, include=("*", "text.*"), exclude=("score.*", "visual.*"), own=("cls.*",)
    )
    made = [
        files.merge_files(paths[0], paths[1:], settings, tmp_path / f"{number}.safetensors")
        for number, settings in enumerate((plain, other))
    ]
    assert made[0].weights_digest == made[1].weights_digest
    fresh = [note for note in made[1].notes if note not in made[0].notes]
    assert [note.partition(", which matches no tensor")[0] for note in fresh] == [
        f"the recipe's {field} has the pattern {pattern!r}"
        for field, pattern in (("include", "text.*"), ("exclude", "visual.*"), ("own", "cls.*"))
    ]
    (tmp_path / "recipe.json").write_text(other.to_json())
    again = json.loads(run("merge-files", paths, "--recipe", "recipe.json", "--json").stdout)
    assert again["notes"] == list(made[1].notes)
    dry = json.loads(
        run("merge-files --dry-run", paths, "--recipe", "recipe.json", "--json").stdout
    )
    assert dry["notes"] == fresh
    assert load_file("out.safetensors").keys() == load_file(paths[0]).keys()


def test_patterns_that_choose_nothing_at_all_are_refused(paths, tmp_path):
    settings = recipe.MergeRecipe(density=1, include=("text.*",), exclude=("score.*",))
    with pytest.raises(errors.MergeError, match="no floating-point tensor of the base matches"):
        files.merge_files(paths[0], paths[1:], settings, tmp_path / "none.safetensors")
