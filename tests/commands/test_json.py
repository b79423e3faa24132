"""`--json` prints JSON and nothing else, of every command, over a tracking server."""

import json

import click
import listener as listeners
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli

pytestmark = pytest.mark.slow

ELSEWHERE = {"quickstart"}
"""Has a store of its own, and tests of its own."""


def leaves(command, path=()):
    """The commands that do something, by what is typed."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaves(below, (*path, name))
    else:
        yield " ".join(path), command


def calls(zoo, policy, url):
    """What each command is given, in an order in which they can be called."""
    sources = ("--base", zoo.base, "--sources", ",".join(zoo.sources[:2]))
    tasks, made = ("--tasks", zoo.tasks), "models:/as-json/1"
    base, one = (zoo.folder / f"{name}.safetensors" for name in ("base", "colours"))
    return {
        "import": (one, "--architecture", zoo.architecture, "--registered-model", "in-json"),
        "finetune": (
            *("--base", zoo.base, *tasks, "--task", "colours", "--steps", 1),
            *("--registered-model", "tuned-json"),
        ),
        "compare": sources,
        "merge": (*sources, *tasks, "--registered-model", "as-json", "--alias", "candidate"),
        "merge-files": ("--base", base, "--source", one, "--output", "out.safetensors"),
        "plan": ("--base", base, "--source", one, "--output", "shards.safetensors"),
        "work": ("shards.safetensors.plan.json", "--missing"),
        "finish": ("shards.safetensors.plan.json",),
        "evaluate": (made, *tasks),
        "sweep": (*sources, *tasks, "--alpha", "0.5", "--no-robustness"),
        "scaling": (*sources, *tasks, "--methods", "breadcrumbs", "--smallest", "1"),
        "blame": (made, "--task", "colours", *tasks, "--finalists", 0),
        "promote": ("as-json", "--version", 1, "--alias", "live", "--policy", policy),
        "recheck": ("as-json@live", *tasks),
        "rollback": ("as-json", "--alias", "live"),
        "approve": ("as-json", "--version", 1),
        "list": (),
        "lineage": (made,),
        "impact": (zoo.base,),
        "diff": (made, made),
        "verify": (made,),
        "reproduce": (made,),
        "export": (made, "--format", "slsa"),
        "report": (made,),
        "ledger sync": (),
        "ledger head": (),
        "ledger verify": (),
        "history": ("as-json",),
        "watch": ("--once", "as-json"),
        "hooks register": ("--url", url, "--no-test"),
        "hooks deliver": ("--notify-url", url),
    }


REFUSED = {"rollback", "approve"}
"""Where there is nothing earlier, and of those who made it: exit codes 3 and 1."""


def test_json_and_nothing_else(on_server, tmp_path, monkeypatch):
    monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", f"sqlite:///{tmp_path}/ledger.db")
    for name in ("WEBHOOK", "NOTIFY"):
        monkeypatch.setenv(f"BREADCRUMBS_{name}_SECRET", "a secret of some length")
    policy = tmp_path / "policy.yaml"
    policy.write_text("average_accuracy: 0\n")
    with listeners.running() as receiver:
        given = calls(on_server, policy, receiver.url)
        takes = {
            name
            for name, command in leaves(cli.main)
            if "--json" in {option for each in command.params for option in each.opts}
        }
        assert takes == {*given, *ELSEWHERE}
        said = {name: told(name, arguments) for name, arguments in given.items()}
    for name, result in said.items():
        assert "\r" not in result.output, name
        assert (result.exit_code == 0) == (name not in REFUSED), (name, result.output)
        if name in ("watch", "approve"):
            assert result.stdout == "", name  # no line, since there is no news; an error
        else:
            json.loads(result.stdout)


def told(name, arguments):
    typed = [*name.split(), *(str(argument) for argument in arguments), "--json"]
    return CliRunner().invoke(cli.main, typed)
