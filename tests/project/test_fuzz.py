"""A minute of damaged input of every kind: nothing but the package's own errors comes out.

`make fuzz` runs the same for longer.
"""

import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # `fuzz` lies beside the package and is not installed

from fuzz import mutations, targets  # noqa: E402

INPUTS = 100
"""Of each target; the whole takes about a minute."""


def test_every_target_has_examples():
    assert {path.name for path in mutations.CORPUS.iterdir()} == set(targets.TARGETS)
    for target in targets.TARGETS:
        sizes = [len(content) for content in mutations.examples(target)]
        assert sizes
        assert max(sizes) < 20_000


@pytest.mark.parametrize("target", targets.TARGETS)
def test_sound_examples_are_taken(tmp_path, target):
    """Otherwise the fuzzing would stop at the first line of a reader."""
    taken = [targets.run(target, c, tmp_path / "x") for c in mutations.examples(target)]
    assert any(taken)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_nothing_but_own_errors(tmp_path, target):
    @hypothesis.settings(
        max_examples=INPUTS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(mutations.damaged(mutations.examples(target)))
    def run(content):
        targets.run(target, content, tmp_path / "x")

    run()


def test_a_fault_is_found_and_kept(tmp_path):
    script = (
        "import sys; sys.argv = ['fuzz', '--seconds', '20', 'webhook']\n"
        "from fuzz import __main__ as command, targets\n"
        f"command.FOUND = __import__('pathlib').Path({str(tmp_path / 'found')!r})\n"
        "def broken(content, folder): raise KeyError('a fault')\n"
        "targets.TARGETS = {'webhook': broken}\n"
        "command.time = type('Clock', (), {'monotonic': iter(range(10**6)).__next__})\n"
        "sys.exit(command.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "KeyError: 'a fault'" in done.stderr
    assert done.stdout.splitlines()[1].startswith("webhook")
    assert len(list((tmp_path / "found").iterdir())) == 1
