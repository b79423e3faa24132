"""A merge of files shard by shard, from the command line."""

import json
import re

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from mlflow_breadcrumbs import cli


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def paths(tmp_path):
    """A base and two sources of 8 kB each; where the output goes; the plan."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(20, 25, generator=generator) for name in "abcd"}
    for number, name in enumerate(("base", "one", "two")):
        state = {key: tensor + 0.01 * number * tensor.flip(0) for key, tensor in base.items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    found = {name: tmp_path / f"{name}.safetensors" for name in ("base", "one", "two", "out")}
    return found | {"plan": tmp_path / "out.safetensors.plan.json"}


def plan(paths, *more):
    sources = ("--source", paths["one"], "--source", f"{paths['two']}=0.5")
    return run("plan", "--base", paths["base"], *sources, "--output", paths["out"], *more)


def test_plan_work_finish(paths, tmp_path):
    done = plan(paths, "--max-shard-size", "4kB", "--density", "0.5")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{paths['plan']}: 2 shards, 24.0 kB to read, 8.3 kB to write\n"
    done = run("work", paths["plan"], "--shard", 2)
    assert re.fullmatch(r"shard 2 of 2: 4\.2 kB in \d+\.\d s\n1 shard not done\.\n", done.stdout)
    done = run("finish", paths["plan"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: 1 shard of 2 is not done: 1. Do it")
    assert run("work", paths["plan"], "--missing").stdout.endswith("All shards are done.\n")
    done = run("finish", paths["plan"])
    assert done.exit_code == 0, done.output
    sources = ("--source", paths["one"], "--source", f"{paths['two']}=0.5")
    whole = run(
        *("merge-files", "--base", paths["base"], *sources, "--density", "0.5", "--digests"),
        *("--output", tmp_path / "whole.safetensors", "--json"),
    )
    whole = json.loads(whole.stdout)
    for digest in (whole["base_digest"], *whole["source_digests"], whole["weights_digest"]):
        assert digest in done.stdout
    assert run("finish", paths["plan"]).exit_code == 1
    assert "exists; name another file or overwrite it" in run("finish", paths["plan"]).stderr


def test_a_plan_in_json(paths):
    done = plan(paths, "--method", "auto", "--json", "--max-norm-ratio", "inf")
    found = json.loads(done.stdout)
    assert found["plan"] == str(paths["plan"])
    assert found["bytes_read"] == 3 * 8000
    assert [shard["file"] for shard in found["shards"]] == ["out.safetensors"]
    assert "the changes are not of low rank" in found["choice"]["why"]
    assert found["recipe"]["combine"] == "tsv"
    assert json.loads(paths["plan"].read_text())["max_norm_ratio"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "name the shards (--shard 3), or all that are not done (--missing)"),
        (("--missing", "--shard", "1"), 2, "name the shards (--shard 3), or all that are"),
        (("--shard", "0"), 2, "0 is not in the range x>=1"),
        (("--shard", "7"), 1, "there is no shard 7: the plan has the shards 1 to 1"),
    ],
)
def test_shards_that_there_are_not(paths, arguments, code, words):
    plan(paths)
    done = run("work", paths["plan"], *arguments)
    assert done.exit_code == code
    assert words in " ".join(done.stderr.split())


def test_a_plan_that_can_not_be_written(paths, tmp_path):
    (tmp_path / "file").touch()
    done = plan(paths, "--plan", tmp_path / "file" / "plan.json")
    assert done.exit_code == 1
    assert "cannot write the plan" in done.stderr
    assert "name another file (--plan)" in done.stderr
    done = plan(paths, "--plan", paths["one"])
    assert "exists and is no plan, so it is not replaced" in done.stderr


def test_sizes_that_no_disk_has(paths):
    done = plan(paths, "--max-shard-size", "99999999999999999999GB")
    assert done.exit_code == 2
    assert "is more than any disk holds" in done.stderr
