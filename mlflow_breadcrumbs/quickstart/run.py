"""The quickstart, top to bottom: a zoo is made, registered, merged through `mlflow run`, shown."""

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow

import mlflow_breadcrumbs
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.flavor import serving
from mlflow_breadcrumbs.lineage import relatives
from mlflow_breadcrumbs.models import tasks
from mlflow_breadcrumbs.quickstart import conclusion, contest, demo_tasks, pretrain
from mlflow_breadcrumbs.quickstart.settings import QuickstartSettings
from mlflow_breadcrumbs.registry import projects, records, versions
from mlflow_breadcrumbs.search import workbench
from mlflow_breadcrumbs.sources import finetuning, importing, training
from mlflow_breadcrumbs.support import progress

EXPERIMENT = "quickstart"
BASE_MODEL = "demo-clip"
MERGED_MODEL = "demo-merged"
ALIAS = "candidate"
MARKER = ".mlflow-breadcrumbs-quickstart"
"""A file that says: this folder was made here, and may be made anew."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the quickstart ends with."""

    entries: tuple[contest.Contender, ...]
    """Base, sources (each on its own task), and the merged models; the last is registered."""
    images: int
    """Number of test images."""
    version: str
    """URI of the merged version."""
    lineage: relatives.Ancestor
    tracking_uri: str
    commands: tuple[str, ...]
    """What to try next."""
    conclusion: tuple[str, ...]
    """What came out, in three sentences."""

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per model, one column per task."""
        return [entry.to_dict() for entry in self.entries]

    def to_dict(self) -> dict[str, Any]:
        """The result for `--json`."""
        return {
            "version": self.version,
            "tracking_uri": self.tracking_uri,
            "test_images": self.images,
            "accuracies": self.rows(),
            "lineage": self.lineage.to_dict(),
            "next": list(self.commands),
            "conclusion": list(self.conclusion),
        }


def quickstart(
    folder: str | Path,
    settings: QuickstartSettings | None = None,
    show: progress.Progress = progress.silent,
) -> Shown:
    """Make a zoo of real images, merge it, and compare.

    Everything is written below `folder`, an MLflow store (SQLite) of its own too.

    Args:
        folder: New, empty, or left by an earlier quickstart, which is then replaced.
        settings: Of the zoo.
        show: Told about every stage.

    Raises:
        BreadcrumbsError: The folder holds something else, or a stage failed.
    """
    settings = settings or QuickstartSettings()
    project = _project()
    folder = Path(folder)
    _make_anew(folder)
    database = folder / "mlflow.db"
    # Absolute, since the merge runs in the project's folder.
    with _own_store(f"sqlite:///{database.resolve()}", folder):
        config_file = folder / "clip.json"
        config = pretrain.write_config(config_file, settings)
        pretrain.pretrain(config, folder / "clip.safetensors", settings, show)
        task_file = demo_tasks.write(folder / "tasks", settings, show=show)
        task_list = tasks.load_tasks(task_file)
        base = importing.import_checkpoint(
            str(folder / "clip.safetensors"),
            architecture_name=str(config_file),
            registered_model=BASE_MODEL,
            task_list=task_list,
            device="cpu",
            show=show,
        )
        sources = [_finetune(base, task, settings, show) for task in task_list]
        materials = workbench.Materials(
            base.uri, tuple(source.uri for source in sources), str(task_file), device="cpu"
        )
        with workbench.opened(materials, show) as bench:
            tried = contest.contest(bench, settings.alphas, show)
        _mlflow_run(project, base, sources, task_file, tried[-1].name, show)
        merged = versions.resolve(f"models:/{MERGED_MODEL}@{ALIAS}")
        measured = versions.metrics_of(merged.run_id)
        accuracies = {task.name: measured[f"accuracy/{task.name}"] for task in task_list}
        last = dataclasses.replace(
            tried[-1], accuracies=accuracies, kept=measured["average_normalized_accuracy"]
        )
        ancestry = relatives.tree(merged.uri)
    entries = (*tried[:-1], last)
    said = f"The demo's own store is sqlite:///{database.resolve()}; {merged.uri} is in it."
    projects.point("quickstart", said)
    return Shown(
        entries=entries,
        images=sum(len(task.images("test")) for task in task_list),
        version=merged.uri,
        lineage=ancestry,
        tracking_uri=f"sqlite:///{database}",
        commands=_next_commands(f"sqlite:///{database}", task_list[0]),
        conclusion=conclusion.conclude(entries, f"models:/{MERGED_MODEL}@{ALIAS}", task_file),
    )


def _project() -> Path:
    """The folder with the MLproject file.

    Raises:
        QuickstartError: The package was installed without it.
    """
    folder = Path(mlflow_breadcrumbs.__file__).parent.parent
    if not (folder / "MLproject").is_file():
        raise errors.QuickstartError(
            f"there is no MLproject in {folder}; the quickstart runs the project itself: clone its "
            "repository and run `make demo` there"
        )
    return folder


def _make_anew(folder: Path) -> None:
    if folder.exists():
        content = [] if not folder.is_dir() else [entry.name for entry in folder.iterdir()]
        if not folder.is_dir() or (content and MARKER not in content):
            raise errors.QuickstartError(
                f"{folder} holds something that the quickstart did not make; give another --folder"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


@contextlib.contextmanager
def _own_store(store: str, folder: Path) -> Iterator[None]:
    """Work in the folder's own MLflow store; a run that `mlflow run` began is left alone."""
    ours = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
    given = {name: os.environ.pop(name, None) for name in (*ours, "MLFLOW_EXPERIMENT_NAME")}
    previous = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    os.environ["MLFLOW_TRACKING_URI"] = store
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    try:
        artifacts = (folder / "artifacts").resolve().as_uri()
        mlflow.create_experiment(EXPERIMENT, artifact_location=artifacts)
        mlflow.set_experiment(EXPERIMENT)
        yield
    finally:
        mlflow.set_tracking_uri(previous[0])
        mlflow.set_registry_uri(previous[1])
        for name, value in given.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _finetune(
    base: records.RegisteredVersion,
    task: tasks.Task,
    settings: QuickstartSettings,
    show: progress.Progress,
) -> records.RegisteredVersion:
    return finetuning.finetune(
        base.uri,
        task,
        registered_model=f"demo-{task.name}",
        settings=training.TrainingSettings(
            steps=settings.finetune_steps,
            batch_size=settings.finetune_batch,
            learning_rate=settings.finetune_rate,
            seed=settings.seed,
        ),
        device="cpu",
        show=show,
    )


def _mlflow_run(
    project: Path,
    base: records.RegisteredVersion,
    sources: Sequence[records.RegisteredVersion],
    task_file: Path,
    method: str,
    show: progress.Progress,
) -> None:
    """Merge as a pipeline does: the project's main entry point, in a process of its own.

    Raises:
        QuickstartError: The run failed; the message ends with what it printed.
    """
    parameters = {
        "base": base.uri,
        "sources": ",".join(source.uri for source in sources),
        "registered_model": MERGED_MODEL,
        "tasks": str(task_file.resolve()),
        "method": method,
        "alias": ALIAS,
        "device": "cpu",
    }
    command = [sys.executable, "-m", "mlflow", "run", str(project), "--env-manager", "local"]
    command += ["--experiment-name", EXPERIMENT]
    command += [part for item in parameters.items() for part in ("-P", "=".join(item))]
    _logger.info("%s", " ".join(command))
    # The project's command is `python -m mlflow_breadcrumbs …`: this Python, and this store.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PATH": path}
    environment.pop("MLFLOW_EXPERIMENT_ID", None)  # `set_experiment` left it; the name is given
    with show("merge through `mlflow run`", total=None) as advance:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        advance(1)
    if done.returncode:
        raise errors.QuickstartError(
            f"`{' '.join(command)}` failed with exit code {done.returncode}:\n{done.stderr[-2000:]}"
        )


def _next_commands(store: str, task: tasks.Task) -> tuple[str, ...]:
    """What to try next, as it can be typed in the present folder."""
    image = Path(task.images("test").examples[0].origin).resolve()
    record = json.dumps({"dataframe_records": [{"image": str(image), "task": task.name}]})
    return (
        *_activation(),
        f"export MLFLOW_TRACKING_URI={store}",
        "mlflow ui",
        f"mlflow-breadcrumbs lineage models:/{MERGED_MODEL}@{ALIAS}",
        f"mlflow-breadcrumbs report models:/{MERGED_MODEL}@{ALIAS} --output report.html",
        f"{serving.IMAGE_ROOT}={shlex.quote(str(image.parent))} mlflow models serve "
        f"--model-uri models:/{MERGED_MODEL}@{ALIAS} --env-manager local --port 5002",
        "curl http://127.0.0.1:5002/invocations --header 'Content-Type: application/json' "
        f"--data '{record}'",
    )


def _activation() -> tuple[str, ...]:
    """The command that makes this environment's tools found, where they are not."""
    if sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV") == sys.prefix:
        return ()
    script = Path(sys.prefix) / "bin" / "activate"
    here = Path.cwd()
    return (f"source {script.relative_to(here) if script.is_relative_to(here) else script}",)
