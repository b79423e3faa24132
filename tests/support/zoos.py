"""Real stores with a real, tiny zoo in them, and the servers and keys that tests need."""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gpu_device  # noqa: F401 - first, since it decides how Triton is imported
import mlflow
import pytest
import sqlalchemy
import tiny
import torch
import warm
from cryptography import fernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow.store.db import utils
from safetensors.torch import save_file

import mlflow_breadcrumbs
from mlflow_breadcrumbs.engine import checkpoints, recipe
from mlflow_breadcrumbs.flavor import requirements
from mlflow_breadcrumbs.models import architecture, task_heads, tasks
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.sources import importing
from mlflow_breadcrumbs.support import extras


@dataclasses.dataclass(frozen=True)
class Zoo:
    """A tracking store with a base (`tiny`) and sources for three tasks on the same images."""

    tracking_uri: str
    folder: Path
    base: str
    sources: tuple[str, ...]
    tasks: str
    architecture: str


LEDGER = "breadcrumbs-ledger.db"


"""The ledger's file beside a SQLite registry."""


TASKS = {
    "colours": ["red", "green", "blue"],
    "tints": ["blue", "green", "red"],
    "hues": ["green", "red", "blue"],
}


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def hasten(connection: Any, _: Any) -> None:
    """No test outlives the machine: SQLite needn't wait until the disk has what it wrote."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


# MLflow reads all its migrations for every store, to see which is the newest.
utils._get_latest_schema_revision = functools.cache(utils._get_latest_schema_revision)


def use(tracking_uri: str) -> None:
    """Point MLflow at a store, in this process and in those that it starts.

    The experiment of the store before is forgotten: this one may have none of that number.
    """
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    mlflow.tracking.fluent._active_experiment_id = None
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)


def fill(folder: Path, tracking_uri: str) -> Zoo:
    """Register the base and the sources in the store that is in use."""
    config_file = tiny.config_file(folder)
    config = tiny.config(folder)
    images = tiny.image_tree(folder / "images", 10)
    listed = "".join(
        f"  - name: {name}\n    classes: [{', '.join(classes)}]\n    images: {{folder: {images}}}\n"
        for name, classes in TASKS.items()
    )
    task_file = folder / "tasks.yaml"
    task_file.write_text("tasks:\n" + listed)
    state = tiny.model(config).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "base.safetensors"
    )
    base = importing.import_checkpoint(
        str(folder / "base.safetensors"),
        architecture_name=config_file,
        registered_model="tiny",
        task_list=tasks.load_tasks(task_file),
    )
    sources = []
    for number, name in enumerate(TASKS):
        generator = torch.Generator().manual_seed(100 + number)
        tuned = {
            key: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            if key.startswith("visual.")
            else tensor.clone()
            for key, tensor in state.items()
        }
        save_file(tuned, folder / f"{name}.safetensors")
        base_model = tiny.model(config)
        head = task_heads.zero_shot_head(
            base_model,
            architecture.tokenizer(config),
            tasks.find(tasks.load_tasks(task_file), name),
        )
        head_file = folder / f"{name}.head.safetensors"
        save_file({"weight": head.weight}, head_file)
        version = importing.import_checkpoint(
            str(folder / f"{name}.safetensors"),
            architecture_name=config_file,
            registered_model=f"tiny-{name}",
            task=name,
            task_list=tasks.load_tasks(task_file),
            head=str(head_file),
        )
        sources.append(version.uri)
    return Zoo(tracking_uri, folder, base.uri, tuple(sources), str(task_file), config_file)


@contextlib.contextmanager
def working_in(folder: Path, uri: str | None = None) -> Iterator[str]:
    """Be in a folder, and use a store: the folder's own, or another; its URI."""
    before, here = mlflow.get_tracking_uri(), os.getcwd()
    os.chdir(folder)
    uri = uri or f"sqlite:///{folder}/mlflow.db"
    use(uri)
    mlflow.set_experiment("zoo")
    try:
        yield uri
    finally:
        os.chdir(here)
        use(before)


def move_artifacts(database: Path, before: str | Path, now: Path) -> None:
    """Tell a store in SQLite that its artifacts lie in another folder."""
    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    with sqlite3.connect(database) as connection:
        for table, column in columns.items():
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(before), str(now))
            )


def artifacts(database: Path) -> list[Path]:
    """The folders of the runs and logged models in a store in SQLite."""
    with sqlite3.connect(database) as connection:
        found = connection.execute(
            "SELECT artifact_uri FROM runs UNION SELECT artifact_location FROM logged_models"
        ).fetchall()
    paths = [Path(str(uri).removeprefix("file://")) for (uri,) in found]
    return [path for path in paths if path.is_dir()]


def keep(made: Zoo, folder: Path) -> None:
    """Write down what was made, for the other workers."""
    content = {**dataclasses.asdict(made), "folder": str(made.folder)}
    (folder / "made.json").write_text(json.dumps(content))


def kept(folder: Path) -> dict[str, Any]:
    """What `keep` wrote down."""
    content = json.loads((folder / "made.json").read_text())
    lists = {"folder": Path(content["folder"]), "sources": tuple(content["sources"])}
    return content | lists


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """As if this package came from an index: its code isn't put into versions.

    What is made for many tests is made so.
    """
    with pytest.MonkeyPatch.context() as patch:
        package = f"{extras.DISTRIBUTION}=={mlflow_breadcrumbs.__version__}"
        patch.setattr(requirements, "own_package", lambda: (package, []))
        yield


def opened(states: Iterable[dict[str, torch.Tensor]], folder: Path) -> list[checkpoints.Checkpoint]:
    """Checkpoints in files `input0.safetensors` … of a folder, opened."""
    found = []
    for number, state in enumerate(states):
        path = folder / f"input{number}.safetensors"
        save_file(state, path)
        found.append(checkpoints.Checkpoint.open(path))
    return found


def new_key(path: Path, password: str | None = None) -> Path:
    """Make an elliptic-curve key: PATH the private one, PATH.pub the public one, both PEM."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password.encode())
    private = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            encryption,
        )
    )
    path.with_name(f"{path.name}.pub").write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


@contextlib.contextmanager
def serving(folder: Path, database: Path, *more: str, **environment: str) -> Iterator[str]:
    """A tracking server of a folder's own, with more options and variables; its URI.

    It is `mlflow server` in forks of the warm process; with other servers than uvicorn only its
    command is.
    """
    shutil.copy(database, folder / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(warm.started().commands / "mlflow"), "server", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts", *more]
    variables = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": fernet.Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",  # a webhook is known to the server after a second
    }
    variables |= environment
    variables.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=variables)
    uri = f"http://127.0.0.1:{port}"
    try:
        while True:  # as long as it takes: pytest has the time-out
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5)
                break
            except urllib.error.HTTPError:
                break  # below a prefix there is nothing here
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        process.terminate()
        process.wait(300)


@dataclasses.dataclass(frozen=True)
class Family(Zoo):
    """The zoo with two merges: `merged`, of two sources, evaluated; `top`, of `merged` and one."""

    merged: str
    top: str
    run_id: str
    """Of the merge that made `merged`."""

    def execute(self, command: str, *values: str) -> None:
        """Change one row of the store behind MLflow's back."""
        with sqlite3.connect(self.tracking_uri.removeprefix("sqlite:///")) as connection:
            assert connection.execute(command, values).rowcount == 1

    def file(self, uri: str, name: str = "open_clip_model.safetensors") -> Path:
        """A file of a version in the store."""
        return Path(versions.resolve(uri).location.removeprefix("file://")) / name


def merge_family(zoo: Zoo) -> Family:
    """Merge in the store that is in use."""

    def merge(name: str, sources: tuple[str, ...], tasks: str | None = None):
        request = flow.MergeRequest(
            base=zoo.base,
            sources=sources,
            registered_model=name,
            recipe=recipe.MergeRecipe.from_method("breadcrumbs", sources=2, weights=(1, 0.5)),
            tasks=tasks,
            device="cpu",
        )
        return flow.merge(request).version

    merged = merge("merged", zoo.sources[:2], zoo.tasks)
    top = merge("top", (merged.uri, zoo.sources[2]))
    return Family(**vars(zoo), merged=merged.uri, top=top.uri, run_id=merged.run_id)
