"""The guard: aliases that are pinned move only through this package.

It stands in the store of the registry that MLflow's server uses, and so behind every address under
which MLflow may be asked, today's and tomorrow's. What is not about a pinned alias goes through
untouched. The server's own promotions use another store of the same database.

What takes versions away is one step with its check, and takes the lock of promotions for it: no
version is deleted while it is promoted.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE
from mlflow.server import handlers
from mlflow.store.model_registry.dbmodels import models
from mlflow.utils import workspace_context

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import letters, locks
from mlflow_breadcrumbs.promotion import predecessors
from mlflow_breadcrumbs.registry import tag_keys
from mlflow_breadcrumbs.server import pinning

DATABASES = ("sqlite", "postgresql")
"""Of the registry. They tell names apart as the patterns do, by every character."""
PATIENCE = 30
"""Seconds that a deletion waits for a promotion; MLflow's clients then ask again by themselves."""


class Guard:
    """Refuses, before the store does it.

    Args:
        store: MLflow's, of the registry.
        pins: what is guarded.
        workspaces: MLflow's store of them; `None` where there are none.
    """

    def __init__(self, store: Any, pins: pinning.Pins, workspaces: Any = None) -> None:
        self._store = store
        self._pins = pins
        self._workspaces = workspaces

    def stand(self) -> None:
        """Put every check before the store's method of the same name."""
        self._replace(self.set_registered_model_alias, _checked)
        self._replace(self.delete_registered_model_alias, _checked)
        self._replace(self.set_model_version_tag, _checked)
        self._replace(self.delete_model_version_tag, _checked)
        self._replace(self.rename_registered_model, self._checked_alone)
        self._replace(self.delete_registered_model, self._checked_alone)
        self._replace(self.delete_model_version, self._checked_alone)
        if self._workspaces is not None:
            delete = functools.partial(self.delete_workspace, self._workspaces.delete_workspace)
            self._workspaces.delete_workspace = delete

    def set_registered_model_alias(self, name: str, alias: str, version: Any) -> None:
        """A pinned alias is not set."""
        self._moves(name, alias, str(version))

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        """A pinned alias is not taken away."""
        self._moves(name, alias)

    def rename_registered_model(self, name: str, new_name: str) -> None:
        """No alias leaves its pin by another name of its model, nor comes under one so."""
        if not self._concerned(name, new_name):
            return
        for alias in self._aliases(name):
            if self._is_pinned(name, alias) or self._is_pinned(new_name, alias):
                _refuse(f"{name!r} can't be renamed to {new_name!r}", name, alias)

    def delete_registered_model(self, name: str) -> None:
        """A model with a pinned alias stays."""
        for alias in self._pinned(name):
            _refuse(f"{name!r} can't be deleted", name, alias)

    def delete_model_version(self, name: str, version: Any) -> None:
        """A version with a pinned alias stays."""
        for alias in self._pinned(name, version):
            _refuse(f"version {version} of {name!r} can't be deleted", name, alias)

    def delete_workspace(
        self, act: Callable[..., None], name: str, *given: Any, **named: Any
    ) -> None:
        """No workspace takes a pinned alias along."""
        kept = models.SqlRegisteredModel
        with self._store.ManagedSessionMaker(read_only=False) as session:
            rows = session.query(kept.name).filter(kept.workspace == name)
            found = self._concerned(*(model for (model,) in rows))
        with _deciding(found) if found else contextlib.nullcontext():
            with workspace_context.ServerWorkspaceContext(name):
                for model in found:
                    for alias in self._pinned(model):
                        _refuse(f"the workspace {name!r} can't be deleted", model, alias)
            act(name, *given, **named)

    def set_model_version_tag(self, name: str, version: Any, tag: Any) -> None:
        """Our tags of a version with a pinned alias stay as they are."""
        self._tags(name, version, str(tag.key), new=True)

    def delete_model_version_tag(self, name: str, version: Any, key: str) -> None:
        """Our tags of a version with a pinned alias stay."""
        self._tags(name, version, str(key), new=False)

    def _moves(self, name: str, alias: str, version: str = "N") -> None:
        if self._is_pinned(name, alias):
            _refuse(f"{name}@{alias} can't be moved or removed", name, alias, version)

    def _tags(self, name: str, version: Any, key: str, *, new: bool) -> None:
        if not key.startswith(tag_keys.OURS):
            return
        about = key.removeprefix(predecessors.PREFIX)
        if about != key and not self._is_pinned(name, about):
            return
        for alias in self._pinned(name, version):
            if new and key.startswith(letters.PREFIX) and not self._has_tag(name, version, key):
                return  # what others measured of it, told in a tag of its own
            _refuse(f"the tag {key} of version {version} of {name!r} stays as it is", name, alias)

    def _is_pinned(self, name: str, alias: str) -> bool:
        return self._pins.of_alias(name, alias) is not None

    def _concerned(self, *names: Any) -> list[str]:
        """The models of these names of which an alias may be pinned."""
        return [name for name in names if isinstance(name, str) and self._pins.concern(name)]

    def _pinned(self, name: str, version: Any = None) -> list[str]:
        """The pinned aliases of a model, or of one of its versions."""
        if not self._concerned(name):
            return []
        return [alias for alias in self._aliases(name, version) if self._is_pinned(name, alias)]

    def _aliases(self, name: str, version: Any = None) -> list[str]:
        """The aliases of a model, or of one of its versions, by the database itself.

        What can't be read raises what the store would raise: nothing goes through unchecked.
        """
        kept = models.SqlRegisteredModelAlias
        conditions = [kept.name == name]
        if version is not None:
            try:
                conditions.append(kept.version == int(version))
            except (TypeError, ValueError):
                return []  # the store will say so
        # To write, so that no replica answers which has not seen the last move yet.
        with self._store.ManagedSessionMaker(read_only=False) as session:
            asked = self._store._get_query(session, kept).filter(*conditions)
            return [alias for (alias,) in asked.with_entities(kept.alias)]

    def _has_tag(self, name: str, version: Any, key: str) -> bool:
        with self._store.ManagedSessionMaker(read_only=False) as session:
            return self._store._get_model_version_tag(session, name, int(version), key) is not None

    def _replace(self, check: Callable[..., None], way: Callable[..., Any]) -> None:
        """Have the store's method of this name go through a check in this way."""
        name = check.__name__
        setattr(self._store, name, functools.partial(way, check, getattr(self._store, name)))

    def _checked_alone(
        self, check: Callable[..., None], act: Callable[..., Any], /, *given: Any, **named: Any
    ) -> Any:
        """Check and act while nobody else decides about the models that this is about."""
        asked = inspect.signature(check).bind(*given, **named).arguments
        concerned = self._concerned(asked["name"], asked.get("new_name"))
        with _deciding(concerned) if concerned else contextlib.nullcontext():
            return _checked(check, act, *given, **named)


def stand(pins: pinning.Pins) -> None:
    """Guard the registry of the server that this process is.

    Raises:
        GuardError: it is kept where names are compared in another way than here.
    """
    if not pins.pins:
        return
    store = handlers._get_model_registry_store()
    kind = getattr(store, "db_type", None)
    if kind not in DATABASES:
        raise errors.GuardError(
            f"aliases can't be guarded in a registry in {kind or type(store).__name__}; keep it in "
            f"SQLite or PostgreSQL, or start the server without {pinning.VARIABLE}"
        )
    enabled = MLFLOW_ENABLE_WORKSPACES.get()
    Guard(store, pins, handlers._get_workspace_store() if enabled else None).stand()


def _checked(
    check: Callable[..., None], act: Callable[..., Any], /, *given: Any, **named: Any
) -> Any:
    """Check, then act."""
    check(*given, **named)
    return act(*given, **named)


@contextlib.contextmanager
def _deciding(names: list[str]) -> Iterator[None]:
    """Be the only one who decides about some models; 503 where others don't come to an end."""
    try:
        with locks.held(*names, within=PATIENCE):
            yield
    except errors.BreadcrumbsError as error:
        raise MlflowException(str(error), error_code=TEMPORARILY_UNAVAILABLE) from error


def _refuse(what: str, name: str, alias: str, version: str = "N") -> NoReturn:
    """Answer 403, with the way that there is."""
    raise MlflowException(
        f"{what}: {name}@{alias} is guarded by a policy of this server. Promote a version with "
        f"`mlflow-breadcrumbs promote {name} --version {version} --alias {alias}`, go back with "
        f"`mlflow-breadcrumbs rollback {name} --alias {alias}`",
        error_code=PERMISSION_DENIED,
    )
