"""`--json` prints JSON and nothing else, of every command, over a tracking server."""

import json

import every_command
import listener as listeners
import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli

pytestmark = pytest.mark.slow


def test_json_and_nothing_else(on_server, tmp_path, monkeypatch):
    monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", f"sqlite:///{tmp_path}/ledger.db")
    for name in ("WEBHOOK", "NOTIFY"):
        monkeypatch.setenv(f"BREADCRUMBS_{name}_SECRET", "a secret of some length")
    policy = tmp_path / "policy.yaml"
    policy.write_text("average_accuracy: 0\n")
    with listeners.running() as receiver:
        given = every_command.calls(on_server, policy, receiver.url, "as-json")
        takes = {
            name
            for name, command in every_command.leaves(cli.main)
            if "--json" in {option for each in command.params for option in each.opts}
        }
        assert takes == {*given, *every_command.ELSEWHERE}
        said = {name: told(name, arguments) for name, arguments in given.items()}
    for name, result in said.items():
        assert "\r" not in result.output, name
        assert (result.exit_code == 0) == (name not in every_command.REFUSED), (name, result.output)
        if name in ("watch", "approve"):
            assert result.stdout == "", name  # no line, since there is no news; an error
        else:
            json.loads(result.stdout)


def told(name, arguments):
    typed = [*name.split(), *(str(argument) for argument in arguments), "--json"]
    return CliRunner().invoke(cli.main, typed)
