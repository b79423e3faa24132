"""A warm process that runs commands and scripts, each in a fork of its own.

To import torch, open_clip and MLflow takes seconds, and a fork takes none. So a test that is about
what a command does, called by a script or by `mlflow run`, or about several commands at once, has
it run here: the same code in a process of its own, with its own environment, folder and output.
Tests of how a process starts start one. Nothing is computed or connected in the warm process.

MLflow's server starts so, too: its command, uvicorn, and uvicorn's workers are forks. What reads
the environment when it is imported, `mlflow.server` above all, each of them imports itself.
"""

import atexit
import contextlib
import dataclasses
import functools
import gc
import importlib
import json
import multiprocessing
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAUNCHER = """\
#!{python} -IS
import array, json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as warm:
    warm.connect({address!r})
    files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    warm.sendmsg([b"+"], files)
    order = {{"program": os.path.basename(sys.argv[0]), "given": sys.argv[1:]}}
    order |= {{"folder": os.getcwd(), "environment": dict(os.environ)}}
    warm.sendall(json.dumps(order).encode() + b"\\n")
    answers = warm.makefile()
    fork = int(answers.readline() or 0)
    for number in (signal.SIGINT, signal.SIGTERM) if fork else ():
        signal.signal(number, lambda number, _: os.kill(fork, number))
    code = answers.readline()
sys.exit(int(code) if code else 137)
"""
"""A command, as a program that starts in no time."""

PROGRAMS = ("mlflow-breadcrumbs", "mlflow", "uvicorn")
"""What starts so, by its name or as a module of `python -m`; MLflow's server is a uvicorn."""

LATE = (
    "git",
    "mlflow.models.display_utils",
    "mlflow.store.model_registry.sqlalchemy_workspace_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.utils.search_logged_model_utils",
    "scipy.linalg",
    "sqlalchemy.dialects.sqlite",
)
"""What a merge imports when it comes to it."""

ANEW = ("mlflow.assistant", "mlflow.cli", "mlflow.server", "mlflow_breadcrumbs.server")
"""What reads the environment when it is imported, and what imports that."""


@dataclasses.dataclass(frozen=True)
class Warm:
    """Where the process listens, and a folder for `PATH` with the commands that it runs."""

    address: str
    commands: Path

    def run(self, program: str, given: Any) -> subprocess.CompletedProcess:
        """Run `main(given)` of a script beside this file; its output, as `subprocess.run`'s."""
        with (
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as messages,
            open(os.devnull) as nothing,
            socket.socket(socket.AF_UNIX) as warm,
        ):
            warm.connect(self.address)
            files = [file.fileno() for file in (nothing, output, messages)]
            socket.send_fds(warm, [b"+"], files)
            order = {"program": program, "given": given}
            order |= {"folder": os.getcwd(), "environment": dict(os.environ)}
            warm.sendall(json.dumps(order).encode() + b"\n")
            answers = warm.makefile()
            answers.readline()  # the number of the fork
            code = answers.readline()
            texts = []
            for file in (output, messages):
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(program, int(code) if code else -9, *texts)

    def path(self) -> str:
        """`PATH` where both commands, `python -m` either, and `python SCRIPT.py` are run here."""
        return os.pathsep.join([str(self.commands), os.environ["PATH"]])

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Start forks where this process would start its Python."""
        own, sys.executable = sys.executable, str(self.commands / "python")
        try:
            yield
        finally:
            sys.executable = own


def write_programs(folder: Path, address: str) -> None:
    """Write the programs into a folder, and a `python` that knows their modules, and scripts."""
    folder.mkdir()
    lines = ["#!/bin/sh", 'case "$1 $2" in']
    for program in PROGRAMS:
        path = folder / program
        path.write_text(LAUNCHER.format(python=sys.executable, address=address))
        lines.append(f'"-m {program.replace("-", "_")}") shift 2; exec {path} "$@";;')
    (folder / "script").write_text(LAUNCHER.format(python=sys.executable, address=address))
    lines += ["esac", f'case "$1" in *.py) exec {folder}/script "$@";; esac']
    lines += [f'exec {sys.executable} "$@"', ""]
    (folder / "python").write_text("\n".join(lines))
    for path in folder.iterdir():
        path.chmod(0o755)


@contextlib.contextmanager
def running() -> Iterator[Warm]:
    """Start the process."""
    with tempfile.TemporaryDirectory(prefix="warm-") as name:
        folder = Path(name)
        address, commands = str(folder / "socket"), folder / "bin"
        write_programs(commands, address)
        process = subprocess.Popen(
            [sys.executable, __file__, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"MLFLOW_TRACKING_URI": ""},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield Warm(address, commands)
        finally:
            process.communicate()  # closes its input, which ends it


@functools.cache
def started() -> Warm:
    """The one process of this one, which ends with it."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(running())


def import_everything() -> None:
    """Import what the commands import when they are called, and what a server does."""
    import mlflow.cli
    import mlflow.pyfunc
    import mlflow.server.auth
    import mlflow.server.fastapi_app  # noqa: F401
    from mlflow.utils import requirements_utils
    from sqlalchemy import orm

    import mlflow_breadcrumbs

    for module in pkgutil.walk_packages(mlflow_breadcrumbs.__path__, "mlflow_breadcrumbs."):
        if not module.name.endswith(("__main__", "gpu_kernels")):
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    orm.configure_mappers()
    requirements_utils._init_modules_to_packages_map()  # which packages are there: a second
    forget()


def forget() -> None:
    """Let every fork import with its own environment what depends on it."""
    for name in list(sys.modules):
        if any(f"{name}.".startswith(f"{anew}.") for anew in ANEW):
            del sys.modules[name]
    for anew in ANEW:
        package, _, module = anew.partition(".")
        vars(sys.modules[package]).pop(module, None)


def call(program: str, given: Any, commands: Path) -> None:
    """Be that program."""
    if program == "mlflow-breadcrumbs":
        from mlflow_breadcrumbs import cli

        cli.main(given, prog_name=program)
    elif program == "mlflow":
        import mlflow.cli

        sys.executable = str(commands / "python")  # by which it starts uvicorn
        mlflow.cli.cli(given, prog_name=program)
    elif program == "uvicorn":
        from uvicorn import _subprocess, main

        _subprocess.spawn = multiprocessing.get_context("fork")
        main.main(given, prog_name=program)
    elif program == "script":
        sys.argv = given
        sys.path.insert(0, str(Path(given[0]).resolve().parent))
        runpy.run_path(given[0], run_name="__main__")
    else:
        importlib.import_module(program).main(given)


def obey(connection: socket.socket, commands: Path) -> None:
    """Run what a connection asks for, in this process, and end with it."""
    code = 1
    try:
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        order = json.loads(connection.makefile().readline())
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        paths = order["environment"].get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [path for path in paths if path and path not in sys.path]
        connection.sendall(f"{os.getpid()}\n".encode())
        call(order["program"], order["given"], commands)
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            connection.sendall(f"{code}\n".encode())
        os._exit(code)


def serve(address: str) -> None:
    """Fork for every connection, until the input ends."""
    import_everything()
    importlib.import_module("faults")
    importlib.import_module("promoters")
    gc.freeze()  # a fork that looks for garbage in all of this copies its pages
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
        while True:
            readable, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in readable:
                return
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                obey(connection, Path(address).with_name("bin"))
            connection.close()


if __name__ == "__main__":
    serve(sys.argv[1])
