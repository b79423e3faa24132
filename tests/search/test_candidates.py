"""`merge --method auto` and `merge --choose` on a real store: what is chosen, said, recorded."""

import json

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import drafts, recipe, settling
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.search import candidates, workbench

METRIC = "average_normalized_accuracy"


def merge(zoo, *options, code=0):
    given = ["merge", "--base", zoo.base, "--sources", ",".join(zoo.sources)]
    given += ["--registered-model", "chosen", "--device", "cpu", *options]
    result = CliRunner().invoke(cli.main, given)
    assert result.exit_code == code, result.output
    return result


def stated(uri):
    return contents.read_statement(versions.resolve(uri))[1]


def test_the_automatic_method_is_recorded_with_what_it_was_chosen_by(zoo):
    made = json.loads(merge(zoo, "--method", "auto", "--json").stdout)
    lineage = stated(made["uri"])
    assert lineage.choice == made["choice"]
    assert lineage.choice["open"] == ["method"]
    measured = lineage.choice["measured"]
    assert len(measured["lengths"]) == 3
    method, why = settling.rule(measured["rank"], 3)
    assert lineage.choice["why"].startswith(f"{method}, since {why}")
    assert lineage.settings == recipe.MergeRecipe.from_method(method, sources=3)
    tags = versions.resolve(made["uri"]).tags
    assert tags["breadcrumbs.choice_digest"].startswith("sha256:")

    again = merge(zoo, "--method", "auto")
    assert "exists already, nothing was merged" in again.output
    named = json.loads(merge(zoo, "--method", method, "--json").stdout)
    assert named["uri"] == made["uri"]  # by its name it is the same merge


def test_the_sentence_is_printed(zoo):
    assert "Chosen: " in merge(zoo, "--method", "auto").output
    found = merge(zoo, "--method", "task_arithmetic", "--alpha", "auto", "--balance")
    assert "Chosen: the sources' changes are of like length; alpha 0." in found.output


def test_an_automatic_method_with_a_field_of_another(zoo):
    found = merge(zoo, "--method", "auto", "--gamma", "0.1", code=1)
    assert "--method auto chooses gamma itself; leave that out, or name a method" in found.output


def test_choosing_tries_the_candidates_and_looks_at_the_test_images_once(zoo):
    found = merge(zoo, "--choose", "--tasks", zoo.tasks, "--json")
    assert f"Choosing: trying {len(candidates.CANDIDATES)} recipes on validation" in found.stderr
    made = json.loads(found.stdout)
    lineage = stated(made["uri"])
    tried = lineage.choice["measured"]["tried"]
    assert len(tried) == len(candidates.CANDIDATES)
    assert tried[0][METRIC] == max(row[METRIC] for row in tried if row["images"] is None)
    assert lineage.choice["why"].startswith(f"{tried[0]['recipe']}, the best of {len(tried)}")
    expected = candidates.recipes(3, recipe.MergeRecipe(density=1.0))[tried[0]["recipe"]]
    assert lineage.settings == expected
    assert made["metrics"][METRIC] > 0
    run = mlflow.get_run(lineage.choice["measured"]["run"])
    assert METRIC not in run.data.metrics  # of the test images, which are the merge's
    assert f"validation/{METRIC}" in run.data.metrics

    again = json.loads(merge(zoo, "--choose", "--tasks", zoo.tasks, "--json").stdout)
    assert again["reused"]
    assert again["uri"] == made["uri"]


def test_choosing_needs_images_and_no_method(zoo):
    found = merge(zoo, "--choose", code=1)
    assert "--choose looks at validation images; give --tasks" in found.output
    materials = workbench.Materials(zoo.base, zoo.sources, zoo.tasks, device="cpu")
    with pytest.raises(errors.RecipeError, match="a method or its fields are given"):
        candidates.choose(materials, drafts.draft(sources=3, method="ties"))


def test_what_goes_with_every_method_goes_with_the_candidates():
    given = recipe.MergeRecipe(density=1.0, exclude=("a.*",), dtype="float16", weights=(1, 2))
    for settings in candidates.recipes(2, given).values():
        assert settings.exclude == ("a.*",)
        assert settings.dtype == "float16"
        assert settings.weights == (1.0, 2.0)
    assert candidates.recipes(2, given)["weight_average"].alpha == 0.5
