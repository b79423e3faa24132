"""A real tracking server with accounts, and who uses it."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import zoos
from mlflow.server import get_app_client
from mlflow.server.auth import client
from werkzeug.security import generate_password_hash

ADMIN = "admin"


@contextlib.contextmanager
def serving(folder: Path, database: Path, *more: str, names: tuple[str, ...] = ()) -> Iterator[str]:
    """A server with accounts for the admin and others, who may read everything; its URI."""
    folder.mkdir()
    variables = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for the tests",
        "MLFLOW_AUTH_ADMIN_PASSWORD": password(ADMIN),
    }
    options = ("--app-name", "basic-auth", *more)
    with zoos.serving(folder, database, *options, **variables) as uri:
        _hash_anew(folder / "basic_auth.db", ADMIN)
        for name in names:
            with admin(uri) as accounts:
                accounts.create_user(name, password(name))
            _hash_anew(folder / "basic_auth.db", name)
        yield uri


@contextlib.contextmanager
def administered(
    folder: Path, database: Path, patch: pytest.MonkeyPatch, names: tuple[str, ...] = ()
) -> Iterator[str]:
    """The same, where this process is the admin and artifacts don't go through the server."""
    own = folder / "server"
    more = ("--no-serve-artifacts", "--default-artifact-root", str(own / "artifacts"))
    with serving(own, database, *more, names=names) as uri:
        sign_in(patch, ADMIN)
        zoos.use(uri)
        yield uri


@contextlib.contextmanager
def admin(uri: str) -> Iterator[client.AuthServiceClient]:
    """The client of the server's accounts."""
    with pytest.MonkeyPatch.context() as patch:
        sign_in(patch, ADMIN)
        yield get_app_client("basic-auth", tracking_uri=uri)


def sign_in(patch: pytest.MonkeyPatch, name: str) -> None:
    """Be somebody for the server from here on."""
    patch.setenv("MLFLOW_TRACKING_USERNAME", name)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password(name))


def password(name: str) -> str:
    """Of an account."""
    return f"{name}'s password"


def _hash_anew(database: Path, name: str) -> None:
    """The server hashes it with every request, as often as the stored hash says: here once."""
    short = generate_password_hash(password(name), "pbkdf2:sha256:1")
    with sqlite3.connect(database) as connection:
        command = "UPDATE users SET password_hash = ? WHERE username = ?"
        assert connection.execute(command, (short, name)).rowcount == 1
