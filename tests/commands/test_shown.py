"""What a command prints of others' text: no password, and nothing that a terminal obeys."""

import json
import logging

import mlflow
import pytest
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, ledger
from mlflow_breadcrumbs.audit import export
from mlflow_breadcrumbs.engine import recipe
from mlflow_breadcrumbs.ledger import stores
from mlflow_breadcrumbs.lineage import contents
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import tag_keys, versions

PASSWORD = "hunter2"
NASTY = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202ered"


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ("lineage", "models:/m/1"),
        ("verify", "models:/m/1"),
        ("evaluate", "models:/m/1", "--tasks", "tasks.yaml"),
        ("approve", "m", "--version", 1),
        ("hooks", "register", "--url", "http://u:hunter2@h/"),
    ],
)
def test_a_password_of_the_tracking_uri_is_masked(tmp_path, monkeypatch, arguments):
    monkeypatch.setenv(stores.VARIABLE, f"sqlite:///{tmp_path}/ledger.db")
    previous = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("BREADCRUMBS_WEBHOOK_SECRET", "a secret of some length")
    (tmp_path / "tasks.yaml").write_text("tasks: []")
    zoos.use(f"http://ann:{PASSWORD}@127.0.0.1:9")
    result = run(*arguments)
    zoos.use(previous)
    assert result.exit_code == 1, result.output
    assert PASSWORD not in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"postgresql://ann:{PASSWORD}@127.0.0.1:9/x", "postgresql+psycopg://ann:***@127.0.0.1"),
        (f"postgres//ann:{PASSWORD}@127.0.0.1/x", "'***@127.0.0.1/x' is no ledger's URI"),
        (f"mysql://ann:{PASSWORD}@127.0.0.1/x", "a ledger can't be kept in 'mysql'"),
    ],
)
def test_a_password_of_the_ledgers_uri_is_masked(store, uri, shown):
    result = run("history", "m", "--ledger-uri", uri)
    assert result.exit_code == 1, result.output
    assert shown in result.output
    assert PASSWORD not in result.output


def test_a_usage_error_and_a_log_are_masked(store, monkeypatch, capsys):
    expected = ("--expect-current", f"http://u:{PASSWORD}@h", "--policy", "x", "--alias", "live")
    result = run("promote", "m", "--version", 1, *expected)
    assert result.exit_code == 2
    assert PASSWORD not in result.output
    result = run(f"http://u:{PASSWORD}@h\x1b[2J")
    assert (result.exit_code, PASSWORD in result.output) == (2, False)
    assert "\x1b[2J" not in result.output
    record = logging.LogRecord("mlflow", 30, "", 1, "%s \x1b[2J", (f"http://u:{PASSWORD}@h",), None)
    shown = cli._Shown("%(message)s").format(record)
    assert shown == "http://***@h \\x1b[2J"
    cli._show(ValueError, ValueError(f"http://u:{PASSWORD}@h"), None)
    assert capsys.readouterr().err.endswith("ValueError: http://***@h\n")


def test_lineage_and_events_have_no_password(zoo, monkeypatch):
    tasks = f"https://ann:{PASSWORD}@127.0.0.1/tasks.yaml?token={PASSWORD}"
    monkeypatch.setattr(flow.inputs, "plan_evaluation", lambda taken, given: ())
    request = flow.MergeRequest(
        base=zoo.base,
        sources=zoo.sources[:2],
        registered_model="merged",
        recipe=recipe.MergeRecipe.from_method("breadcrumbs", sources=2),
        tasks=tasks,
        device="cpu",
    )
    made = flow.merge(request).version
    content, _ = contents.read_statement(versions.resolve(made.uri))
    assert PASSWORD.encode() not in content
    assert b"https://***@127.0.0.1/tasks.yaml?token=***" in content
    for form in ("slsa", "cyclonedx", "model-card"):
        assert PASSWORD not in export.export(made.uri, form)
    ledger.note("merge", "merged", details={"from": [tasks]})
    with stores.opened() as opened, opened.reading() as connection:
        bodies = [row.body for row in ledger.events.rows(connection)]
    assert not any(PASSWORD in body for body in bodies)


@pytest.fixture
def nasty(family):
    """A version of which tasks, licence and a comment hold what a terminal obeys."""
    client = mlflow.MlflowClient()
    client.set_model_version_tag("merged", "1", tag_keys.TASK, f"colours,{NASTY}")
    client.set_model_version_tag("tiny-colours", "1", "license", f"MIT{NASTY}")
    ledger.note("approval", "merged", details={"comment": NASTY, "weights_digest": "x"})
    return family


@pytest.mark.parametrize(
    "arguments",
    [
        ("lineage", "models:/merged/1"),
        ("lineage", "models:/merged/1", "--format", "mermaid"),
        ("lineage", "models:/merged/1", "--format", "dot"),
        ("lineage", "models:/merged/1", "--json"),
        ("impact", "models:/tiny-colours/1"),
        ("history", "merged"),
        ("history", "merged", "--json"),
        ("verify", "models:/merged/1"),
        ("promote", "merged", "--version", 1, "--alias", "champion", "--policy", "policy.yaml"),
        ("promote", "merged", "--version", 1, "--alias", NASTY, "--policy", "policy.yaml"),
        ("lineage", f"models:/{NASTY}/1"),
        ("history", NASTY),
    ],
)
def test_a_terminal_gets_no_control_character(nasty, tmp_path, monkeypatch, arguments):
    (nasty.folder / "policy.yaml").write_text('licences: [MIT]\ntasks: {"*": {accuracy: 0}}')
    result = run(*arguments)
    assert result.exit_code in (0, 1, 3), result.output
    for character in ("\x1b", "\x07", "\x9b", "\u202e"):
        assert character not in result.output
    if "--json" in arguments:
        json.loads(result.stdout)


def test_promote_shows_what_is_there(nasty):
    (nasty.folder / "policy.yaml").write_text("licences: [MIT]")
    arguments = ("--version", 1, "--alias", "champion", "--policy", "policy.yaml")
    result = run("promote", "merged", *arguments)
    assert "MIT\\x1b]0;owned" in result.output
    verdict = json.loads(run("history", "merged", "--json").stdout)
    decision = verdict[-1]["details"]["decision"]
    place = mlflow.get_run(decision).info.artifact_uri
    assert "\x1b" not in mlflow.artifacts.load_text(f"{place}/verdict.md")
