"""Files that MLflow keeps for a version, and what it means when it does not give them."""

import os
import shutil
import urllib.parse
from collections.abc import Iterable
from concurrent import futures
from pathlib import Path
from typing import Any

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.store.artifact import artifact_repository_registry, local_artifact_repo
from mlflow.utils import file_utils

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import failures
from mlflow_breadcrumbs.support import confined, copies

AT_ONCE = 8
"""Downloads from a store at one time; a connection each."""


class Artifacts:
    """The files of one version: in place on a local store, downloaded from a remote one.

    Args:
        version: its URI, for messages.
        location: where its artifacts are stored.
        folder: downloads go there.

    Every method raises `RegistryError` when the files are gone or the store does not answer.
    """

    def __init__(self, version: str, location: str, folder: Path) -> None:
        self._version = version
        self._location = location
        self._local = _is_local(location)
        self._folder = folder

    def list(self) -> list[str]:
        """Every file's path inside the version, sorted."""
        return sorted(self.sizes())

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Every file's bytes by its path inside the version."""
        uri = self._uri(folder)
        found: dict[str, int] = {}
        for entry in self._ask(mlflow.artifacts.list_artifacts, artifact_uri=uri):
            # Entries are relative to the listed folder's parent on some stores.
            path = f"{folder}/{Path(entry.path).name}" if folder else Path(entry.path).name
            found |= self.sizes(path) if entry.is_dir else {path: entry.file_size or 0}
        return found

    def has(self, name: str) -> bool:
        """Whether there is a file of that name beside MLmodel."""
        found = self._ask(mlflow.artifacts.list_artifacts, artifact_uri=self._uri(""))
        return any(Path(entry.path).name == name for entry in found)

    def file(self, path: str) -> Path:
        """A path on this machine for one file."""
        if self._local:
            link = self.root() / path
            if link.is_symlink() and confined.inside(self.root(), path) is None:
                self._check_link(link)
                return link  # MLflow follows none out of the folder
            return Path(
                self._ask(mlflow.artifacts.download_artifacts, artifact_uri=self._uri(path))
            )
        target = (self._folder / path).parent
        target.mkdir(parents=True, exist_ok=True)
        if not (self._folder / path).exists():
            self._ask(
                mlflow.artifacts.download_artifacts,
                artifact_uri=self._uri(path),
                dst_path=str(target),
            )
        return self._folder / path

    def _check_link(self, link: Path) -> None:
        if confined.linked(link) is None:
            raise errors.RegistryError(
                f"{self._version} has {link.name} at {self._location}, a symlink to a file that is "
                "neither in the version nor in the same Hugging Face cache. Register a copy with "
                f"what the links lead to (cp -rL {self.root()} COPY)"
            )

    def fetch(self, paths: Iterable[str]) -> None:
        """Have several files on this machine, of a remote store a few at a time."""
        if self._local:
            for path in paths:
                self.file(path)
            return
        pool = futures.ThreadPoolExecutor(AT_ONCE, "breadcrumbs-download")
        try:
            for _ in pool.map(self.file, paths):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def root(self) -> Path:
        """The folder that holds the files."""
        if not self._local:
            return self._folder
        return Path(os.path.abspath(file_utils.local_file_uri_to_path(self._location)))

    def _uri(self, path: str) -> str:
        return f"{self._location.rstrip('/')}/{path}" if path else self._location

    def _ask(self, call: Any, **arguments: Any) -> Any:
        try:
            return call(**arguments)
        except (MlflowException, requests.RequestException, OSError) as error:
            raise failures.explain(
                error,
                f"cannot read the artifacts of {self._version} at {self._location}",
                "restore them or register the model again",
            ) from error


def hand_over(folder: Path, path: str, model_id: str, *, ours: bool) -> None:
    """Put a file of a folder that MLflow is about to copy into a store there without copying it.

    Only into a store on this folder's file system; else the file stays for MLflow. The model is
    PENDING until MLflow is done, so one with nothing but this file is discarded like any half one.

    Args:
        folder: what a flavor saved for `Model.log`.
        path: of the file, in the folder and in the store.
        model_id: the logged model.
        ours: nobody writes to the file any more, so it may become the store's own. Anyone else's
            may share its bytes with the store's only until he changes it.
    """
    location = mlflow.MlflowClient().get_logged_model(model_id).artifact_location
    if not _is_local(location):
        return
    repository = artifact_repository_registry.get_artifact_repository(location)
    if type(repository) is not local_artifact_repo.LocalArtifactRepository:
        return  # a plugin's, which may do more than copy
    file, target = folder / path, Path(repository.artifact_dir, path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # which MLflow will run into as well, and say so
    if ours and copies.move(file, target):
        return
    if copies.clone(file, target):
        shutil.copystat(file, target)  # as MLflow does
        file.unlink()


def _is_local(location: str) -> bool:
    return urllib.parse.urlparse(location).scheme in ("", "file")
