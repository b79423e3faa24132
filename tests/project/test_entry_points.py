"""`mlflow run` for real: from a folder, from a git URL, in the environments that it makes.

The command, and a process of its own for what it runs, where that is the point. What an entry point
makes of its parameters is seen through `mlflow.projects.run`, and runs in a fork of a warm process.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import zoos

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def mlflow_run(uri, *parameters, manager="local", entry="main"):
    command = [sys.executable, "-m", "mlflow", "run", uri, "--entry-point", entry]
    command += ["--env-manager", manager]
    command += [part for parameter in parameters for part in ("-P", parameter)]
    # The project's command is `python -m mlflow_breadcrumbs …`: find the Python of this test.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def project(warm_process, monkeypatch, capfd):
    """Run an entry point of this project; whether it succeeded, and what it printed."""

    def run(entry, *parameters):
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.setenv("PATH", warm_process.path())
            try:
                mlflow.projects.run(
                    str(ROOT),
                    entry,
                    parameters=dict(parameter.split("=", 1) for parameter in parameters),
                    env_manager="local",
                )
                succeeded = True
            except mlflow.exceptions.ExecutionException as error:
                if "failed" not in str(error):  # it was not even started
                    raise
                succeeded = False
        return succeeded, "".join(capfd.readouterr())

    return run


def main_parameters(zoo):
    return (
        f"base={zoo.base}",
        f"sources={','.join(zoo.sources)}=0.5",
        "registered_model=merged",
        f"tasks={zoo.tasks}",
        "alias=candidate",
        "density=0.2",
    )


def check(succeeded, told):
    assert succeeded, told
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("merged", "candidate")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["density"] == "0.2"
    assert run.data.params["gamma"] == "0.01"
    assert "''" not in run.data.params.values()
    assert not any(name.startswith("resolved.") for name in run.data.params)
    assert run.data.params["weights"] == "[1,1,0.5]"
    assert "average_normalized_accuracy" in run.data.metrics
    return version


def check_command(done):
    return check(done.returncode == 0, done.stderr)


def test_from_a_folder(zoo):
    check_command(mlflow_run(str(ROOT), *main_parameters(zoo)))


def test_against_a_tracking_server(on_server, project):
    """Over HTTP, the artifacts too."""
    mlflow.set_experiment("projects")
    check(*project("main", *main_parameters(on_server)))


def test_a_failed_job_fails_the_run(zoo):
    parameters = [*main_parameters(zoo), "gamma=0.9"]
    done = mlflow_run(str(ROOT), *parameters)
    assert done.returncode == 1
    assert "density 0.2 + gamma 0.9 is more than 1" in done.stderr


def test_other_entry_points(zoo, project):
    parameters = [f"base={zoo.base}", f"tasks={zoo.tasks}", "task=colours", "steps=2"]
    succeeded, told = project("finetune", *parameters, "registered_model=tuned")
    assert succeeded, told
    parameters = ["uri=models:/tuned/1", f"tasks={zoo.tasks}", "task=colours"]
    succeeded, told = project("evaluate", *parameters)
    assert succeeded, told
    (run,) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.`breadcrumbs.kind` = 'evaluate'",
        output_format="list",
    )
    assert "accuracy/colours" in run.data.metrics


def test_a_merge_of_a_merge(zoo, project):
    pair = [f"base={zoo.base}", f"sources={','.join(zoo.sources[:2])}", "registered_model=pair"]
    succeeded, told = project("main", *pair, "method=breadcrumbs", "keep_parts=true")
    assert succeeded, told
    change = ["from=models:/pair/1", f"add={zoo.sources[2]}", f"remove={zoo.sources[0]}"]
    succeeded, told = project("main", *change, "new_weights=1,0.5")
    assert succeeded, told
    assert "the base, 1 source whole and 1 from its part" in told
    tags = mlflow.MlflowClient().get_model_version("pair", "2").tags
    assert tags["breadcrumbs.sources"] == f'["{zoo.sources[1]}","{zoo.sources[2]}"]'


def test_the_studies_of_a_merge_and_its_page(zoo, project):
    version = check(*project("main", *main_parameters(zoo)))
    uri = f"models:/merged/{version.version}"
    sources = [f"base={zoo.base}", f"sources={','.join(zoo.sources)}"]
    given = {
        "compare": sources,
        "scaling": [*sources, f"tasks={zoo.tasks}", "methods=breadcrumbs", "alpha=0.5,1"],
        "blame": [f"uri={uri}", "task=colours", f"tasks={zoo.tasks}"],
        "report": [f"uri={uri}"],
    }
    for entry, parameters in given.items():
        succeeded, told = project(entry, *parameters)
        assert succeeded, told
    page = mlflow.artifacts.load_text(f"runs:/{version.run_id}/report.html")
    assert all(f'id="{study}"' in page for study in ("comparison", "scaling", "blame"))


def test_an_audit_of_one_version_and_of_the_registry(family, project):
    assert project("audit")[0]
    family.file(family.sources[2]).write_bytes(b"")
    succeeded, told = project("audit", f"uri={family.merged}")
    assert succeeded, told
    succeeded, told = project("audit")
    assert not succeeded
    assert f"{family.sources[2]}: weights: changed" in told


def test_a_sweep_is_the_projects_own_run(zoo, project):
    parameters = [f"base={zoo.base}", f"sources={','.join(zoo.sources)}", f"tasks={zoo.tasks}"]
    parameters += ["alpha=0.5,1", "density=0.2", "registered_model=swept", "alias=best"]
    succeeded, told = project("sweep", *parameters)
    assert succeeded, told
    (parent,) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.`breadcrumbs.kind` = 'sweep'",
        output_format="list",
    )
    assert parent.data.params["alpha"] == "0.5,1"  # as `mlflow run` logged it
    assert parent.info.status == "FINISHED"
    trials = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' "
        "and tags.`breadcrumbs.kind` = 'trial'",
        output_format="list",
    )
    assert {run.data.params["alpha"] for run in trials} == {"0.5", "1.0"}
    version = mlflow.MlflowClient().get_model_version_by_alias("swept", "best")
    assert (
        version.tags["breadcrumbs.recipe_digest"] == parent.data.tags["breadcrumbs.recipe_digest"]
    )


def test_a_promotion_decides_in_its_own_experiment(family, project, tmp_path):
    rules = tmp_path / "policy.yaml"
    rules.write_text("average_normalized_accuracy: 0\nno_regression: {margin: 1.0}\n")
    # `top` was not measured yet: the evaluations are runs under the project's.
    parameters = ["name=top", "version=1", f"policy={rules}", f"tasks={family.tasks}"]
    succeeded, told = project("promote", *parameters)
    assert succeeded, told
    client = mlflow.MlflowClient()
    assert str(client.get_model_version_by_alias("top", "champion").version) == "1"
    (decision,) = mlflow.search_runs(
        experiment_names=["breadcrumbs-promotions"], output_format="list"
    )
    assert decision.data.tags["breadcrumbs.decision"] == "promoted"
    parent = client.get_run(decision.data.tags["mlflow.parentRunId"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["policy"] == str(rules)
    evaluated = client.search_runs(
        [parent.info.experiment_id], "tags.`breadcrumbs.kind` = 'evaluate'"
    )
    parents = {run.data.tags.get("mlflow.parentRunId") for run in evaluated}
    assert parents == {parent.info.run_id}

    parameters = ["uri=models:/top@champion", f"policy={rules}", "expect_current=7"]
    succeeded, told = project("promote", *parameters)
    assert not succeeded
    assert "top@champion is at version 1, and was expected at version 7" in told


def test_approved_and_rolled_back(family, project, tmp_path, monkeypatch):
    rules = tmp_path / "policy.yaml"
    rules.write_text("approvals: 1\n")
    monkeypatch.setenv("LOGNAME", "somebody else")
    for name in ("merged/1", "top/1"):
        succeeded, told = project("approve", f"name={name}", "comment=looked at it")
        assert succeeded, told
        assert f"approval of models:/{name} given by somebody else" in told
    client = mlflow.MlflowClient()
    (run, *_) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.`breadcrumbs.result` = 'models:/top/1'",
        output_format="list",
    )
    assert run.info.run_name == "approve models:/top/1"
    succeeded, told = project("approve", "name=top/1", "withdraw=true")
    assert succeeded, told
    assert "approved by nobody now" in told
    succeeded, told = project("promote", "name=top/1", f"policy={rules}")
    assert not succeeded
    client.copy_model_version(family.top, "merged")
    for number in (1, 2):
        version = f"models:/merged/{number}"
        if number == 2:
            assert project("approve", f"uri={version}")[0]
        succeeded, told = project("promote", f"uri={version}", f"policy={rules}")
        assert succeeded, told
    succeeded, told = project("rollback", "name=merged")
    assert succeeded, told
    assert str(client.get_model_version_by_alias("merged", "champion").version) == "1"
    succeeded, told = project("rollback", "name=merged", "to=7")
    assert not succeeded


def test_reproduced_exported_and_signed(family, project, tmp_path):
    key = zoos.new_key(tmp_path / "key")
    succeeded, told = project("reproduce", "uri=merged/1", "threads=1")
    assert succeeded, told
    assert "models:/merged/1: bit-identical" in told
    output = tmp_path / "lineage.json"
    succeeded, told = project(
        "export", "uri=merged/1", "format=slsa", f"output={output}", f"sign={key}"
    )
    assert succeeded, told
    assert json.loads(output.read_text())["subject"]
    assert family.file(family.merged, "model.sig").exists()
    succeeded, told = project("export", "uri=merged/1", "format=slsa")
    assert succeeded, told
    assert '"predicateType"' in told
    assert not project("export", "uri=merged/1")[0]


@pytest.fixture
def git_url(tmp_path):
    """This checkout's last commit, served by git's own daemon."""
    bare = tmp_path / "served" / "project"
    subprocess.run(
        ["git", "clone", "--quiet", "--bare", str(ROOT), str(bare)], check=True, capture_output=True
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["git", "daemon", "--reuseaddr", "--export-all", f"--base-path={bare.parent}"]
    daemon = subprocess.Popen([*command, "--listen=127.0.0.1", f"--port={port}"])
    url = f"git://127.0.0.1:{port}/project"
    for _ in range(50):
        if not subprocess.run(["git", "ls-remote", url], capture_output=True).returncode:
            break
        time.sleep(0.1)
    yield url
    daemon.terminate()
    daemon.wait()


def test_from_a_git_url(zoo, git_url):
    version = check_command(mlflow_run(git_url, *main_parameters(zoo)))
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    run = mlflow.MlflowClient().get_run(version.run_id)
    assert run.data.tags["mlflow.source.git.commit"] == head


def test_in_an_environment_that_uv_makes(zoo, tmp_path):
    """The packages of conda.yaml are enough; they come from uv's cache where it has them."""
    check_command(mlflow_run(str(ROOT), *main_parameters(zoo), manager="uv"))
