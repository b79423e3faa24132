"""A real tracking server's webhooks to a real `hooks serve`: direct changes are history at once."""

import contextlib
import json
import signal
import subprocess
import sys
import time
import uuid

import mlflow
import pytest
import requests
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli, ledger
from mlflow_breadcrumbs.ledger import stores
from mlflow_breadcrumbs.webhooks import signatures

pytestmark = pytest.mark.slow

SECRET = "a secret of the webhook's two ends"


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def model(server, tmp_path, monkeypatch):
    """A model of this test's own on the server, with three versions; its name."""
    previous = mlflow.get_tracking_uri()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(stores.VARIABLE, f"sqlite:///{tmp_path}/ledger.db")
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    zoos.use(server)
    client, name = mlflow.MlflowClient(), f"m-{uuid.uuid4().hex[:8]}"
    client.create_registered_model(name)
    for _ in range(3):
        client.create_model_version(name, "s3://nowhere/at/all")
    ledger.look([name])
    yield name
    zoos.use(previous)


@contextlib.contextmanager
def serving(folder, port=0):
    """`hooks serve` as a process of its own; its URL."""
    command = [sys.executable, "-m", "mlflow_breadcrumbs", "hooks", "serve"]
    command += ["--port", str(port), "--secret-file", str(folder / "secret")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        words, _, url = process.stderr.readline().strip().rpartition(" ")
        assert words == "receiving at", words + process.stderr.read()
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0, rest
    assert rest.endswith("the receiver ends\n")


def wait_for(name, count):
    """The moves of a model's aliases, once there are so many."""
    for _ in range(600):
        found = ledger.alias_changes(name)
        if len(found) >= count:
            break
        time.sleep(0.1)
    return [(move.before, move.after, move.is_direct, move.how) for move in found]


def forged(url, name, secret, identifier="ours"):
    """A delivery as the server sends them, signed with some secret; the receiver's answer."""
    data = {"name": name, "alias": "champion", "version": "3"}
    told = {"entity": "model_version_alias", "action": "created", "timestamp": ledger.now()}
    body, timestamp = json.dumps(told | {"data": data}).encode(), str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-MLflow-Delivery-Id": identifier,
        "X-MLflow-Timestamp": timestamp,
        "X-MLflow-Signature": signatures.sign(secret.encode(), identifier, timestamp, body),
    }
    return requests.post(url, body, headers=headers, timeout=60).status_code


def test_an_alias_that_a_plain_client_moves_is_history_at_once(model, tmp_path):
    client = mlflow.MlflowClient()
    with serving(tmp_path) as url:
        arguments = ("--url", url, "--secret-file", tmp_path / "secret", "--json")
        registered = run("hooks", "register", *arguments)
        assert registered.exit_code == 0, registered.output
        made = json.loads(registered.stdout)
        again = json.loads(run("hooks", "register", *arguments).stdout)
        assert (made["renewed"], again["renewed"]) == (False, True)
        assert made["id"] == again["id"]
        time.sleep(1.5)  # until the server looks for webhooks again
        client.set_registered_model_alias(model, "champion", "1")
        expected = [(None, "1", True, "webhook")]
        assert wait_for(model, 1) == expected
        ledger.set_alias(model, "champion", "2")  # ours, and its webhook comes all the same
        expected.append(("1", "2", False, None))
        client.delete_registered_model_alias(model, "champion")
        expected.append(("2", None, True, "webhook"))
        assert wait_for(model, 3) == expected
        assert ledger.look([model]) == []
        assert forged(url, model, "some other secret of ours") == 401
        assert forged(url, model, SECRET) == 200
        assert forged(url, model, SECRET) == 409
    with serving(tmp_path) as other:
        assert forged(other, model, SECRET) == 409  # it remembers what came before it was started
    client.delete_webhook(made["id"])
    assert len(ledger.alias_changes(model)) == 5  # there and back: the registry has no such alias
    assert ledger.verify(in_mlflow=False).holds


def test_a_receiver_that_is_not_there_is_found_when_it_is_registered(model, tmp_path):
    url = "http://127.0.0.1:9/"
    result = run("hooks", "register", "--url", url, "--secret-file", tmp_path / "secret")
    assert result.exit_code == 3
    assert "Error: the test delivery was not taken: Failed to test webhook" in result.stderr
    client = mlflow.MlflowClient()
    (hook,) = [hook for hook in client.list_webhooks() if hook.url == url]
    client.delete_webhook(hook.webhook_id)


def test_a_url_that_the_server_does_not_take(model, tmp_path):
    result = run("hooks", "register", "--url", "ftp://x/", "--secret-file", tmp_path / "secret")
    assert result.exit_code == 1
    assert "cannot register a webhook for ftp://x/: " in result.stderr
    assert "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https" in result.stderr
