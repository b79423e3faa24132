"""Registering a logged model so that one merge is one version, whoever else is at it.

MLflow has neither a key that makes a repeated request harmless nor a compare-and-set. What it has
is an order: a version number is given out only after all lower ones are visible. So every job
registers first and looks afterwards, and of several versions of one merge the lowest stays; the
others are deleted, each by the job that made it, which takes the lowest for its own result. The
lowest is never deleted, so at least one remains.

Two versions of one merge come about when two jobs run at once, and when the server's answer is lost
after a version was made, since MLflow's client then asks again.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.utils import logging_utils
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from mlflow_breadcrumbs.registry import failures, records, tag_keys, uris, versions

_logger = logging.getLogger(__name__)


def register(name: str, *, model_id: str, tags: Mapping[str, str]) -> records.RegisteredVersion:
    """Register a logged model as a new version, its tags set in the same step.

    Where the tags name a merge that another job has registered meanwhile, the result is that
    version, and the logged model is given up; unless the tags say that it was forced.

    Raises:
        RegistryError: the registry refused, or can't be reached.
    """
    versions.check_name(name)
    source = uris.of_model(model_id)
    with failures.explained(f"cannot register {name!r}"):
        try:
            with _unprinted():
                mlflow.register_model(source, name, tags=dict(tags))
        except (MlflowException, requests.RequestException):
            with failures.without_retries():
                if not versions_of(name, source):
                    raise
            # Only the answer was lost; the version is there.
        return versions.resolve(_settle(name, source, tags)).registered


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """Keep MLflow's sentences about a new version off stderr, unless its log may say as much.

    It prints them beside its log, so no level holds them back.
    """
    stream = logging_utils.MLFLOW_LOGGING_STREAM
    before = stream.enabled
    stream.enabled = before and logging.getLogger("mlflow").isEnabledFor(logging.INFO)
    try:
        yield
    finally:
        stream.enabled = before


def link(version: records.RegisteredVersion) -> None:
    """Tell the logged model its version, which MLflow does in a step after the registration."""
    client = mlflow.MlflowClient()
    known = client.get_logged_model(version.model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]")
    entries = json.loads(known)
    if all(uris.of_version(entry["name"], entry["version"]) != version.uri for entry in entries):
        entries.append({"name": version.name, "version": version.version})
        client.set_logged_model_tags(version.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(entries)})


def versions_of(name: str, source: str) -> list[Any]:
    """MLflow's records of a name's versions that were made from a source, lowest number first."""
    return _search(name, f"source_path = '{source}'")


def find_merge(
    name: str, digest: str, key: str = tag_keys.MERGE_DIGEST
) -> versions.ResolvedVersion | None:
    """The ready version of a name that is exactly this merge, if there is one.

    It is the newest that was forced, else the lowest. Twins of the lowest that a job made and was
    killed before it could look for others are deleted, unless they have an alias.
    """
    with failures.explained(f"cannot search the versions of {name!r}"):
        found = [
            entry
            for entry in _search(name, f"tags.`{key}` = '{digest}'")
            if entry.status == "READY"
        ]
        forced = [entry for entry in found if tag_keys.FORCED in entry.tags]
        twins = [entry for entry in found if tag_keys.FORCED not in entry.tags]
        if len(twins) > 1:
            aliases = mlflow.MlflowClient().get_registered_model(name).aliases
            named = {int(version) for version in aliases.values()}
            for twin in twins[1:]:
                if uris.is_model(twin.source) and int(twin.version) not in named:
                    _delete(twin, twins[0])
    chosen = forced[-1:] or twins[:1]
    return versions.resolve(_uri(chosen[0])) if chosen else None


def named_alike(name: str, tags: Mapping[str, str]) -> list[versions.ResolvedVersion]:
    """The ready versions of a name that have all of these tags, the newest first."""
    with failures.explained(f"cannot search the versions of {name!r}"):
        found = _search(name, f"tags.`{tag_keys.KIND}` = '{tags[tag_keys.KIND]}'")
        return [
            versions.resolve(_uri(entry))
            for entry in reversed(found)
            if entry.status == "READY" and tags.items() <= dict(entry.tags).items()
        ]


def _settle(name: str, source: str, tags: Mapping[str, str]) -> str:
    """Delete what was just registered where a lower twin is there; the URI of what stays."""
    digest = tags.get(tag_keys.MERGE_DIGEST)
    if digest is None or tag_keys.FORCED in tags:
        twins = versions_of(name, source)
    else:
        twins = _search(name, f"tags.`{tag_keys.MERGE_DIGEST}` = '{digest}'")
    lowest, *others = twins
    for twin in others:
        if twin.source == source:
            _delete(twin, lowest)
    if lowest.source != source:
        mlflow.MlflowClient().delete_logged_model(uris.logged_model(source))
    return _uri(lowest)


def _search(name: str, condition: str) -> list[Any]:
    found = mlflow.MlflowClient().search_model_versions(
        f"name = {versions.quoted(name)} and {condition}"
    )
    return sorted(found, key=lambda entry: int(entry.version))


def _delete(twin: Any, lowest: Any) -> None:
    _logger.warning("%s is the same merge as %s; it is deleted", _uri(twin), _uri(lowest))
    try:
        mlflow.MlflowClient().delete_model_version(twin.name, twin.version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # else another job was quicker
            raise


def _uri(entry: Any) -> str:
    return uris.of_version(entry.name, entry.version)
