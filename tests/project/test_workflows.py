"""The workflows that users copy: their schemas, and their scripts run for real."""

import importlib.resources
import json
import os
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import mlflow
import pytest
import yaml
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.engine import files
from mlflow_breadcrumbs.engine.shards import plans
from mlflow_breadcrumbs.promotion import policies
from mlflow_breadcrumbs.registry import aliases

FOLDER = Path(__file__).parents[2] / "workflows"


def load(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


@pytest.fixture
def run(warm_process):
    def script(name, **environment):
        return subprocess.run(
            ["bash", str(FOLDER / name)],
            env=os.environ | {"PATH": warm_process.path()} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return script


def test_the_actions_fit_githubs_schema():
    schema = importlib.resources.files("check_jsonschema").joinpath(
        "builtin_schemas/vendor/github-workflows.json"
    )
    (workflow,) = load("github-actions.yaml")
    workflow["on"] = workflow.pop(True)  # YAML 1.1 takes the key `on` for true
    jsonschema.validate(workflow, json.loads(schema.read_text(encoding="utf-8")))
    assert list(workflow["jobs"]) == ["merge", "promote", "recheck"]
    crons = {entry["cron"] for entry in workflow["on"]["schedule"]}
    assert all(cron in crons for job in ("merge", "recheck") for cron in quoted(workflow, job))


def quoted(workflow, job):
    return [workflow["jobs"][job]["if"].split("'")[1]]


def test_the_cron_jobs_fit_kubernetes_schema():
    jobs = load("kubernetes.yaml")
    assert [job["metadata"]["name"] for job in jobs] == ["breadcrumbs-merge", "breadcrumbs-recheck"]
    for job in jobs:
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        script = FOLDER / Path(container["command"][-1]).name
        assert script.is_file()
        given = {entry["name"] for entry in container["env"]}
        assert all(f"{name}:?" in script.read_text() for name in given)


def test_the_shards_fit_kubernetes_schema():
    (job,) = load("shards-kubernetes.yaml")
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    script = (FOLDER / Path(container["command"][-1]).name).read_text()
    assert all(f"{{{entry['name']}:" in script for entry in container["env"])


@pytest.mark.slow
def test_shards_by_an_array_and_by_an_indexed_job(run, zoo, tmp_path):
    """The script by itself, as SLURM and as Kubernetes call it; then the plan is finished."""
    base, one = (str(zoo.folder / f"{name}.safetensors") for name in ("base", "colours"))
    output = str(tmp_path / "merged.safetensors")
    arguments = ["plan", "--base", base, "--source", one, "--output", output]
    assert CliRunner().invoke(cli.main, [*arguments, "--max-shard-size", "20KB"]).exit_code == 0
    plan = plans.read(f"{output}.plan.json")
    assert len(plan.shards) > 3
    for number in range(1, len(plan.shards) + 1):
        told = {"SLURM_ARRAY_TASK_ID": str(number)}
        if number % 2:
            told = {"JOB_COMPLETION_INDEX": str(number - 1)}
        done = run("shards.sbatch", PLAN=f"{output}.plan.json", THREADS="1", **told)
        assert done.returncode == 0, done.stderr
    done = CliRunner().invoke(cli.main, ["finish", f"{output}.plan.json", "--json"])
    assert done.exit_code == 0, done.output
    whole = files.merge_files(base, [one], plan.recipe, tmp_path / "whole.safetensors")
    assert json.loads(done.stdout)["weights_digest"] == whole.weights_digest


def test_the_policies_are_policies():
    found = sorted((FOLDER / "policies").glob("*.yaml"))
    assert found
    for path in found:
        assert policies.load(path).digest


@pytest.mark.slow
def test_a_night_and_a_monday(run, zoo, tmp_path):
    """The scripts by themselves: judged, promoted, found again, measured anew, rolled back."""
    (tmp_path / "policy.yaml").write_text("average_accuracy: 0\nverified: true\n")
    given = {
        "NAME": "nightly",
        "BASE": zoo.base,
        "SOURCES": ",".join(zoo.sources),
        "TASKS": zoo.tasks,
        "POLICY": str(tmp_path / "policy.yaml"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }
    done = run("nightly.sh", **given, ACTION="judge")
    assert done.returncode == 0, done.stderr
    assert "models:/nightly/1 would become champion" in done.stdout
    assert (tmp_path / "output").read_text() == "version=1\n"
    assert aliases.version_at("nightly", "champion") is None
    for _ in range(2):
        done = run("nightly.sh", **given)
        assert done.returncode == 0, done.stderr
        assert aliases.version_at("nightly", "champion") == "1"
    assert len(mlflow.MlflowClient().search_model_versions("name='nightly'")) == 1

    done = run("recheck.sh", NAME="nightly", TASKS=zoo.tasks)
    assert done.returncode == 0, done.stderr
    assert "models:/nightly/1 keeps every rule that it became champion by" in done.stdout

    (tmp_path / "recipe.yaml").write_text("method: breadcrumbs\nalpha: 0.9\n")
    (tmp_path / "policy.yaml").write_text("average_accuracy: 1.0\n")
    done = run("nightly.sh", **given, RECIPE=str(tmp_path / "recipe.yaml"))
    assert done.returncode == 0, done.stderr
    assert "not promoted; nightly@champion stays as it is" in done.stdout
    assert aliases.version_at("nightly", "champion") == "1"


def test_what_a_script_lacks_is_named(run):
    done = run("nightly.sh", NAME="nightly")
    assert done.returncode == 1
    assert "BASE: URI of the base" in done.stderr
    done = run("shards.sbatch")
    assert "PLAN: the plan, a file that every task sees" in done.stderr
