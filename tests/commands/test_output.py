"""What every command prints, held against kept files in `tests/goldens/output`.

What changes from call to call or from machine to machine is masked: digests, ids, times, numbers
that are measured, places, versions of packages. `make goldens` writes the files anew; look at the
difference before it is committed.
"""

import contextlib
import getpass
import os
import pty
import re
import shutil
import socket
import threading
from pathlib import Path

import every_command
import listener as listeners
import pytest
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs import cli

GOLDENS = Path(__file__).parents[1] / "goldens" / "output"
REWRITE = "REWRITE_GOLDENS"
"""The variable by which `make goldens` asks for new files."""
NAMES = [
    name for name, _ in every_command.leaves(cli.main)
    if name not in {*every_command.ELSEWHERE, "hooks serve"}  # it serves until it is stopped
]  # fmt: skip
DRAWN = ("merge", "sweep", "verify", "history", "list")
"""Commands that are looked at in a terminal, too."""

MASKS = (
    (r"sha256:[0-9a-f]{64}", "sha256:<digest>"),
    (r"sha256:[0-9a-f]{12,}…?", "sha256:<digest>"),
    (r"\bm-[0-9a-f]{32}", "m-<id>"),
    (r"\b[0-9a-f]{32}\b", "<id>"),
    (r"\b[0-9a-f]{12}…", "<digest>"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<id>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00)?", "<time>"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:<port>"),
    (r"[-+]?\b\d+\.\d+(e[-+]\d+)?\b%?", "<number>"),
    (r", \d+ MB/s", ""),
    (r"\d+:\d\d:\d\d|-:--:--", "<time>"),
    (r"[━─╸╺]{2,}", "──"),
    (r" {2,}", "  "),
    (r" *([│┃]) *", r" \1 "),
    (r"(?m)^(\s*│ \w+ │ )\d+( │ 6 │)", r"\1<count>\2"),
    (r"(?m)^ +(?=[│┃])| +$", ""),
)
"""Patterns and what stands in their place, in this order."""


def whole(text):
    """The text with each row of a table on one line: how it wraps hangs on the length of names."""
    lines = []
    for line in text.split("\n"):
        cells = line.split("│")[1:-1] if line.startswith("│") else []
        if len(cells) > 1 and not cells[0].strip():
            above = lines[-1].split("│")[1:-1]
            joined = (
                f"{one.rstrip()} {more.strip()} " for one, more in zip(above, cells, strict=True)
            )
            lines[-1] = f"│{'│'.join(joined)}│"
        else:
            lines.append(line)
    return "\n".join(lines)


def masked(text, places):
    text = whole(text)
    for place, word in places.items():
        text = text.replace(place, word)
    for pattern, word in MASKS:
        text = re.sub(pattern, word, text)
    return text


def screen(written):
    """The lines that a terminal shows in the end: bars are drawn again and again."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif up := re.fullmatch(r"\x1b\[(\d+)A", part):
            row -= int(up[1])
        elif part[0] not in "\x1b\r":
            lines[row] += part
    return "\n".join(lines)


def on_terminal(arguments):
    """What a command writes to a real terminal; stdout and stderr are one there."""
    reading, writing = pty.openpty()
    chunks = []

    def read():
        with contextlib.suppress(OSError):  # the other end was closed
            while chunk := os.read(reading, 4096):
                chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    code = 0
    with (
        open(writing, "w", encoding="utf-8") as terminal,
        contextlib.redirect_stdout(terminal),
        contextlib.redirect_stderr(terminal),
    ):
        try:
            cli.main(arguments, standalone_mode=True)
        except SystemExit as ended:
            code = ended.code
    reader.join(30)
    os.close(reading)
    return screen(b"".join(chunks).decode().replace("\r\n", "\n")), code


@pytest.fixture(scope="module")
def said(filled, tmp_path_factory):
    """What every command said, by its name; those in a terminal by `terminal/NAME`."""
    folder = tmp_path_factory.mktemp("output")
    shutil.copy(filled.folder / "mlflow.db", folder / "mlflow.db")
    policy = folder / "policy.yaml"
    policy.write_text("average_accuracy: 0\n")
    places = {
        str(filled.folder): "<zoo>",
        str(folder): "<folder>",
        f"{getpass.getuser()}@{socket.gethostname()}": "<user>",
        f"ann@{socket.gethostname()}": "<user>",
    }
    found = {}
    variables = {
        "BREADCRUMBS_CACHE": str(folder / "cache"),
        "BREADCRUMBS_LEDGER_URI": f"sqlite:///{folder}/ledger.db",
        "BREADCRUMBS_NOTIFY_SECRET": "a secret of some length",
        "BREADCRUMBS_WEBHOOK_SECRET": "a secret of some length",
        "COLUMNS": "160",
        "LOGNAME": "ann",
        "TERM": "xterm-256color",
    }
    with (
        pytest.MonkeyPatch.context() as patch,
        zoos.installed(),
        zoos.working_in(folder),
        listeners.running() as receiver,
    ):
        for name, value in variables.items():
            patch.setenv(name, value)
        given = every_command.calls(filled, policy, receiver.url, "shown")
        given |= {"export": (*given["export"], "--output", "lineage.json")}
        for name, arguments in given.items():
            typed = [*name.split(), *map(str, arguments)]
            done = CliRunner().invoke(cli.main, typed)
            text = f"{done.stdout}--- stderr\n{done.stderr}--- exit code {done.exit_code}\n"
            found[name] = masked(text, places)
        fresh = {
            "merge": (*given["merge"], "--no-cache", "--force"),
            "sweep": (*given["sweep"], "--density", "0.3"),
        }
        for name in DRAWN:
            text, code = on_terminal([name, *map(str, fresh.get(name, given[name]))])
            found[f"terminal/{name}"] = masked(f"{text}--- exit code {code}\n", places)
    return found


@pytest.mark.parametrize("name", [*NAMES, *(f"terminal/{name}" for name in DRAWN)])
def test_a_command_prints_what_is_kept(said, name):
    path = GOLDENS / f"{name.replace(' ', '-')}.txt"
    if os.environ.get(REWRITE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said[name], encoding="utf-8")
    assert said[name] == path.read_text(encoding="utf-8"), "`make goldens` writes them anew"


def test_no_file_is_kept_of_a_command_that_is_gone():
    kept = {path.relative_to(GOLDENS).with_suffix("").as_posix() for path in GOLDENS.rglob("*.txt")}
    names = {name.replace(" ", "-") for name in NAMES}
    assert kept == names | {f"terminal/{name}" for name in DRAWN}


def test_the_screen_is_what_is_seen_in_the_end():
    written = "a\nbar 1\r\x1b[2Kbar 2\n\x1b[1A\r\x1b[2K\x1b[31mdone\x1b[0m\nlast"
    assert screen(written) == "a\ndone\nlast"
