"""A merge in shards by workers on a real Ray cluster, of which some are killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import held
import probing
import pytest
import shard_cases
import torch
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.engine import files, merging
from mlflow_breadcrumbs.engine.backends import choosing
from mlflow_breadcrumbs.engine.shards import finishing, local, plans
from mlflow_breadcrumbs.support import processes


@pytest.fixture
def opened(tmp_path):
    return zoos.opened(shard_cases.states(), tmp_path)


def merge(opened, made, output, executor, **options):
    arguments = (opened[0], opened[1:], made, output)
    return local.merge(*arguments, max_shard_size=shard_cases.SHARD, executor=executor, **options)


def wait_until_gone(pid):
    """Until a process that is no child of this one has ended."""
    while (
        Path(f"/proc/{pid}").exists() and "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    ):
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_makes_the_same_weights(opened, tmp_path, on_ray, workers):
    on_ray.workers = workers
    for name, made in shard_cases.RECIPES.items():
        whole = merging.merge(opened[0], opened[1:], made, tmp_path / f"{name}-whole.safetensors")
        told = []
        backend = choosing.ChosenThere(threads=1)

        @contextlib.contextmanager
        def show(description, *, total, unit, told=told):
            yield told.append

        ours = merge(
            opened, made, tmp_path / f"{name}.safetensors", on_ray, backend=backend, show=show
        )
        assert ours.weights_digest == whole.weights_digest, name
        assert (ours.statistics, ours.touched) == (whole.statistics, whole.touched)
        assert sum(told) == sum(checkpoint.nbytes for checkpoint in opened)


def test_a_worker_that_is_killed_is_replaced(opened, tmp_path, on_ray):
    on_ray.workers = 2
    made, output = shard_cases.RECIPES["model"], tmp_path / "out.safetensors"
    plan = plans.make(opened[0], opened[1:], made, output, max_shard_size=shard_cases.SHARD)
    plan.staging.path.mkdir()
    killer = threading.Thread(target=lambda: os.kill(held.pid(tmp_path), signal.SIGKILL))
    killer.start()
    told, numbers = [], range(1, len(plan.shards) + 1)
    amounts = [shard.bytes_read for shard in plan.shards]
    run = on_ray.run(held.HeldShards(plan), list(numbers), advance=told.append, amounts=amounts)
    done = [note.shard for _, note in run]
    killer.join()
    assert sorted(done) == list(numbers)
    assert sorted(told) == sorted(amounts)
    whole = merging.merge(opened[0], opened[1:], made, tmp_path / "whole.safetensors")
    assert finishing.finish(plan).weights_digest == whole.weights_digest


def test_a_driver_that_was_killed_goes_on(opened, tmp_path, on_ray, ray_address):
    made, output = shard_cases.RECIPES["tensor"], tmp_path / "out.safetensors"
    driver = subprocess.Popen([sys.executable, held.__file__, ray_address, str(tmp_path)])
    worker = held.pid(tmp_path, lambda: driver.poll() is None)
    (staging,) = tmp_path.glob(".out*.shards")
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    wait_until_gone(worker)
    before = {file.stat().st_ino for file in staging.glob("*.safetensors")}
    assert len(before) == 2
    result = merge(opened, made, output, on_ray)
    after = {file.stat().st_ino for file in tmp_path.glob("out-*.safetensors")}
    assert (len(after), len(after & before)) == (5, 2)
    whole = merging.merge(opened[0], opened[1:], made, tmp_path / "whole.safetensors")
    assert result.weights_digest == whole.weights_digest
    assert not staging.exists()


def test_an_error_of_a_worker_is_the_one_that_a_merge_here_has(tmp_path, on_ray):
    states = shard_cases.states()
    states[2]["d.weight"][3, 4] = torch.nan
    opened = zoos.opened(states, tmp_path)
    said = []
    for executor in ({}, {"executor": on_ray}):
        with pytest.raises(errors.MergeError) as caught:
            files.merge_files(
                *(opened[0].location, [checkpoint.location for checkpoint in opened[1:]]),
                *(shard_cases.RECIPES["tensor"], tmp_path / "out.safetensors"),
                max_shard_size=shard_cases.SHARD,
                **executor,
            )
        assert type(caught.value) is errors.MergeError
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "'d.weight'" in said[0]
    assert not list(tmp_path.glob("*out*"))


def test_workers_keep_to_the_processors_that_they_were_given(on_ray):
    run = on_ray.run(probing.Probe(), ["processors"], advance=print, amounts=[1])
    assert [found for _, found in run] == [(1, 1)]
    assert processes.processors() == len(os.sched_getaffinity(0))


def test_a_fault_of_ours_is_raised_as_it_is(on_ray):
    with pytest.raises(ZeroDivisionError):
        list(on_ray.run(probing.Probe(), ["fault"], advance=print, amounts=[1]))


def test_a_piece_that_kills_its_workers_is_given_up(on_ray):
    with pytest.raises(errors.ExecutorError, match="3 workers died one after the other"):
        list(on_ray.run(probing.Probe(), ["death"], advance=print, amounts=[1]))


def command(opened, tmp_path, *more):
    sources = [word for each in opened[1:] for word in ("--source", each.location)]
    output = ["--output", str(tmp_path / "out.safetensors"), "--density", "0.5", "--json"]
    return ["merge-files", "--base", opened[0].location, *sources, *output, *more]


def test_the_command_starts_a_cluster_of_its_own(opened, tmp_path):
    given = command(opened, tmp_path, "--max-shard-size", "6kB")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    program = [sys.executable, "-m", "mlflow_breadcrumbs"]
    more = ["--executor", "ray", "--workers", "1"]
    done = subprocess.run(
        [*program, *given, *more],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "merge: 0 MB\n"
    ours = json.loads(done.stdout)
    whole = json.loads(CliRunner().invoke(cli.main, [*given, "--overwrite"]).stdout)
    assert ours["weights_digest"] == whole["weights_digest"]
    assert len(list(tmp_path.glob("out-*.safetensors"))) == 5


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--workers", "2"), 2, "--workers needs --executor ray"),
        (("--executor", "ray", "--device", "cuda:1"), 2, "write --device cuda"),
        (("--executor", "ray", "--ray-address", "127.0.0.1:1"), 1, "at 127.0.0.1:1 can't be join"),
        (("--executor", "ray", "--ray-address", "ray://x:1"), 1, "write the HOST:PORT of its head"),
    ],
)
def test_workers_that_can_not_be_had(opened, tmp_path, more, code, words):
    done = CliRunner().invoke(cli.main, command(opened, tmp_path, *more))
    assert done.exit_code == code
    assert words in " ".join(done.stderr.split())


def test_without_ray_the_remedy_is_said(opened, tmp_path):
    given = command(opened, tmp_path, "--executor", "ray")
    blocked = (
        "import sys; sys.modules['ray'] = None; from mlflow_breadcrumbs import cli; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", blocked, *given], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'mlflow-breadcrumbs[ray]'" in done.stderr
    assert done.stderr.count("\n") == 1
