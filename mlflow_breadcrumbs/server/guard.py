"""The guard: aliases that are pinned move only through this package.

It stands in the store of the registry that MLflow's server uses, and so behind every address under
which MLflow may be asked, today's and tomorrow's. What is not about a pinned alias goes through
untouched. The server's own promotions use another store of the same database.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NoReturn

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.server import handlers

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.ledger import letters
from mlflow_breadcrumbs.promotion import predecessors
from mlflow_breadcrumbs.registry import tag_keys
from mlflow_breadcrumbs.server import pinning

DATABASES = ("sqlite", "postgresql")
"""Of the registry. They tell names apart as the patterns do, by every character."""


class Guard:
    """Refuses, before the store does it.

    Args:
        store: MLflow's, of the registry.
        pins: what is guarded.
    """

    def __init__(self, store: Any, pins: pinning.Pins) -> None:
        self._store = store
        self._pins = pins

    def stand(self) -> None:
        """Put every check before the store's method of the same name."""
        checks = (
            self.set_registered_model_alias,
            self.delete_registered_model_alias,
            self.rename_registered_model,
            self.delete_registered_model,
            self.delete_model_version,
            self.set_model_version_tag,
            self.delete_model_version_tag,
        )
        for check in checks:
            name = check.__name__
            setattr(self._store, name, _guarded(check, getattr(self._store, name)))

    def set_registered_model_alias(self, name: str, alias: str, version: Any) -> None:
        """A pinned alias is not set."""
        self._moves(name, alias, str(version))

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        """A pinned alias is not taken away."""
        self._moves(name, alias)

    def rename_registered_model(self, name: str, new_name: str) -> None:
        """No alias leaves its pin by another name of its model, nor comes under one so."""
        for alias in self._aliases(name, new_name):
            if self._is_pinned(name, alias) or self._is_pinned(new_name, alias):
                _refuse(f"{name!r} can't be renamed to {new_name!r}", name, alias)

    def delete_registered_model(self, name: str) -> None:
        """A model with a pinned alias stays."""
        for alias in self._pinned(name):
            _refuse(f"{name!r} can't be deleted", name, alias)

    def delete_model_version(self, name: str, version: Any) -> None:
        """A version with a pinned alias stays."""
        for alias in self._held(name, version):
            _refuse(f"version {version} of {name!r} can't be deleted", name, alias)

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
        for alias in self._held(name, version):
            if new and key.startswith(letters.PREFIX) and not self._has_tag(name, version, key):
                return  # what others measured of it, told in a tag of its own
            _refuse(f"the tag {key} of version {version} of {name!r} stays as it is", name, alias)

    def _is_pinned(self, name: str, alias: str) -> bool:
        return self._pins.of_alias(name, alias) is not None

    def _pinned(self, name: str) -> list[str]:
        """The pinned aliases of a model."""
        return [alias for alias in self._aliases(name) if self._is_pinned(name, alias)]

    def _held(self, name: str, version: Any) -> list[str]:
        """The pinned aliases of a version."""
        if not (isinstance(name, str) and self._pins.concern(name)):
            return []
        with contextlib.suppress(MlflowException):  # it is not there, as the store will say
            found = self._store.get_model_version(name, version).aliases
            return [alias for alias in found if self._is_pinned(name, alias)]
        return []

    def _aliases(self, *names: str) -> list[str]:
        """The aliases of a model, the first of these names; none where no pin can concern it."""
        if not any(isinstance(name, str) and self._pins.concern(name) for name in names):
            return []
        with contextlib.suppress(MlflowException):
            return list(self._store.get_registered_model(names[0]).aliases)
        return []

    def _has_tag(self, name: str, version: Any, key: str) -> bool:
        return key in self._store.get_model_version(name, version).tags


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
    Guard(store, pins).stand()


def _guarded(check: Callable[..., None], act: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*given: Any, **named: Any) -> Any:
        check(*given, **named)
        return act(*given, **named)

    return checked


def _refuse(what: str, name: str, alias: str, version: str = "N") -> NoReturn:
    """Answer 403, with the way that there is."""
    raise MlflowException(
        f"{what}: {name}@{alias} is guarded by a policy of this server. Promote a version with "
        f"`mlflow-breadcrumbs promote {name} --version {version} --alias {alias}`, go back with "
        f"`mlflow-breadcrumbs rollback {name} --alias {alias}`",
        error_code=PERMISSION_DENIED,
    )
