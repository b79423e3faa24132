"""Studies and evaluations whose merges and measurements a real Ray cluster does."""

import dataclasses
import functools
import json

import mlflow
import pytest
import ray
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.evaluation import caches, evaluating
from mlflow_breadcrumbs.search import scaling, sweep, workbench

RECIPES = (
    *(recipe.MergeRecipe(density=0.3, gamma=0.01, alpha=alpha) for alpha in (0.5, 2.0)),
    recipe.MergeRecipe.from_method("tsv_m", sources=3),
)


@pytest.fixture(autouse=True)
def few(on_ray):
    on_ray.workers = 2


def materials(zoo):
    return workbench.Materials(zoo.base, zoo.sources, zoo.tasks, device="cpu", threads=1)


def known(result):
    """What does not name a run."""
    found = result.to_dict()
    rows = [{key: row[key] for key in row if key != "run_id"} for row in found.pop("trials")]
    return found | {"trials": rows, "run_id": None}


def test_a_sweep_has_the_same_numbers_and_the_same_runs(zoo, on_ray, monkeypatch):
    put, works = ray.put, []
    monkeypatch.setattr(ray, "put", lambda value: works.append(value) or put(value))
    request = sweep.SweepRequest(materials(zoo), RECIPES, halving=2)
    mlflow.set_experiment("elsewhere")
    ours = sweep.sweep(request, executor=on_ray)
    assert len(works) == 2  # for all rounds; and with the masks around the chosen recipe
    mlflow.set_experiment("here")
    assert known(ours) == known(sweep.sweep(request))
    runs = mlflow.search_runs(experiment_names=["elsewhere"], output_format="list")
    tags = [run.data.tags for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(tags) == len(RECIPES)
    assert all(tag["breadcrumbs.weights_digest"].startswith("sha256:") for tag in tags)


def test_an_error_of_a_worker_ends_a_sweep_with_its_message(zoo, on_ray):
    far = dataclasses.replace(materials(zoo), max_norm_ratio=1e-6)
    with pytest.raises(errors.MergeError, match="is farther from the base") as caught:
        sweep.sweep(sweep.SweepRequest(far, RECIPES[:2]), executor=on_ray)
    assert type(caught.value) is errors.MergeError
    kind = "tags.`breadcrumbs.kind` = 'sweep'"
    (run,) = mlflow.search_runs(filter_string=kind, output_format="list")
    assert run.info.status == "FAILED"


def test_scaling_has_the_same_rows(zoo, on_ray):
    asked = scaling.ScalingRequest(materials(zoo), methods=("breadcrumbs",), alphas=(0.5, 2.0))
    assert scaling.scaling(asked, executor=on_ray).rows == scaling.scaling(asked).rows


def test_an_evaluation_has_the_same_accuracies(zoo, on_ray, tmp_path):
    cache = caches.Cache(tmp_path / "cache")
    ask = functools.partial(evaluating.evaluate_version, zoo.base, zoo.tasks, device="cpu")
    ours, here = ask(cache=cache, executor=on_ray), ask()
    assert ours.accuracies == here.accuracies
    seconds = [each.seconds for each in ours.accuracies]
    assert [each.seconds for each in ask(cache=cache).accuracies] == seconds


def test_a_command_joins_the_cluster(zoo, ray_address):
    given = ["evaluate", zoo.base, "--tasks", zoo.tasks, "--device", "cpu", "--no-cache", "--json"]
    elsewhere = ["--executor", "ray", "--ray-address", ray_address, "--workers", "1"]
    done = CliRunner().invoke(cli.main, [*given, *elsewhere])
    assert done.exit_code == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics == json.loads(CliRunner().invoke(cli.main, given).stdout)["metrics"]
