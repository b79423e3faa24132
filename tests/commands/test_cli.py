"""The command line: parsing, printing, and exit codes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.commands import options
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.engine.backends import choosing


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_the_backends_in_the_help_are_those_there_are():
    assert options.BACKENDS == choosing.NAMES


def test_a_source_from_another_base_is_refused_unless_told_otherwise(checkpoints, tmp_path):
    base, one, _ = checkpoints
    far = tmp_path / "far.safetensors"
    save_file({"x": load_file(one)["x"] * 100}, far)
    arguments = ["merge-files", "--base", base, "--source", far]
    arguments += ["--output", tmp_path / "out.safetensors"]
    result = run(*arguments)
    assert result.exit_code == 1
    assert "is farther from the base than fine-tuning goes" in result.stderr
    assert run(*arguments, "--max-norm-ratio", "1000").exit_code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
@pytest.mark.parametrize("option", [("--device", "cuda"), ("--backend", "gpu")])
def test_merging_on_a_gpu_that_is_absent(checkpoints, tmp_path, option):
    base, one, _ = checkpoints
    output = tmp_path / "out.safetensors"
    arguments = ("--base", base, "--source", one, "--output", output)
    result = run("merge-files", *arguments, *option)
    assert result.exit_code == 1
    assert "finds no CUDA device. Use '--device auto' or '--device cpu'" in result.stderr
    assert not output.exists()


@pytest.fixture
def checkpoints(tmp_path):
    """A base and two sources as files."""
    paths = []
    base = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        state = {
            "x": base + seed * 0.1 * torch.randn(50, generator=torch.Generator().manual_seed(seed))
        }
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(state, paths[-1])
    return paths


def test_every_command_is_under_one_heading_of_the_help():
    named = [command.name for commands in cli.COMMANDS.values() for command in commands]
    assert sorted(named) == sorted(cli.main.commands)
    shown = run("--help").output
    for heading, commands in cli.COMMANDS.items():
        assert f" {heading} " in shown
        for command in commands:
            assert re.search(rf"^\W*{command.name}\b", shown, re.MULTILINE)


def test_every_environment_variable_is_in_the_help():
    package = Path(cli.__file__).parent
    names = {
        name
        for file in package.rglob("*.py")
        for name in re.findall(r"(?<!_)BREADCRUMBS_[A-Z_]+", file.read_text(encoding="utf-8"))
    }
    shown = run("--help").output
    with_option = {"BREADCRUMBS_LEDGER_URI", "BREADCRUMBS_NOTIFY_URL", "BREADCRUMBS_NOTIFY_KINDS"}
    with_option |= {"BREADCRUMBS_TASKS"}
    assert {name for name in names if name not in shown} == with_option
    promote = run("promote", "--help").output
    for name in with_option:
        assert re.search(rf"\[env\s+var:\s+{name}\]", promote)


def test_an_option_beats_its_variable(tmp_path):
    uris = [f"sqlite:///{tmp_path}/{name}.db" for name in ("variable", "option")]

    def head(*arguments):
        environment = {"BREADCRUMBS_LEDGER_URI": uris[0]}
        result = CliRunner().invoke(cli.main, ["ledger", "head", *arguments], env=environment)
        assert result.exit_code == 0, result.output
        return result.stdout

    option = head("--ledger-uri", uris[1])
    assert (tmp_path / "option.db").exists()
    assert not (tmp_path / "variable.db").exists()
    assert head() == head("--ledger-uri", "") != option
    assert head("--ledger-uri", uris[0]) == head()


def test_a_usage_error_is_plain_text():
    result = run("merge-files", "--nonsense")
    assert result.exit_code == 2
    assert "\nError: No such option" in result.stderr
    assert "│" not in result.stderr


def test_the_help_needs_no_heavy_package():
    code = (
        "import sys\n"
        "from mlflow_breadcrumbs import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "print([name for name in ('torch', 'open_clip', 'mlflow', 'alembic', 'rich.markdown')"
        " if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_merge_files_prints_json(checkpoints, tmp_path):
    base, one, two = checkpoints
    output = tmp_path / "out.safetensors"
    result = run(
        *("merge-files", "--base", base, "--source", one, "--source", f"{two}=0.5"),
        *("--output", output, "--density", "0.5", "--gamma", "0", "--json"),
    )
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["output"] == str(output)
    assert made["recipe"]["weights"] == [1.0, 0.5]
    assert made["recipe"]["gamma"] == 0
    assert set(load_file(output)) == {"x"}


def test_merge_files_prints_a_table(checkpoints, tmp_path):
    base, one, two = checkpoints
    result = run(
        *("merge-files", "--base", base, "--source", one, "--source", two),
        *("--output", tmp_path / "out.safetensors", "--max-shard-size", "1GB"),
    )
    assert result.exit_code == 0, result.output
    assert "energy kept" in result.output
    assert re.search(r"sha256:[0-9a-f]{64}", result.output)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--density", "2"], 1, "Error: density is 2.0; it must be in 0 < density ≤ 1"),
        (["--density", "0.9", "--gamma", "0.2"], 1, "density 0.9 + gamma 0.2 is more than 1"),
        (["--density", "much"], 2, "'much' is not a valid float"),
        (["--method", "magic"], 2, "'magic' is not one of 'auto', 'breadcrumbs'"),
        (["--max-shard-size", "big"], 2, "'big' is not a size; write 5GB"),
        (["--recipe", "none.yaml"], 1, "the recipe file none.yaml can't be read: No such file"),
    ],
)
def test_bad_input_is_one_message_and_its_exit_code(checkpoints, tmp_path, arguments, code, words):
    base, one, _ = checkpoints
    output = tmp_path / "out.safetensors"
    result = run("merge-files", "--base", base, "--source", one, "--output", output, *arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not output.exists()


def test_the_same_file_twice_is_refused(checkpoints, tmp_path):
    base, one, _ = checkpoints
    output = tmp_path / "out.safetensors"
    result = run(
        "merge-files", "--base", base, "--source", one, "--source", one, "--output", output
    )
    assert result.exit_code == 1
    assert "is given twice" in result.stderr
    assert "=2" in result.stderr


def test_a_weight_that_is_no_number_is_refused(checkpoints, tmp_path):
    base, one, _ = checkpoints
    result = run("merge-files", "--base", base, "--source", f"{one}=half", "--output", "out")
    assert result.exit_code == 2
    assert "'half'" in result.stderr


def test_empty_options_are_unset_as_mlflow_run_passes_them(checkpoints, tmp_path):
    base, one, _ = checkpoints
    empty = [f"--{name}" for name in ("method", "density", "gamma", "alpha", "unit", "dtype")]
    result = run(
        *("merge-files", "--base", base, "--source", one, "--json"),
        *("--output", tmp_path / "out.safetensors"),
        *(part for name in empty for part in (name, "")),
        *("--include", "", "--recipe", ""),
    )
    assert result.exit_code == 0, result.output
    alone = recipe.MergeRecipe.from_method("weight_average", sources=1)  # what auto takes
    assert json.loads(result.stdout)["recipe_digest"] == alone.digest


def test_merge_evaluate_and_lineage_over_the_command_line(zoo):
    merged = run(
        *("merge", "--base", zoo.base, "--sources", ",".join(zoo.sources) + "=0.5"),
        *("--registered-model", "merged", "--tasks", zoo.tasks, "--alias", "candidate"),
    )
    assert merged.exit_code == 0, merged.output
    assert "models:/merged/1 registered, alias candidate" in merged.output
    assert "average" in merged.output
    again = run(
        *("merge", "--base", zoo.base, "--sources", ",".join(zoo.sources) + "=0.5"),
        *("--registered-model", "merged"),
    )
    assert "models:/merged/1 exists already, nothing was merged" in again.output

    spoilt = run(
        *("merge", "--base", zoo.base, "--sources", ",".join(zoo.sources), "--alpha", -5),
        *("--registered-model", "spoilt", "--tasks", zoo.tasks),
    )
    warned, following = (
        re.search(f"^{word}: (.*)$", spoilt.stdout, re.MULTILINE)[1] for word in ("Warning", "Next")
    )
    assert re.match("(colours|tints|hues): 0", warned)
    assert shlex.split(following)[1:] == [
        *("merge", "--base", zoo.base),
        *(part for source in zoo.sources for part in ("--source", source)),
        *("--registered-model", "spoilt", "--tasks", zoo.tasks, "--choose"),
    ]
    chosen = run(*shlex.split(following)[1:], "--json")
    assert chosen.exit_code == 0, chosen.output
    assert "tried" in json.loads(chosen.stdout)["choice"]["measured"]

    evaluated = run(
        "evaluate", "models:/merged@candidate", "--tasks", zoo.tasks, "--task", "tints", "--json"
    )
    assert evaluated.exit_code == 0, evaluated.output
    found = json.loads(evaluated.stdout)
    assert list(found["metrics"]) == [
        "average_accuracy",
        "accuracy/tints",
        "accuracy_low/tints",
        "accuracy_high/tints",
    ]

    tree = run("lineage", "models:/merged@candidate")
    assert tree.exit_code == 0
    for uri in (zoo.base, *zoo.sources):
        assert uri in tree.output
    parents = json.loads(run("lineage", "models:/merged/1", "--json").stdout)["parents"]
    assert [parent["uri"] for parent in parents] == [zoo.base, *zoo.sources]


def test_an_unknown_version_is_exit_code_1(zoo):
    result = run("lineage", "models:/none/1")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: cannot resolve models:/none/1")


def test_the_module_runs_uninstalled(tmp_path):
    """`mlflow run` starts it from the project's folder, without an installation."""
    root = Path(cli.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_breadcrumbs", "--help"],
        cwd=root,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mlflow-breadcrumbs" in done.stdout


@pytest.mark.parametrize(
    ("given", "taken"),
    [(["--count", ""], 3), (["--count", "0"], 0), (["--count", "2"], 2), ([], 3)],
)
def test_an_empty_string_is_the_default_and_zero_is_a_value(given, taken):
    """`mlflow run` passes an empty string for a parameter that was not given."""

    @click.command()
    @click.option("--count", type=options.COUNT, default=3)
    def command(count):
        click.echo(repr(count))

    assert CliRunner().invoke(command, given).stdout == f"{taken}\n"


def test_a_command_that_has_imported_triton_ends_quietly(tmp_path):
    """Its bindings report what the end of the process finds uncollected, line by line."""
    code = "import triton\nfrom mlflow_breadcrumbs import cli\ncli.main()"
    command = [sys.executable, "-c", code, "ledger", "head"]
    done = subprocess.run(
        [*command, "--ledger-uri", f"sqlite:///{tmp_path}/ledger.db"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "leaked" not in done.stderr
