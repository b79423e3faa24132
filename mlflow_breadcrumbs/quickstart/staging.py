"""What both quickstarts share: a folder and a store of its own, the merge, what is shown."""

import contextlib
import dataclasses
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow

import mlflow_breadcrumbs
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.lineage import relatives
from mlflow_breadcrumbs.quickstart import contest
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import progress

EXPERIMENT = "quickstart"
ALIAS = "candidate"
MARKER = ".mlflow-breadcrumbs-quickstart"
"""A file that says: this folder was made here, and may be made anew."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the quickstart ends with."""

    entries: tuple[contest.Contender, ...]
    """Base, sources (each on its own task), and the merged models; the last is registered."""
    examples: int
    """Number of test images, or texts."""
    version: str
    """URI of the merged version."""
    lineage: relatives.Ancestor
    tracking_uri: str
    commands: tuple[str, ...]
    """What to try next."""
    conclusion: tuple[str, ...]
    """What came out, in three sentences."""
    unit: str = "images"
    """What the examples are."""
    decision: str = ""
    """What a policy said of the merged version, where one was asked."""

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per model, one column per task."""
        return [entry.to_dict() for entry in self.entries]

    def to_dict(self) -> dict[str, Any]:
        """The result for `--json`."""
        content = {
            "version": self.version,
            "tracking_uri": self.tracking_uri,
            f"test_{self.unit}": self.examples,
            "accuracies": self.rows(),
            "lineage": self.lineage.to_dict(),
            "next": list(self.commands),
            "conclusion": list(self.conclusion),
        }
        return content | ({"decision": self.decision} if self.decision else {})


def project() -> Path:
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


def make_anew(folder: Path) -> None:
    """Make the folder, in place of what an earlier quickstart left there.

    Raises:
        QuickstartError: It holds something else.
    """
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
def own_store(store: str, folder: Path) -> Iterator[None]:
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


def merge(
    folder: Path,
    parameters: Mapping[str, str],
    tried: Sequence[contest.Contender],
    show: progress.Progress = progress.silent,
) -> tuple[versions.ResolvedVersion, tuple[contest.Contender, ...]]:
    """Merge by the last method that was tried, as a pipeline does, and take what that measured.

    Args:
        folder: What `project` gave.
        parameters: Of the entry point `main`: base, sources, registered model, and what measures.
        tried: What `contest` gave.
        show: Told when it is done.

    Returns:
        The merged version, and what was tried with the last as the pipeline's run measured it.

    Raises:
        QuickstartError: The run failed; the message ends with what it printed.
    """
    _mlflow_run(folder, {**parameters, "method": tried[-1].name}, show)
    version = versions.resolve(f"models:/{parameters['registered_model']}@{ALIAS}")
    found = versions.metrics_of(version.run_id)
    last = dataclasses.replace(
        tried[-1],
        accuracies={task: found[f"accuracy/{task}"] for task in tried[-1].accuracies},
        kept=found["average_normalized_accuracy"],
    )
    return version, (*tried[:-1], last)


def _mlflow_run(folder: Path, parameters: Mapping[str, str], show: progress.Progress) -> None:
    """Run the project's main entry point in a process of its own."""
    given = {**parameters, "alias": ALIAS, "device": "cpu"}
    command = [sys.executable, "-m", "mlflow", "run", str(folder), "--env-manager", "local"]
    command += ["--experiment-name", EXPERIMENT]
    command += [part for item in given.items() for part in ("-P", "=".join(item))]
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


def activation() -> tuple[str, ...]:
    """The command that makes this environment's tools found, where they are not."""
    if sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV") == sys.prefix:
        return ()
    script = Path(sys.prefix) / "bin" / "activate"
    here = Path.cwd()
    return (f"source {script.relative_to(here) if script.is_relative_to(here) else script}",)
