"""Files of versions and runs, as the server itself reads them.

A server that hands out artifacts names them by URIs that lead to itself, `mlflow-artifacts:/…`.
Inside it these would be requests to nowhere: here they become where the files lie.
"""

import dataclasses
import os
import posixpath
from typing import Any

from mlflow import server
from mlflow.server import handlers
from mlflow.store.artifact import artifact_repository_registry, mlflow_artifacts_repo

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import artifacts, versions
from mlflow_breadcrumbs.support import intake, json_documents


def location(uri: str) -> str:
    """Where artifacts lie that are named by this URI."""
    if not handlers._is_servable_proxied_run_artifact_root(uri):
        return uri
    inside = handlers._get_proxied_run_artifact_destination_path(uri)
    return posixpath.join(os.environ[server.ARTIFACTS_DESTINATION_ENV_VAR], inside)


def take_over() -> None:
    """Let all that this process reads and writes of such artifacts go where they lie."""
    registry = artifact_repository_registry._artifact_repository_registry
    remote = mlflow_artifacts_repo.MlflowArtifactsRepository

    def repository(artifact_uri: str, *given: Any, **more: Any) -> Any:
        place = location(artifact_uri)
        if place == artifact_uri:
            return remote(artifact_uri, *given, **more)
        return registry.get_artifact_repository(place, *given, **more)

    registry.register("mlflow-artifacts", repository)


def resolve(uri: str) -> versions.ResolvedVersion:
    """The version behind a URI, with its files where this process can read them.

    Raises:
        AbsentError: there is none.
    """
    try:
        found = versions.resolve(uri)
    except errors.UnreachableError:
        raise
    except errors.RegistryError as error:
        raise absent(uri) from error
    return dataclasses.replace(found, location=location(found.location))


def absent(what: str) -> errors.AbsentError:
    """The one answer for what does not exist and for what may not be seen."""
    return errors.AbsentError(f"{what} is not here, or not visible to you")


def read_json(run_id: str, place: str, path: str) -> Any:
    """A JSON file of a run.

    Args:
        run_id: of the run.
        place: its artifact URI.
        path: of the file in it.

    Raises:
        RegistryError: it is not there, or is no JSON.
    """
    origin = f"{path} of the run {run_id}"
    with versions.workspace() as folder:
        kept = artifacts.Artifacts(f"the run {run_id}", location(place), folder)
        content = intake.content(
            kept.file(path), origin, errors.RegistryError, json_documents.BYTES
        )
    return json_documents.parse(content, origin, errors.RegistryError)
