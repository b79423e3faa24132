"""Real stores and a real, tiny zoo that many tests share."""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock
import gpu_device  # noqa: F401 - first, since it decides how Triton is imported
import mlflow
import postgres
import pytest
import sqlalchemy
import tiny
import torch
import warm
from cryptography import fernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.torch import save_file

import mlflow_breadcrumbs
from mlflow_breadcrumbs.engine import checkpoints, recipe
from mlflow_breadcrumbs.flavor import requirements
from mlflow_breadcrumbs.models import architecture, task_heads, tasks
from mlflow_breadcrumbs.pipeline import flow
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.sources import importing

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""Processes that run tests side by side."""

# The workers share the cores; so do the commands that they start.
THREADS = max(1, min(2, (os.cpu_count() or 1) // WORKERS))
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("MLFLOW_DISABLE_AUTO_LOGGING", "true")

TOGETHER = {
    "server": "server",
    "shown": "quickstart",
    "registry_and_ledger": "postgresql",
    "place": "postgresql",
}
"""Tests of a fixture that is dear run in one worker, so that it is made once; fixture → group."""

GROUPS = "BREADCRUMBS_TEST_GROUPS"
"""The variable that tells workers where to write which test is in which group."""


def pytest_configure(config: pytest.Config) -> None:
    """Choose that file, in the process that starts the workers."""
    if not hasattr(config, "workerinput"):
        with tempfile.NamedTemporaryFile(prefix="groups-", suffix=".json", delete=False) as file:
            os.environ[GROUPS] = file.name


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    if not hasattr(config, "workerinput"):
        Path(os.environ.pop(GROUPS)).unlink()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow tests first, so that no worker waits for the last one of another."""
    if WORKERS > 1:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell the groups; all workers find the same."""
    found = {
        item.nodeid: TOGETHER[fixture]
        for item in session.items
        for fixture in getattr(item, "fixturenames", ())
        if fixture in TOGETHER
    }
    mine = Path(f"{os.environ[GROUPS]}-{os.getpid()}")
    mine.write_text(json.dumps(found))
    mine.replace(os.environ[GROUPS])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A worker per core, and no more than eight: each holds 1.5 GB."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A free worker takes the next test, or the next group; marks don't reach xdist 3.8."""
    from xdist import scheduler

    if config.getvalue("dist") != "load":
        return None  # another one was asked for

    class Grouped(scheduler.LoadScopeScheduling):
        groups: dict[str, str] | None = None

        def _split_scope(self, nodeid: str) -> str:
            if self.groups is None:
                self.groups = json.loads(Path(os.environ[GROUPS]).read_text())
            return self.groups.get(nodeid, nodeid)

    return Grouped(config, log)


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


def use(tracking_uri: str) -> None:
    """Point MLflow at a store, in this process and in those that it starts.

    The experiment of the store before is forgotten: this one may have none of that number.
    """
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    mlflow.tracking.fluent._active_experiment_id = None
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)


@pytest.fixture(scope="session", autouse=True)
def accuracies(tmp_path_factory) -> None:
    """Keep the tests, and the processes that they start, away from the user's cache."""
    os.environ["BREADCRUMBS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))  # ledgers behind a server


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Once:
    """A folder that all workers share, filled by the first that asks for it while others wait."""
    here = tmp_path_factory.getbasetemp()
    common = here if WORKERS == 1 else here.parent

    def made(name: str, fill: Callable[[Path], None]) -> Path:
        folder = common / f"once-{name}"
        with filelock.FileLock(common / f"once-{name}.lock"):
            if not (folder / "whole").exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed at it
                folder.mkdir()
                fill(folder)
                (folder / "whole").touch()
        return folder

    return made


@pytest.fixture(scope="session")
def empty_database(once) -> Path:
    """A SQLite file with MLflow's schema; made once, since that takes seconds."""

    def upgrade(folder: Path) -> None:
        command = [sys.executable, "-m", "mlflow", "db", "upgrade"]
        subprocess.run([*command, f"sqlite:///{folder}/mlflow.db"], check=True, capture_output=True)

    return once("database", upgrade) / "mlflow.db"


@pytest.fixture
def store(tmp_path, monkeypatch, empty_database) -> Iterator[str]:
    """A fresh store of this test's own, with its artifacts beside it."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    previous = mlflow.get_tracking_uri()
    use(uri)
    mlflow.set_experiment("test")
    yield uri
    assert mlflow.active_run() is None
    use(previous)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    mlflow.tracking.fluent._active_experiment_id = None


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
    """As if this package came from an index: its two hundred files aren't put into versions.

    What is made for many tests is made so, and what goes over HTTP, a request per file.
    """
    with pytest.MonkeyPatch.context() as patch:
        package = f"{requirements.DISTRIBUTION}=={mlflow_breadcrumbs.__version__}"
        patch.setattr(requirements, "own_package", lambda: (package, []))
        yield


@pytest.fixture(scope="session")
def filled(once, empty_database) -> Zoo:
    """The zoo, made once; tests take copies through `zoo`."""

    def make(folder: Path) -> None:
        shutil.copy(empty_database, folder / "mlflow.db")
        with working_in(folder) as uri, installed():
            keep(fill(folder, uri), folder)

    return Zoo(**kept(once("zoo", make)))


@pytest.fixture
def zoo(filled, tmp_path, monkeypatch) -> Iterator[Zoo]:
    """The zoo, in a database copy of this test's own; the artifacts are shared: leave them be."""
    shutil.copy(filled.folder / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    previous = mlflow.get_tracking_uri()
    use(uri)
    mlflow.set_experiment("zoo")
    yield dataclasses.replace(filled, tracking_uri=uri)
    assert mlflow.active_run() is None
    use(previous)


def opened(states: Iterable[dict[str, torch.Tensor]], folder: Path) -> list[checkpoints.Checkpoint]:
    """Checkpoints in files `input0.safetensors` … of a folder, opened."""
    found = []
    for number, state in enumerate(states):
        path = folder / f"input{number}.safetensors"
        save_file(state, path)
        found.append(checkpoints.Checkpoint.open(path))
    return found


@pytest.fixture(scope="session")
def warm_process() -> Iterator[warm.Warm]:
    """A process that has imported everything, and runs commands in forks."""
    with warm.running() as process:
        yield process


@pytest.fixture
def run_script(warm_process) -> Callable[[str, dict[str, Any]], list[Any]]:
    """What a script beside the tests saw; it prints a record in JSON per line."""

    def run(name: str, settings: dict[str, Any]) -> list[Any]:
        done = warm_process.run(name, settings)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real PostgreSQL; its URI. Take a part of your own with `postgres.schema`."""
    # Not pytest's folder, which is the user's alone: as root, the server is another user.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o755)
        with postgres.running(Path(folder)) as uri:
            yield uri


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_uri(request, tmp_path, monkeypatch) -> str:
    """An empty ledger of the test's own, in both kinds of database."""
    if request.param == "sqlite":
        uri = f"sqlite:///{tmp_path}/ledger.db"
    else:
        server = request.getfixturevalue("postgres_server")
        uri = postgres.schema(server, f"ledger_{uuid.uuid4().hex[:12]}")
    monkeypatch.setenv("BREADCRUMBS_LEDGER_URI", uri)
    return uri


@pytest.fixture(scope="session")
def server(tmp_path_factory, empty_database) -> Iterator[str]:
    """A real tracking server over HTTP, which hands out artifacts and sends webhooks."""
    with serving(tmp_path_factory.mktemp("server"), empty_database) as uri:
        yield uri


@pytest.fixture(scope="session")
def server_zoo(server, tmp_path_factory) -> Zoo:
    """The zoo on the tracking server, made once; tests add to it under names of their own."""
    folder = tmp_path_factory.mktemp("server-zoo")
    with working_in(folder, server), installed():
        return fill(folder, server)


@pytest.fixture
def light() -> Iterator[None]:
    """What this test registers comes without the package's code."""
    with installed():
        yield


@pytest.fixture
def on_server(server_zoo, light, tmp_path, monkeypatch) -> Iterator[Zoo]:
    """The same, with the tracking server in use."""
    monkeypatch.chdir(tmp_path)
    previous = mlflow.get_tracking_uri()
    use(server_zoo.tracking_uri)
    yield server_zoo
    assert mlflow.active_run() is None
    use(previous)


@contextlib.contextmanager
def serving(folder: Path, database: Path, *more: str, **environment: str) -> Iterator[str]:
    """A tracking server of a folder's own, with more options and variables; its URI."""
    shutil.copy(database, folder / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port)]
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
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        process.terminate()
        process.wait(30)


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


@pytest.fixture(scope="session")
def grown(filled, once) -> Family:
    """The family, made once beside the zoo; tests take copies through `family`."""

    def make(folder: Path) -> None:
        for name in ("mlflow.db", LEDGER):
            shutil.copy(filled.folder / name, folder / name)
        with working_in(folder) as uri, installed():
            keep(merge_family(dataclasses.replace(filled, tracking_uri=uri)), folder)

    return Family(**kept(once("family", make)))


@pytest.fixture
def family(grown, tmp_path, monkeypatch) -> Iterator[Family]:
    """A copy of the family, database and artifacts, that a test may damage."""
    folder, original = tmp_path / "family", grown.folder
    shutil.copytree(original, folder)
    database = folder / "mlflow.db"
    grown_database = Path(grown.tracking_uri.removeprefix("sqlite:///"))
    shutil.copy(grown_database, database)
    shutil.copy(grown_database.with_name(LEDGER), folder / LEDGER)
    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    with sqlite3.connect(database) as connection:
        for table, column in columns.items():
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)",
                (str(original), str(folder)),
            )
    monkeypatch.chdir(folder)
    uri = f"sqlite:///{database}"
    previous = mlflow.get_tracking_uri()
    use(uri)
    mlflow.set_experiment("zoo")
    yield dataclasses.replace(grown, tracking_uri=uri, folder=folder)
    assert mlflow.active_run() is None
    use(previous)
