"""Sweeps on real stores: what is logged, what is chosen, and that a killed one goes on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.search import sweep, sweep_runs, workbench

METRIC = "average_normalized_accuracy"


def recipes(densities=(0.1, 0.3), alphas=(0.5, 1.0, 2.0)):
    return tuple(
        recipe.MergeRecipe(density=density, gamma=0.01, alpha=alpha)
        for density in densities
        for alpha in alphas
    )


def request(zoo, **changes):
    made = sweep.SweepRequest(
        workbench.Materials(zoo.base, zoo.sources, zoo.tasks, device="cpu"), recipes()
    )
    return dataclasses.replace(made, **changes)


def children(run_id):
    return mlflow.search_runs(
        filter_string=f"tags.`mlflow.parentRunId` = '{run_id}'",
        search_all_experiments=True,
        output_format="list",
    )


def parents():
    return mlflow.search_runs(
        filter_string="tags.`breadcrumbs.kind` = 'sweep'", output_format="list"
    )


def test_a_sweep_logs_every_recipe_and_chooses_by_validation(zoo):
    result = sweep.sweep(request(zoo))
    logged = {run.data.tags["breadcrumbs.recipe_digest"]: run for run in children(result.run_id)}
    assert set(logged) == {settings.digest for settings in recipes()}
    for run in logged.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["breadcrumbs.weights_digest"].startswith("sha256:")
    best = max(run.data.metrics[METRIC] for run in logged.values())
    assert logged[result.recipe.digest].data.metrics == dict(result.validation)
    assert result.validation[METRIC] == best
    assert logged[result.recipe.digest].data.params["alpha"] == str(result.recipe.alpha)

    client = mlflow.MlflowClient()
    parent = client.get_run(result.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics[METRIC] == result.test[METRIC]
    assert parent.data.metrics[f"validation/{METRIC}"] == best
    assert parent.data.params["sweep.recipes"] == "6"
    assert len(parent.inputs.model_inputs) == 4
    names = {artifact.path for artifact in client.list_artifacts(result.run_id, "sweep")}
    assert names == {
        f"sweep/{name}"
        for name in (
            "best_recipe.yaml",
            "heat_map.png",
            "lines.png",
            "result.json",
            "robustness.csv",
            "robustness.png",
            "trials.csv",
        )
    }


def test_the_numbers_are_those_of_the_merge_that_is_registered(zoo, tmp_path):
    result = sweep.sweep(request(zoo, registered_model="merged", alias="candidate"))
    assert result.version.uri == "models:/merged/1"
    found = mlflow.MlflowClient().get_model_version_by_alias("merged", "candidate")
    assert found.tags["breadcrumbs.recipe_digest"] == result.recipe.digest
    merged = mlflow.MlflowClient().get_run(result.version.run_id).data
    assert {name: merged.metrics[name] for name in result.test} == dict(result.test)
    assert merged.tags["mlflow.parentRunId"] == result.run_id
    (trial,) = (t for t in result.trials if t["recipe_digest"] == result.recipe.digest)
    tags = mlflow.MlflowClient().get_run(trial["run_id"]).data.tags
    assert tags["breadcrumbs.weights_digest"] == result.version.weights_digest

    file = tmp_path / "best.yaml"
    file.write_text(result.recipe_file())
    assert recipe.make(sources=3, file=file) == result.recipe


def test_a_sweep_that_is_done_is_not_done_again(zoo):
    first = sweep.sweep(request(zoo))
    runs = len(mlflow.search_runs(output_format="list"))
    second = sweep.sweep(request(zoo))
    assert second == dataclasses.replace(first, measured_now=0)
    assert len(mlflow.search_runs(output_format="list")) == runs
    other = sweep.sweep(request(zoo, recipes=recipes(alphas=(1.0,)), robustness=False))
    assert other.run_id != first.run_id


def test_an_error_in_the_middle_leaves_what_is_done(zoo, monkeypatch):
    merge, calls = workbench.Study.merge, []

    def fails_at_the_third(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise errors.MergeError("the disk is on fire")
        return merge(self, *arguments)

    monkeypatch.setattr(workbench.Study, "merge", fails_at_the_third)
    with pytest.raises(errors.MergeError, match="on fire"):
        sweep.sweep(request(zoo))
    (failed,) = parents()
    assert failed.info.status == "FAILED"
    assert len(children(failed.info.run_id)) == 2
    monkeypatch.undo()
    result = sweep.sweep(request(zoo))
    assert (result.run_id, result.measured_now) == (failed.info.run_id, 4)
    assert len(children(result.run_id)) == 6
    assert parents()[0].info.status == "FINISHED"


def test_a_child_that_was_left_unfinished_is_taken_over(zoo):
    first = sweep.sweep(request(zoo, robustness=False))
    client = mlflow.MlflowClient()
    left = children(first.run_id)[0]
    client.set_terminated(left.info.run_id, "RUNNING")
    client.set_terminated(first.run_id, "RUNNING")
    again = sweep.sweep(request(zoo, robustness=False))
    assert again.run_id == first.run_id
    assert len(children(first.run_id)) == 6
    assert {run.info.status for run in children(first.run_id)} == {"FINISHED"}


def test_halving_gives_the_better_half_more_images(zoo):
    # The tiny zoo has 3 validation images per task.
    result = sweep.sweep(request(zoo, halving=1))
    images = [row["images"] for row in result.trials]
    assert [images.count(count) for count in (1, 2, None)] == [3, 1, 2]
    runs = {run.info.run_id: run.data.metrics for run in children(result.run_id)}
    for row in result.trials:
        metrics = runs[row["run_id"]]
        assert "halving/1" in metrics
        assert (METRIC in metrics) == (row["images"] is None)
    chosen = next(r for r in result.trials if r["recipe_digest"] == result.recipe.digest)
    assert chosen["images"] is None
    assert result.best(1)[0][METRIC] == result.validation[METRIC]
    assert all(run.info.status == "FINISHED" for run in children(result.run_id))


@pytest.mark.parametrize(
    ("halving", "recipes_", "images", "limits"),
    [
        (None, 60, 400, [None]),
        (50, 60, 400, [50, 100, 200, None]),
        (400, 60, 400, [None]),
        (50, 3, 4000, [50, 100, None]),
        (50, 1, 400, [None]),
    ],
)
def test_the_rounds(halving, recipes_, images, limits):
    assert sweep.rounds(halving, recipes_, images) == limits


def test_robustness_goes_to_both_sides(zoo):
    result = sweep.sweep(request(zoo, recipes=(recipe.MergeRecipe(0.9, 0.0, 0.7644),)))
    rows = {(row["field"], row["factor"]): row for row in result.robustness}
    # Of a density of 0.9 there is no 1.5 times; of gamma 0 there is nothing to vary.
    assert set(rows) == {("density", 0.5), ("alpha", 0.5), ("alpha", 1.5)}
    for row in rows.values():
        assert row["fall"] == pytest.approx(result.validation[METRIC] - row[METRIC])


def command(zoo, *more):
    return [
        *("sweep", "--base", zoo.base, "--sources", ",".join(zoo.sources)),
        *("--tasks", zoo.tasks, "--device", "cpu", *more),
    ]


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_with_60_children_and_no_duplicate(zoo):
    """The default grid has 60 recipes; a real process is killed, and the command given again."""
    arguments = [sys.executable, "-m", "mlflow_breadcrumbs", *command(zoo)]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for _ in range(2400):
        made = parents() and children(parents()[0].info.run_id)
        if made and len(made) >= 8:
            break
        assert process.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (killed,) = parents()
    assert killed.info.status == "RUNNING"
    before = {run.info.run_id for run in children(killed.info.run_id)}
    assert 8 <= len(before) < 60

    done = invoke(*command(zoo, "--json"))
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["run_id"] == killed.info.run_id
    assert 0 < result["measured_now"] <= 60 - len(before) + 1
    runs = children(result["run_id"])
    assert len(runs) == 60
    assert before <= {run.info.run_id for run in runs}
    assert len({run.data.tags["breadcrumbs.recipe_digest"] for run in runs}) == 60
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = parents()
    assert parent.info.status == "FINISHED"


def invoke(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_the_command_writes_the_recipe_and_registers(zoo, tmp_path):
    output = tmp_path / "best.yaml"
    arguments = command(zoo, "--density", "0.2", "--alpha", "0.5:1.5:0.5", "--no-robustness")
    done = invoke(*arguments, "--output", output, "--registered-model", "merged")
    assert done.exit_code == 0, done.output
    assert "3 recipes, 3 of them measured now" in done.output
    assert "models:/merged/1 registered" in done.output
    merged = invoke(
        *("merge", "--base", zoo.base, "--sources", ",".join(zoo.sources)),
        *("--registered-model", "merged", "--recipe", output),
    )
    assert "models:/merged/1 exists already" in merged.output  # it is the very merge

    again = invoke(*arguments, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["measured_now"] == 0


def test_an_impossible_point_is_named_before_anything_runs(zoo):
    done = invoke(*command(zoo, "--density", "0.2,0.9", "--gamma", "0.01,0.2"))
    assert done.exit_code == 1
    assert "density 0.9, gamma 0.2: density 0.9 + gamma 0.2 is more than 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert parents() == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--density", "0.1..0.3"], 1, "draw some of them (--random N)"),
        (["--alpha", "x"], 1, "alpha has 'x', which is no number"),
        (["--unit", "layer"], 1, "unit is 'layer'; it must be one of tensor, row, model"),
        (["--grid", "none.yaml"], 1, "the recipe file none.yaml can't be read: No such file"),
        (["--alias", "a"], 2, "--alias needs --registered-model"),
        (["--random", "0"], 2, "0 is not in the range"),
        (["--max-norm-ratio", "0"], 1, "max_norm_ratio is 0.0; it must be above 0"),
        (["--alpha", "1", "--registered-model", "a/b"], 1, "can't name a registered model"),
    ],
)
def test_bad_input_is_one_message_and_its_exit_code(zoo, arguments, code, words):
    done = invoke(*command(zoo, *arguments))
    assert (done.exit_code, parents()) == (code, [])
    assert words in done.stderr


def test_a_random_sweep_over_a_file(zoo, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text("density: 0.05..0.3\nconsensus: [none, mass]\nalpha: 1\n")
    arguments = command(zoo, "--grid", grid, "--random", "4", "--seed", "3", "--no-robustness")
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["trials"]
    assert len({row["density"] for row in rows}) == 4
    assert all(0.05 <= row["density"] <= 0.3 for row in rows)


def test_the_result_is_kept_with_the_run(zoo):
    result = sweep.sweep(request(zoo, recipes=recipes(alphas=(1.0,)), robustness=False))
    with sweep_runs.parent("again", result.sweep_digest) as parent:
        assert parent.finished
        assert sweep_runs.load_result(parent) == result.to_dict()


def test_recipes_with_and_without_the_newer_fields_are_one_table(zoo, tmp_path):
    done = CliRunner().invoke(
        cli.main,
        [
            *("sweep", "--base", zoo.base, "--sources", ",".join(zoo.sources)),
            *("--tasks", zoo.tasks, "--method", "breadcrumbs,breadcrumbs_calibrated,tsv_m"),
            *("--vectors", "mean", "--no-robustness", "--device", "cpu", "--json"),
        ],
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    rows = {(row["combine"], row["calibrate"], row["vectors"]) for row in found["trials"]}
    assert rows == {("sum", "none", "mean"), ("sum", "svc", "mean"), ("tsv", "none", "mean")}
    path = mlflow.artifacts.download_artifacts(
        run_id=found["run_id"], artifact_path="sweep/trials.csv", dst_path=str(tmp_path)
    )
    header, *lines = Path(path).read_text().splitlines()
    assert {"calibrate", "vectors", "ridge"} <= set(header.split(","))
    assert len(lines) == 3


def test_no_recipes_are_nothing_to_try(zoo):
    with pytest.raises(errors.RecipeError, match="there are no recipes to try"):
        sweep.sweep(request(zoo, recipes=()))
