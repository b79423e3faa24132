"""Who registers versions through MLflow's server, told to the ledger where there are accounts.

It stands in the store of the registry, as `noticing` does. A version counts that carries our tags,
or whose model has guarded aliases; who gives a version the digest of its weights counts, too.
"""

import logging
from collections.abc import Callable
from typing import Any

from mlflow_breadcrumbs.ledger import witnessed
from mlflow_breadcrumbs.registry import tag_keys, uris
from mlflow_breadcrumbs.server import pinning

_logger = logging.getLogger(__name__)


class Witnessing:
    """Tells who made a version.

    Args:
        store: MLflow's, of the registry.
        pins: What is guarded.
        account: Says, inside a request, whom the server has authenticated.
        put: Takes what is to be told, and never waits.
    """

    def __init__(
        self,
        store: Any,
        pins: pinning.Pins,
        account: Callable[[], str | None],
        put: Callable[[witnessed.Registration], None],
    ) -> None:
        self._store = store
        self._pins = pins
        self._account = account
        self._put = put

    def stand(self) -> None:
        """Stand around each of the store's methods by which a version is made ours."""
        for seen in (self.create_model_version, self.set_model_version_tag):
            name = seen.__name__
            setattr(self._store, name, self._witnessed(seen, getattr(self._store, name)))

    def create_model_version(
        self,
        made: Any,
        account: str,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: Any = None,
        **_more: Any,
    ) -> witnessed.Registration | None:
        """A version was registered."""
        given = {tag.key: tag.value for tag in tags or ()}
        if not (any(key.startswith(tag_keys.OURS) for key in given) or self._pins.concern(name)):
            return None
        return witnessed.Registration(
            name,
            str(made.version),
            account,
            given.get(tag_keys.WEIGHTS_DIGEST),
            source if uris.registered(source) else None,
        )

    def set_model_version_tag(
        self, _made: Any, account: str, name: str, version: Any, tag: Any
    ) -> witnessed.Registration | None:
        """A version was given the digest of its weights."""
        if tag.key != tag_keys.WEIGHTS_DIGEST:
            return None
        return witnessed.Registration(name, str(int(version)), account, tag.value, None)

    def _witnessed(
        self, seen: Callable[..., witnessed.Registration | None], act: Callable[..., Any]
    ) -> Callable[..., Any]:
        def witness(*given: Any, **named: Any) -> Any:
            made = act(*given, **named)
            try:
                account = self._account()
                if account is not None and (told := seen(made, account, *given, **named)):
                    self._put(told)
            except Exception:
                _logger.warning("who registered a version was not written down", exc_info=True)
            return made

        return witness
