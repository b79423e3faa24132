"""How much a command says: quiet, as usual and verbose, over a tracking server; bars and lines."""

import logging
import os
import re
import sys

import pytest
from click.testing import CliRunner

from mlflow_breadcrumbs import cli
from mlflow_breadcrumbs.commands import printing, terminal, volume
from mlflow_breadcrumbs.support import wording

CHATTER = ("View run", "View experiment", "Downloading", "Uploading", "%|", "\r")
"""What MLflow prints and draws."""


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def merge(zoo, name, *more):
    given = ("--base", zoo.base, "--source", zoo.sources[0], "--tasks", zoo.tasks)
    result = run("merge", *given, "--registered-model", name, "--no-cache", *more)
    assert result.exit_code == 0, result.output
    assert not any(word in result.output for word in CHATTER)
    return result


def test_progress_is_a_line_per_stage_where_no_terminal_is(on_server):
    result = merge(on_server, "as-usual")
    assert re.sub(r"\d+ MB", "3 MB", result.stderr) == (
        "measure the changes: 38 tensors\nmerge: 3 MB\n" + 3 * "evaluate colours/test: 6 images\n"
    )


def test_quiet_leaves_the_result(on_server):
    result = merge(on_server, "quiet", "--quiet")
    assert result.stderr == ""
    assert "models:/quiet/1 registered" in result.stdout


def test_verbose_shows_what_is_logged(on_server):
    result = merge(on_server, "verbose", "-v")
    assert "Successfully registered model 'verbose'." in result.stderr


def test_mlflow_says_and_logs_afterwards_what_it_did_before(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    variables = dict(os.environ)
    names = (volume.OURS, *volume.THEIRS)
    levels = [logging.getLogger(name).level for name in names]
    assert run("history", "m", "--verbose").exit_code == 0
    assert dict(os.environ) == variables
    assert [logging.getLogger(name).level for name in names] == levels


@pytest.mark.parametrize(
    ("given", "level"),
    [((), "ERROR"), (("--verbose",), "INFO"), (("--verbose", "-q"), "ERROR"), (("-qv",), "INFO")],
)
def test_an_option_beats_mlflows_variable_and_the_last_one_holds(store, monkeypatch, given, level):
    monkeypatch.setenv(volume.MLFLOW_LEVEL, "error")
    seen = []
    monkeypatch.setattr(
        "mlflow_breadcrumbs.ledger.history", lambda _: seen.append(os.environ[volume.MLFLOW_LEVEL])
    )
    run("history", "m", *given)
    assert [each.upper() for each in seen] == [level]


def test_every_command_takes_both():
    def leaves(command):
        commands = getattr(command, "commands", {}).values()
        return [command, *(leaf for each in commands for leaf in leaves(each))]

    for command in leaves(cli.main):
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"-q", "--quiet", "-v", "--verbose"} <= options, command.name


def test_a_line_now_and_then_says_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "NOW_AND_THEN", 0.0)
    for total, unit in ((6, "recipes"), (2e6, "bytes"), (None, "versions")):
        with terminal.show("try", total=total, unit=unit) as advance:
            advance(1e6 if unit == "bytes" else 3)
            advance(1e6 if unit == "bytes" else 3)
    said = re.sub(r"\d+ s left", "0 s left", capsys.readouterr().err)
    assert said == (
        "try: 6 recipes\ntry: 3 of 6 recipes · 0 s left\n"
        "try: 2 MB\ntry: 1 of 2 MB · 0 s left\n"
        "try\ntry: 3 versions\ntry: 6 versions\n"
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(60, " · 60 s left"), (120, " · 2 min left"), (7200, " · 2 h left")],
)
def test_the_time_that_is_left(seconds, words):
    assert terminal._left(3, 6, seconds) == words
    assert terminal._left(0, 6, seconds) == terminal._left(7, 6, seconds) == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert terminal.show("x", total=1).func is terminal._bar.__wrapped__


def test_yes_and_no_are_words_and_no_numbers(capsys):
    terminal.print_table([{"a": True, "b": 1}, {"a": False, "b": 2}], {"a": "sure", "b": "n"})
    assert re.findall(r"│ (\w+) *│ (\d)", capsys.readouterr().out) == [("yes", "1"), ("no", "2")]
    assert printing.details({"ok": True, "name": "x"}) == "ok=yes, name=x"


@pytest.mark.parametrize(
    ("number", "things", "words"),
    [(1, "versions", "1 version"), (0, "versions", "0 versions"), (1, "passes", "1 pass")],
)
def test_one_of_several(number, things, words):
    assert wording.counted(number, things) == words
