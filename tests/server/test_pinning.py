"""The server's configuration: what it pins, and what is refused, in one message."""

import subprocess
import sys

import apps
import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.server import pinning

POLICY = "average_accuracy: 0.5\n"


def load(folder, text):
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "server.yaml").write_text(text)
    return pinning.load(folder / "server.yaml")


def test_the_first_pattern_that_fits_counts(tmp_path):
    (tmp_path / "strict.yaml").write_text("average_accuracy: 0.9\n")
    pins = load(tmp_path, 'aliases: {"clip-*@champion": policy.yaml, "*@champ*": strict.yaml}')
    limits = {
        name: pin.rules.average_accuracy if (pin := pins.of_alias(name, "champion")) else None
        for name in ("clip-cars", "clip-", "clip", "CLIP-cars", "a@b")
    }
    assert limits == {"clip-cars": 0.5, "clip-": 0.5, "clip": 0.9, "CLIP-cars": 0.9, "a@b": 0.9}
    assert pins.of_alias("clip-cars", "Champion") is None
    assert pins.of_alias("clip-cars", "candidate") is None


def test_without_a_file_nothing_is_pinned(monkeypatch):
    monkeypatch.delenv(pinning.VARIABLE, raising=False)
    assert pinning.configured() == pinning.Pins()
    monkeypatch.setenv(pinning.VARIABLE, "")
    assert pinning.configured() == pinning.Pins()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a mapping"),
        ("[1]", "is not a mapping"),
        ("aliases: {}", "line 1: aliases"),
        ("alias: {a@b: policy.yaml}", "alias"),
        ("aliases: {champion: policy.yaml}", "'champion' is no pattern of aliases"),
        ("aliases: {'@champion': policy.yaml}", "is no pattern of aliases"),
        ("aliases: {'clip@': policy.yaml}", "is no pattern of aliases"),
        ("aliases: {'clip@a b': policy.yaml}", "is no pattern of aliases"),
        ("aliases: {clip@champion: absent.yaml}", "absent.yaml"),
        ("aliases: {clip@champion: server.yaml}", "server.yaml is refused"),
        ("aliases: {clip@champion: 3}", "aliases.clip@champion"),
        ("aliases: {a@b: policy.yaml, a@b: policy.yaml}", "given twice"),
    ],
)
def test_what_is_refused(tmp_path, text, said):
    with pytest.raises(errors.GuardError) as caught:
        load(tmp_path, text)
    assert said in str(caught.value)
    assert str(tmp_path / "server.yaml") in str(caught.value)


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs-auth"])
def test_a_broken_file_ends_the_command_with_one_message(tmp_path, monkeypatch, name):
    found = apps.entry_points(tmp_path / "apps") | {pinning.VARIABLE: str(tmp_path / "absent.yaml")}
    for variable, text in found.items():
        monkeypatch.setenv(variable, text)
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", name, "--workers", "2"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert "absent.yaml" in last
