"""Accuracy against the number of merged sources, on real stores."""

import json
import math

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.search import scaling, workbench

METRIC = "average_normalized_accuracy"


def request(zoo, **changes):
    settings = {"methods": ("weight_average", "breadcrumbs"), "alphas": (0.5, 2.0)} | changes
    return scaling.ScalingRequest(
        workbench.Materials(zoo.base, zoo.sources, zoo.tasks, device="cpu"), **settings
    )


def test_the_subsets_are_all_or_some_and_always_the_same(zoo):
    few = scaling.subsets(6, request(zoo, subsets=5))
    assert list(few) == [2, 3, 4, 5, 6]
    assert [len(found) for found in few.values()] == [5, 5, 5, 5, 1]
    assert few == scaling.subsets(6, request(zoo, subsets=5))
    assert few != scaling.subsets(6, request(zoo, subsets=5, seed=1))
    every = scaling.subsets(6, request(zoo, subsets=20))
    assert {size: len(found) for size, found in every.items()} == {
        size: math.comb(6, size) for size in range(2, 7)
    }
    assert all(list(members) == sorted(set(members)) for f in few.values() for members in f)


def test_both_protocols_for_every_method_and_number(zoo):
    result = scaling.scaling(request(zoo))
    rows = {(row["method"], row["protocol"], row["sources"]): row for row in result.rows}
    assert set(rows) == {
        (method, protocol, size)
        for method in ("weight_average", "breadcrumbs")
        for protocol in ("tuned", "carried")
        for size in (2, 3)
    }
    assert rows["breadcrumbs", "tuned", 2]["subsets"] == 3
    assert rows["breadcrumbs", "tuned", 3]["subsets"] == 1
    assert rows["weight_average", "tuned", 3]["alpha"] is None
    # Carried on: the alpha of two sources, and the numbers that it gives.
    carried = rows["breadcrumbs", "carried", 3]
    assert carried["alpha"] == rows["breadcrumbs", "tuned", 2]["alpha"]
    settings = recipe.MergeRecipe.from_method("breadcrumbs", sources=3, alpha=carried["alpha"])
    average = recipe.MergeRecipe.from_method("weight_average", sources=3)
    with workbench.opened(request(zoo).materials) as bench:
        for method, made in (("breadcrumbs", settings), ("weight_average", average)):
            card = bench.measure(made, split="test")
            assert rows[method, "carried", 3][METRIC] == card.average_normalized_accuracy

    client = mlflow.MlflowClient()
    run = client.get_run(result.run_id)
    assert run.data.tags["breadcrumbs.kind"] == "scaling"
    history = client.get_metric_history(result.run_id, "tuned/breadcrumbs")
    assert [entry.step for entry in history] == [2, 3]
    names = {artifact.path for artifact in client.list_artifacts(result.run_id, "scaling")}
    assert names == {"scaling/scaling.csv", "scaling/scaling.png"}


def invoke(zoo, *more):
    arguments = ["scaling", "--base", zoo.base, "--sources", ",".join(zoo.sources)]
    arguments += ["--tasks", zoo.tasks, "--device", "cpu", *map(str, more)]
    return CliRunner().invoke(cli.main, arguments)


def test_the_command_prints_a_table_and_json(zoo):
    few = ("--methods", "breadcrumbs", "--alpha", "0.5,1", "--images", 2)
    done = invoke(zoo, *few)
    assert done.exit_code == 0, done.output
    assert "carried" in done.output
    assert json.loads(invoke(zoo, *few, "--json").stdout)["images"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--smallest", "3"], 1, "there are 3 sources and the smallest number to merge is 3"),
        (["--methods", "magic"], 1, "method is 'magic'; it must be one of breadcrumbs"),
        (["--alpha", "many"], 1, "alpha has 'many', which is no number"),
        (["--source", "models:/x/1=0.5"], 2, "with the weight 1"),
    ],
)
def test_bad_input_is_one_message_and_its_exit_code(zoo, arguments, code, words):
    done = invoke(zoo, *arguments)
    assert done.exit_code == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_one_source_is_too_few(zoo):
    with pytest.raises(errors.MergeError, match="give more sources"):
        scaling.subsets(1, request(zoo))
