"""A program of the user's: real processes, within limits."""

import os
import sys
import time
from pathlib import Path

import pytest

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import programs


def output(script, *words, seconds=30.0):
    command = [sys.executable, "-c", script, *words]
    return programs.output(command, "the program", errors.TaskError, seconds=seconds)


def test_what_it_prints_and_nothing_is_interpreted():
    said = output("import sys; print(sys.argv[1:])", "$HOME", "a b", "; exit 1")
    assert said == b"['$HOME', 'a b', '; exit 1']\n"


def test_it_reads_nothing():
    assert output("import sys; print(repr(sys.stdin.read()))") == b"''\n"


def test_it_fails_with_what_it_said_last():
    with pytest.raises(errors.TaskError, match=r"the program failed with exit code 7: out of luck"):
        output("import sys; print('out of luck', file=sys.stderr); sys.exit(7)")


def test_a_program_that_is_not_there():
    with pytest.raises(errors.TaskError, match="the program can't be started"):
        programs.output(["/nowhere/at/all"], "the program", errors.TaskError, seconds=1)


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    pid = tmp_path / "pid"
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(errors.TaskError, match="was ended after 3 seconds without a result"):
        output(script, seconds=3)
    child = int(pid.read_text())
    for _ in range(200):  # it is reaped by whoever adopted it
        try:
            os.kill(child, 0)
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child lives on")


def test_output_without_end_is_cut():
    with pytest.raises(errors.TaskError, match="printed more than 1,048,576 bytes"):
        output("while True: print('x' * 10_000)")
