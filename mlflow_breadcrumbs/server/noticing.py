"""Moves of aliases that MLflow's server makes itself, told to the ledger as direct ones.

It stands where the guard stands, in the store of the registry that MLflow's handlers use, and tells
what was done there once it is done. The server's own promotions use another store of the same
database, and so are no direct moves.
"""

import dataclasses
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.prompt import constants
from mlflow.server import handlers
from mlflow.store.model_registry.dbmodels import models

from mlflow_breadcrumbs.ledger import alias_told, alias_watch, events, turns

Move = tuple[str, str, str | None, str | None]
"""The registered model, the alias, the version's number before and after; `None`: not set."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ModelBefore:
    """A registered model, just before something is done to it."""

    aliases: Mapping[str, str]
    """The version's number by alias."""
    tags: frozenset[str]
    """The keys of its own tags."""


class Noticing:
    """Tells what the store did.

    Args:
        store: MLflow's, of the registry.
        account: Says, inside a request, whom the server has authenticated; `None` without accounts.
        put: Takes what is to be told, and never waits.
    """

    def __init__(
        self,
        store: Any,
        account: Callable[[], str | None],
        put: Callable[[alias_told.Told], None],
    ) -> None:
        self._store = store
        self._account = account
        self._put = put

    def stand(self) -> None:
        """Stand around each of the store's methods that moves aliases."""
        for moves in (
            self.set_registered_model_alias,
            self.delete_registered_model_alias,
            self.rename_registered_model,
            self.delete_registered_model,
            self.delete_model_version,
        ):
            name = moves.__name__
            setattr(self._store, name, self._noticed(moves, getattr(self._store, name)))

    def set_registered_model_alias(
        self, before: ModelBefore, name: str, alias: str, version: Any
    ) -> Iterator[Move]:
        """An alias was set."""
        yield name, alias, before.aliases.get(alias), str(int(version))

    def delete_registered_model_alias(
        self, before: ModelBefore, name: str, alias: str
    ) -> Iterator[Move]:
        """An alias was taken away."""
        yield name, alias, before.aliases.get(alias), None

    def rename_registered_model(
        self, before: ModelBefore, name: str, new_name: str
    ) -> Iterator[Move]:
        """All aliases of a model left one name, and are under another."""
        for alias, version in before.aliases.items():
            yield name, alias, version, None
            yield new_name, alias, None, version

    def delete_registered_model(self, before: ModelBefore, name: str) -> Iterator[Move]:
        """All aliases went with their model."""
        for alias, version in before.aliases.items():
            yield name, alias, version, None

    def delete_model_version(self, before: ModelBefore, name: str, version: Any) -> Iterator[Move]:
        """The aliases of a version went with it."""
        for alias, number in before.aliases.items():
            if number == str(int(version)):
                yield name, alias, number, None

    def _noticed(
        self, moves: Callable[..., Iterator[Move]], act: Callable[..., Any]
    ) -> Callable[..., Any]:
        def noticed(*given: Any, **named: Any) -> Any:
            before = self._before(*given, **named)
            done = act(*given, **named)
            if before is not None:
                self._tell(before, lambda: moves(before, *given, **named))
            return done

        return noticed

    def _before(self, name: Any, *_given: Any, **_named: Any) -> ModelBefore | None:
        """A model as it is; `None` for a prompt, and where it can't be read, as the act will say.

        One short reading of the columns that are needed: MLflow's own reads all versions, too.
        """
        try:
            with self._store.ManagedSessionMaker(read_only=False) as session:
                own = {
                    model: self._store._get_query(session, model).filter_by(name=name)
                    for model in (models.SqlRegisteredModelAlias, models.SqlRegisteredModelTag)
                }
                aliases = own[models.SqlRegisteredModelAlias].all()
                tags = own[models.SqlRegisteredModelTag].all()
                found = ModelBefore(
                    {row.alias: str(row.version) for row in aliases},
                    frozenset(row.key for row in tags),
                )
        except Exception:
            _logger.warning("the aliases of %r were not read", name, exc_info=True)
            return None
        return None if constants.IS_PROMPT_TAG_KEY in found.tags else found

    def _tell(self, before: ModelBefore, moves: Callable[[], Iterator[Move]]) -> None:
        """Have what was done written down; that this fails is no reason to say it wasn't done."""
        try:
            changed, account = events.now(), self._account()
            for name, alias, version, after in moves():
                if version != after:
                    self._put(
                        alias_told.Told(
                            f"{alias_watch.SERVERS}{uuid.uuid4()}",
                            name,
                            alias,
                            version,
                            after,
                            changed,
                            account,
                            turn=turns.is_held(alias, before.tags),
                        )
                    )
        except Exception:
            _logger.warning("a move of an alias is left to the next look", exc_info=True)


def aliases(store: Any) -> dict[str, dict[str, str]]:
    """The aliases of all registered models but prompts: the version's number by name and alias.

    Args:
        store: MLflow's, of the registry.
    """
    found: dict[str, dict[str, str]] = {}
    with store.ManagedSessionMaker(read_only=False) as session:
        tags = store._get_query(session, models.SqlRegisteredModelTag)
        prompts = {row.name for row in tags.filter_by(key=constants.IS_PROMPT_TAG_KEY)}
        for row in store._get_query(session, models.SqlRegisteredModelAlias):
            if row.name not in prompts:
                found.setdefault(row.name, {})[row.alias] = str(row.version)
    return found


def store() -> Any | None:
    """The store that MLflow's handlers use; `None` where it is none whose moves can be told.

    A registry that is no database tells nothing; nor does one with workspaces, of which the
    ledger knows nothing.
    """
    try:
        found = handlers._get_model_registry_store()
    except MlflowException:
        return None  # the server has no registry
    is_database = hasattr(found, "ManagedSessionMaker")
    return found if is_database and not found.supports_workspaces else None
