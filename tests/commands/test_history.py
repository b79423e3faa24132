"""history, watch and hooks as commands: what they print, as text and as JSON, and exit codes."""

import json
import os
import re
import signal
import threading
import time

import listener as listeners
import mlflow
import pytest
import registered
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, ledger
from mlflow_breadcrumbs.webhooks import outbox

SECRET = "a secret of some length"


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def model(store):
    """A model whose champion was moved by us, then directly, noticed by `ledger sync`."""
    for _ in range(2):
        registered.version("m")
    ledger.set_alias("m", "champion", "1")
    ledger.sync()
    mlflow.MlflowClient().set_registered_model_alias("m", "champion", "2")
    return store


def test_sync_says_what_was_changed_directly(model):
    result = run("ledger", "sync")
    read, noticed = result.stdout.splitlines()
    assert read.endswith("versions read: 0 added, 0 changed, 0 removed")
    assert noticed.startswith("m@champion set to 2 directly in MLflow, noticed by sync, ")
    assert json.loads(run("ledger", "sync", "--json").stdout)["noticed"] == []


def test_the_moves_of_an_alias(model):
    run("watch", "--once")
    nothing = "no alias was moved past this package since the last look\n"
    assert run("watch", "--once").stdout == nothing
    assert run("watch", "--once", "--json").stdout == ""
    result = run("history", "m", "--alias", "@champion")
    assert "direct (watch)" in result.stdout
    assert "unknown" in result.stdout
    assert result.stdout.endswith("2 moves, 1 of them directly in MLflow, past this package\n")
    assert run("history", "m", "--moves").stdout == result.stdout
    first, second = json.loads(run("history", "m", "--alias", "champion", "--json").stdout)
    assert (first["before"], first["after"], first["how"]) == (None, "1", None)
    assert (second["before"], second["after"], second["cause"]) == ("1", "2", "direct")
    assert "alias_observed" in run("history", "m").stdout
    assert run("history", "n", "--moves").stdout == "the ledger has no moves of aliases of n\n"


def test_what_was_begun_and_by_which_process_is_shown_where_it_is_asked_for(model):
    shown, whole = run("history", "m").stdout, run("history", "m", "--all").stdout
    assert "pid=" not in shown
    assert "intent" not in shown
    assert whole.count("intent") >= 1
    assert "pid=" in whole
    listed = json.loads(run("history", "m", "--json").stdout)
    assert {event["phase"] for event in listed} == {"intent", "done"}
    with ledger.recording("merge", "m") as job:
        assert "intent" in run("history", "m").stdout  # it has not ended
        job.add(weights_digest="x")
    assert "intent" not in run("history", "m").stdout


def test_times_are_of_one_format(model):
    run("watch", "--once")
    for arguments in ((), ("--all",), ("--moves",), ("--at", "2020-01-01")):
        shown = run("history", "m", *arguments).stdout
        assert re.findall(r"\d{4}-\d\d-\d\d(?!T\d\d:\d\d:\d\dZ)", shown) == []


def test_which_version_it_was_at_a_time(model):
    run("ledger", "sync")
    _, direct = ledger.alias_changes("m")
    run("ledger", "sync")
    before = run("history", "m", "--at", direct.earliest, "--alias", "champion")
    assert before.stdout.startswith("m@champion: version 1 or version 2, uncertain (set to 2 direc")
    after = run("history", "m", "--at", direct.latest)
    assert after.stdout.startswith("m@champion: version 2 (set to 2 directly in MLflow, noticed by")
    (answer,) = json.loads(run("history", "m", "--at", direct.latest, "--json").stdout)
    assert (answer["version"], answer["certain"], answer["possible"]) == ("2", True, ["2"])
    long_ago = run("history", "m", "--at", "2001-03-03 14:00")
    assert long_ago.stdout.startswith("m@champion: not set, as far as is known (nothing is known")
    assert run("history", "m", "--at", "2001-03-03", "--alias", "x").stdout.startswith(
        "m@x: unknown (the ledger knows of no @x)"
    )


@pytest.mark.parametrize(
    ("time", "code", "words"),
    [
        ("3 March", 2, "'3 March' is not a time; write 2026-03-03, '2026-03-03 14:00' (UTC) or"),
        ("2999-01-01", 1, "Error: 2999-01-01T00:00:00Z has not come yet; choose a time past"),
    ],
)
def test_a_time_that_cannot_be_asked_for(model, time, code, words):
    result = run("history", "m", "--at", time)
    assert (result.exit_code, words in result.stderr) == (code, True)


def test_a_picture(model, tmp_path):
    result = run("history", "m", "--picture", tmp_path / "m.png", "--json")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert [event["kind"] for event in json.loads(result.stdout)] == ["alias", "alias"]
    assert run("history", "n", "--picture", tmp_path / "n.png").exit_code == 1
    assert not (tmp_path / "n.png").exists()


def ending_when(happened):
    """Send SIGTERM once something has happened, which the command under test does."""

    def wait():
        while not happened():
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_watch_prints_what_it_notices_until_it_is_told_to_end(model):
    end = ending_when(lambda: len(ledger.alias_changes("m")) == 2)
    result = run("watch", "m", "--interval", "0.1", "--json")
    end.join()
    assert (result.exit_code, result.stderr) == (0, "the watch ends\n")
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["after"] == "2"


def test_a_watch_of_a_name_that_is_not_there(model):
    result = run("watch", "nothing", "--once")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the registry has no model 'nothing', and the ledger")


def test_a_watch_once_over_a_server_that_is_gone(model, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ledger_uri = f"sqlite:///{os.getcwd()}/other.db"
    mlflow.set_registry_uri("http://127.0.0.1:9")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    result = run("watch", "--once", "--ledger-uri", ledger_uri)
    assert result.exit_code == 1
    assert "the tracking server http://127.0.0.1:9 does not answer" in result.stderr


@pytest.fixture
def listener(monkeypatch):
    """Where events go, by the environment."""
    monkeypatch.setattr(outbox, "BRIEFLY", 60)
    monkeypatch.setenv("BREADCRUMBS_NOTIFY_SECRET", SECRET)
    with listeners.running() as found:
        monkeypatch.setenv("BREADCRUMBS_NOTIFY_URL", found.url)
        yield found


def test_a_command_tells_a_url_what_it_wrote_when_it_has_ended(model, listener):
    assert run("ledger", "sync").exit_code == 0
    listener.check(SECRET)
    (sent,) = listener.events
    assert sent["type"] == "alias_observed.done"
    assert (sent["data"]["details"]["before"], sent["data"]["details"]["after"]) == ("1", "2")


def test_a_receiver_that_is_out_of_order_fails_no_command(model, listener, caplog):
    listener.answers = [500]
    assert run("watch", "--once").exit_code == 0
    words = "not delivered yet: 1 event: event 3: the receiver answered 500"
    assert words in caplog.text
    waiting = run("hooks", "deliver")
    assert (waiting.exit_code, waiting.stdout) == (0, "1 event delivered\n")


def test_a_url_needs_a_secret_before_anything_is_done(model, listener, monkeypatch):
    monkeypatch.delenv("BREADCRUMBS_NOTIFY_SECRET")
    result = run("watch", "--once")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: a webhook needs a secret: set BREADCRUMBS_NOTIFY_SECRET, or "
        "--notify-secret-file FILE\n"
    )
    assert len(ledger.alias_changes("m")) == 1


def test_deliver(model, listener):
    assert run("hooks", "deliver").stdout == "0 events delivered\n"
    ledger.set_alias("m", "champion", "1")
    listener.answers = [503]
    result = run("hooks", "deliver", "--json")
    done = json.loads(result.stdout)
    assert (result.exit_code, done["sent"], done["waiting"]) == (1, 0, 2)
    assert done["problem"] == "event 4: the receiver answered 503 Service Unavailable"
    assert run("hooks", "deliver", "--from", "0").stdout == "3 events delivered\n"


def test_deliver_without_a_url(model):
    result = run("hooks", "deliver")
    assert result.exit_code == 2
    assert "Give --notify-url, or set BREADCRUMBS_NOTIFY_URL." in result.stderr


def test_deliver_follows_until_it_is_told_to_end(model, listener):
    end = ending_when(listener.come.is_set)
    result = run("hooks", "deliver", "--follow", "--from", "0")
    end.join()
    assert (result.exit_code, result.stderr) == (0, "the delivery ends\n")
    assert result.stdout == "1 event delivered\n"


def test_registering_without_a_server(model, monkeypatch):
    monkeypatch.setenv("BREADCRUMBS_WEBHOOK_SECRET", SECRET)
    result = run("hooks", "register", "--url", "https://hooks.example.org/")
    assert result.exit_code == 1
    assert "webhooks are sent by a tracking server, and MLflow is used as sqlite:" in result.stderr
    assert "or use `mlflow-breadcrumbs watch`" in result.stderr


@pytest.mark.parametrize("name", ["serve", "register"])
def test_hooks_need_a_secret(model, name, monkeypatch):
    monkeypatch.delenv("BREADCRUMBS_WEBHOOK_SECRET", raising=False)
    result = run("hooks", name, *(["--url", "https://x"] if name == "register" else []))
    assert result.exit_code == 1
    assert "set BREADCRUMBS_WEBHOOK_SECRET, or --secret-file FILE" in result.stderr


def test_the_hooks_explain_themselves():
    for name, command in cli.main.commands["hooks"].commands.items():
        result = run("hooks", name, "--help")
        assert result.exit_code == 0
        assert command.get_short_help_str()
        assert all(option.help for option in command.params if hasattr(option, "help"))
