"""Real stores and a real, tiny zoo that many tests share."""

import dataclasses
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import gpu_device  # noqa: F401 - first, since it decides how Triton is imported
import mlflow.db
import object_stores
import postgres
import pytest
import ray_cluster
import torch
import warm
import zoos
from click.testing import CliRunner

from mlflow_breadcrumbs.support import executors

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""Processes that run tests side by side."""

# The workers share the cores; so do the commands that they start.
THREADS = max(1, min(2, (os.cpu_count() or 1) // WORKERS))
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("MLFLOW_DISABLE_AUTO_LOGGING", "true")
os.environ |= ray_cluster.VARIABLES  # Ray reads them when it is imported

TOGETHER = {
    "server": "server",
    "shown": "quickstart",
    "shown_text": "quickstart of texts",
    "registry_and_ledger": "postgresql",
    "place": "postgresql",
    "on_postgres": "postgresql",
    "bucket": "object store",
    "ray_address": "ray",
    "shown_app": "app",
    "accounts": "app",
    "guarded": "app",
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
        given = ["upgrade", f"sqlite:///{folder}/mlflow.db"]
        done = CliRunner().invoke(mlflow.db.commands, given, catch_exceptions=False)
        assert done.exit_code == 0, done.output

    return once("database", upgrade) / "mlflow.db"


@pytest.fixture
def store(tmp_path, monkeypatch, empty_database) -> Iterator[str]:
    """A fresh store of this test's own, with its artifacts beside it."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    previous = mlflow.get_tracking_uri()
    zoos.use(uri)
    mlflow.set_experiment("test")
    yield uri
    assert mlflow.active_run() is None
    zoos.use(previous)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    mlflow.tracking.fluent._active_experiment_id = None


@pytest.fixture(scope="session")
def filled(once, empty_database) -> zoos.Zoo:
    """The zoo, made once; tests take copies through `zoo`."""

    def make(folder: Path) -> None:
        shutil.copy(empty_database, folder / "mlflow.db")
        with zoos.working_in(folder) as uri, zoos.installed():
            zoos.keep(zoos.fill(folder, uri), folder)

    return zoos.Zoo(**zoos.kept(once("zoo", make)))


@pytest.fixture
def zoo(filled, light, tmp_path, monkeypatch) -> Iterator[zoos.Zoo]:
    """The zoo, in a database copy of this test's own; the artifacts are shared: leave them be."""
    shutil.copy(filled.folder / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    previous = mlflow.get_tracking_uri()
    zoos.use(uri)
    mlflow.set_experiment("zoo")
    yield dataclasses.replace(filled, tracking_uri=uri)
    assert mlflow.active_run() is None
    zoos.use(previous)


@pytest.fixture(scope="session")
def warm_process() -> warm.Warm:
    """A process that has imported everything, and runs commands in forks."""
    return warm.started()


@pytest.fixture
def run_script(warm_process) -> Callable[[str, dict[str, Any]], list[Any]]:
    """What a script beside the tests saw; it prints a record in JSON per line."""

    def run(name: str, settings: dict[str, Any]) -> list[Any]:
        done = warm_process.run(name, settings)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real PostgreSQL; its URI. Take a part of your own with `postgres.schema`."""
    # Not pytest's folder, which is the user's alone: as root, the server is another user.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o755)
        with postgres.running(Path(folder)) as uri:
            yield uri


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A real Ray cluster of several worker processes; its address."""
    with ray_cluster.running() as address:
        yield address


@pytest.fixture(scope="session")
def on_ray(ray_address) -> Iterator[executors.Executor]:
    """Five workers on it, who keep what they have imported; a test may take fewer of them."""
    with executors.opened("ray", address=ray_address, workers=ray_cluster.WORKERS) as executor:
        yield executor


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
def bucket() -> Iterator[object_stores.Store]:
    """A real object store over HTTP."""
    with object_stores.running() as store:
        yield store


@pytest.fixture
def object_store(bucket, monkeypatch) -> object_stores.Store:
    """The same, where this test's processes look for one."""
    for key, value in bucket.variables.items():
        monkeypatch.setenv(key, value)
    return bucket


@pytest.fixture(scope="session")
def server(tmp_path_factory, empty_database) -> Iterator[str]:
    """A real tracking server over HTTP, which hands out artifacts and sends webhooks."""
    with zoos.serving(tmp_path_factory.mktemp("server"), empty_database) as uri:
        yield uri


@pytest.fixture(scope="session")
def server_zoo(server, tmp_path_factory) -> zoos.Zoo:
    """The zoo on the tracking server, made once; tests add to it under names of their own."""
    folder = tmp_path_factory.mktemp("server-zoo")
    with zoos.working_in(folder, server), zoos.installed():
        return zoos.fill(folder, server)


@pytest.fixture
def light() -> Iterator[None]:
    """What this test registers comes without the package's code."""
    with zoos.installed():
        yield


@pytest.fixture
def on_server(server_zoo, light, tmp_path, monkeypatch) -> Iterator[zoos.Zoo]:
    """The same, with the tracking server in use."""
    monkeypatch.chdir(tmp_path)
    previous = mlflow.get_tracking_uri()
    zoos.use(server_zoo.tracking_uri)
    yield server_zoo
    assert mlflow.active_run() is None
    zoos.use(previous)


@pytest.fixture(scope="session")
def grown(filled, once) -> zoos.Family:
    """The family, made once beside the zoo; tests take copies through `family`."""

    def make(folder: Path) -> None:
        for name in ("mlflow.db", zoos.LEDGER):
            shutil.copy(filled.folder / name, folder / name)
        # Not the whole folder: tests of the zoo write beside its artifacts all the time.
        for path in zoos.artifacts(folder / "mlflow.db"):
            shutil.copytree(path, folder / path.relative_to(filled.folder))
        zoos.move_artifacts(folder / "mlflow.db", filled.folder, folder)
        with zoos.working_in(folder) as uri, zoos.installed():
            own = dataclasses.replace(filled, tracking_uri=uri, folder=folder)
            zoos.keep(zoos.merge_family(own), folder)

    return zoos.Family(**zoos.kept(once("family", make)))


@pytest.fixture
def family(grown, light, tmp_path, monkeypatch) -> Iterator[zoos.Family]:
    """A copy of the family, database and artifacts, that a test may damage."""
    folder, original = tmp_path / "family", grown.folder
    shutil.copytree(original, folder)
    database = folder / "mlflow.db"
    grown_database = Path(grown.tracking_uri.removeprefix("sqlite:///"))
    shutil.copy(grown_database, database)
    shutil.copy(grown_database.with_name(zoos.LEDGER), folder / zoos.LEDGER)
    zoos.move_artifacts(database, original, folder)
    monkeypatch.chdir(folder)
    uri = f"sqlite:///{database}"
    previous = mlflow.get_tracking_uri()
    zoos.use(uri)
    mlflow.set_experiment("zoo")
    yield dataclasses.replace(grown, tracking_uri=uri, folder=folder)
    assert mlflow.active_run() is None
    zoos.use(previous)
