"""The commands of the audit: what they print, as text and as JSON, and their exit codes."""

import json

import pytest
import registered
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, ledger


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def merged(store):
    """A merge of two versions, with an alias that the ledger saw being set."""
    base = registered.version("base")
    sources = [registered.version(name, base=base) for name in "ab"]
    uri = registered.version("merged", base=base, sources=sources)
    ledger.set_alias("merged", "best", "1")
    return uri


def test_lineage_in_every_format(merged):
    assert "source: models:/a/1" in run("lineage", merged).stdout
    tree = json.loads(run("lineage", merged, "--json").stdout)
    assert tree == json.loads(run("lineage", merged, "--format", "json").stdout)
    assert run("lineage", merged, "--format", "mermaid").stdout.startswith("flowchart TD\n")
    assert run("lineage", merged, "--format", "dot").stdout.startswith("digraph lineage {\n")
    run("ledger", "sync")
    assert json.loads(run("lineage", merged, "--from", "ledger", "--json").stdout) == tree


def test_impact(merged):
    result = run("impact", "models:/a/1")
    assert "models:/merged/1" in result.stdout
    assert "1 version descends from models:/a/1; aliases point at 1 of them" in result.stdout
    (affected,) = json.loads(run("impact", "models:/a/1", "--json").stdout)
    assert (affected["uri"], affected["aliases"]) == (merged, ["best"])
    assert run("impact", merged).stdout.startswith("0 versions descend from")
    missing = run("impact", "models:/none/1")
    assert (missing.exit_code, "is neither in the registry" in missing.stderr) == (1, True)


def test_history(merged):
    events = json.loads(run("history", "merged", "--json").stdout)
    assert [(event["kind"], event["phase"]) for event in events] == [
        ("alias", "intent"),
        ("alias", "done"),
    ]
    assert "alias=best" in run("history", "merged").stdout
    assert run("history", "none").stdout == "the ledger has no events of none\n"


def test_sync_head_and_verify(merged):
    assert run("ledger", "sync").stdout == ("4 versions read: 4 added, 0 changed, 0 removed\n")
    head = run("ledger", "head").stdout.strip()
    assert json.loads(run("ledger", "head", "--json").stdout)["sequence"] == 2
    result = run("ledger", "verify", "--expect-head", head)
    assert (result.exit_code, result.stdout) == (
        0,
        f"2 events, each follows the one before; 2 heads kept elsewhere hold\nhead {head}\n",
    )
    cut = run("ledger", "verify", "--offline", "--expect-head", "3" + head[1:])
    assert cut.exit_code == 3
    assert cut.stdout.startswith("broken: event 3 is missing: the tail was cut off.")
    verdict = json.loads(run("ledger", "verify", "--json").stdout)
    assert (verdict["holds"], verdict["events"], verdict["heads_checked"]) == (True, 2, 1)
    assert run("ledger", "verify", "--expect-head", "nonsense").exit_code == 1


def test_another_ledger_is_taken_for_one_command_alone(merged, tmp_path):
    other = f"sqlite:///{tmp_path}/other.db"
    assert run("ledger", "head", "--ledger-uri", other).stdout.startswith("0:")
    assert run("ledger", "head").stdout.startswith("2:")
    refused = run("ledger", "head", "--ledger-uri", "mysql://x/y")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: a ledger can't be kept in 'mysql'")


def test_diff(zoo):
    result = run("diff", zoo.sources[0], zoo.sources[1])
    assert result.exit_code == 0, result.output
    assert "visual.transformer.resblocks.0" in result.stdout
    found = json.loads(run("diff", zoo.sources[0], zoo.base, "--json").stdout)
    assert found["uris"] == [zoo.sources[0], zoo.base]


def test_the_ledgers_commands_explain_themselves():
    for name, command in cli.main.commands["ledger"].commands.items():
        result = run("ledger", name, "--help")
        assert result.exit_code == 0
        assert command.get_short_help_str()
        assert all(option.help for option in command.params if hasattr(option, "help"))
