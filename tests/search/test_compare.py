"""Versions side by side, before a merge, over the command line and in Python."""

import json
import math

import mlflow
import pytest
import tiny
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.search import compare
from mlflow_breadcrumbs.sources import importing


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def add(zoo, name, state, head="colours"):
    """Register a state as a source for the task `colours`, with the head of some task."""
    save_file(state, f"{name}.safetensors")
    return importing.import_checkpoint(
        f"{name}.safetensors",
        architecture_name=zoo.architecture,
        registered_model=name,
        task="colours",
        task_list=tasks.load_tasks(zoo.tasks),
        head=str(zoo.folder / f"{head}.head.safetensors"),
    ).uri


def state_of(zoo, name):
    return load_file(zoo.folder / f"{name}.safetensors")


def test_the_numbers_are_those_of_the_files(zoo):
    found = compare.compare(zoo.base, zoo.sources)
    base = state_of(zoo, "base")
    vectors = [
        torch.cat([(tuned[name] - base[name]).double().flatten() for name in sorted(base)])
        for tuned in (state_of(zoo, name) for name in ("colours", "tints", "hues"))
    ]
    rows = found.rows()
    length = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in base.values()))
    for row, vector in zip(rows, vectors, strict=True):
        assert row["norm"] == pytest.approx(float(vector.norm()), rel=1e-4)
        assert row["relative_norm"] == pytest.approx(float(vector.norm()) / length, rel=1e-4)
        assert 0 < row["energy_kept"] < 1
        assert 0.4 < row["sign_conflict"] < 0.6  # they are independent
    cosine = torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0)
    assert found.total.cosines[0, 1] == pytest.approx(float(cosine), abs=1e-4)
    assert found.layers["transformer.resblocks.0"].norms.tolist() == [0, 0, 0]
    moved = found.layers["visual.transformer.resblocks.0"].norms
    assert all(moved > 0)
    assert all(moved < found.total.norms)
    assert sum(layer.elements for layer in found.layers.values()) == len(vectors[0])
    assert [finding.kind for finding in found.findings] == ["none"]


def test_the_command_prints_draws_and_logs(zoo):
    arguments = ["compare", "--base", zoo.base, "--sources", ",".join(zoo.sources)]
    shown = run(*arguments, "--output", "heat.png", "--log", "--density", "0.5")
    assert shown.exit_code == 0, shown.output
    for uri in zoo.sources:
        assert uri in shown.output
    assert "Nothing in the weights speaks against merging" in shown.output
    assert Image.open("heat.png").width > 600
    (logged,) = mlflow.search_runs(
        experiment_names=["zoo"], filter_string="tags.`breadcrumbs.kind` = 'compare'"
    ).to_dict("records")
    client = mlflow.MlflowClient()
    assert {entry.path for entry in client.list_artifacts(logged["run_id"])} == {
        "comparison.json",
        "comparison.csv",
        "comparison.png",
    }
    assert logged["params.compare.base"] == zoo.base

    made = json.loads(run(*arguments, "--json").stdout)
    assert [row["source"] for row in made["sources"]] == list(zoo.sources)
    assert made["cosines"][0][0] == 1
    assert {"layer", "norms", "cosines", "energy_kept"} <= set(made["layers"][0])


def test_what_merge_would_refuse_is_found(zoo, tmp_path):
    tuned = state_of(zoo, "colours")
    copy = add(zoo, "copy", tuned)
    other = add(zoo, "stranger", tiny.model(tiny.config(tmp_path), seed=9).state_dict(), "hues")
    sources = [zoo.sources[0], copy, zoo.sources[1], other]
    found = compare.compare(zoo.base, sources)
    by_kind = {finding.kind: finding for finding in found.findings}
    assert by_kind["refused"].sources == (zoo.sources[0], copy)
    assert by_kind["another base"].sources == (other,)
    assert "both carry the task 'colours', with different heads" in by_kind["heads"].advice
    for refused in ([zoo.sources[0], copy], [zoo.sources[1], other]):
        settings = recipe.MergeRecipe.from_method("breadcrumbs", sources=2)
        with pytest.raises(errors.MergeError, match=r"same weights|farther from the base"):
            flow.merge(
                flow.MergeRequest(zoo.base, tuple(refused), "merged", settings, device="cpu")
            )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 1, "there are no sources"),
        (["--source", "models:/none/1"], 1, "cannot resolve models:/none/1"),
        (["--source", "models:/tiny/1"], 1, "is the base itself"),
        (["--sources", "models:/tiny-hues/1,models:/tiny-hues/1"], 1, "are the same version"),
        (["--source", "models:/tiny-hues/1", "--output", "heat.jpg"], 1, "is written as .png"),
        (["--source", "models:/tiny-hues/1", "--output", "no/heat.png"], 1, "can't be written"),
        (["--source", "models:/tiny-hues/1", "--max-norm-ratio", "0"], 1, "must be above 0"),
    ],
)
def test_bad_input_is_one_message(zoo, arguments, code, words):
    result = run("compare", "--base", zoo.base, *arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
