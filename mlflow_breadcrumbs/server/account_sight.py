"""What an account of MLflow's basic-auth may see, by MLflow's own rules.

MLflow offers these rules to its own handlers alone, so some names here are private to it; a test
holds them against what its REST API answers.
"""

import contextlib
import re
import types
from typing import Any

import flask
from mlflow.exceptions import MlflowException
from mlflow.server import auth, handlers

from mlflow_breadcrumbs.server import callers, pages, visibility


def of_request() -> visibility.Sight:
    """The sight of the account that sent the request, which MLflow has authenticated."""
    name = flask.g.mlflow_authenticated_user
    if auth.store.get_user(name).is_admin:
        return visibility.everything()
    runs = auth.Requirement(auth.RESOURCE_TYPE_RUN, "*", auth.ACTION_NOT_DENIED)
    readable = auth._rm_or_prompt_version_read_predicate(name)
    return visibility.Sight(
        model=lambda model: bool(readable(types.SimpleNamespace(name=model, tags=()))),
        experiment=auth._role_based_read_predicate(name, "experiment", also_require=[runs]),
    )


def caller_of_request() -> callers.Caller:
    """Who sent the request, whom MLflow has authenticated."""
    return callers.Caller(flask.g.mlflow_authenticated_user, of_request(), _may_edit)


def account_of_request() -> str | None:
    """Whom MLflow has authenticated; `None` where nobody asks."""
    return flask.g.get("mlflow_authenticated_user") if flask.has_request_context() else None


def _may_edit(name: str) -> bool:
    """Whether the account may set aliases of a model; as MLflow judges it, of any name.

    MLflow's rule about versions looks at the model that the request names.
    """
    if auth.store.get_user(flask.g.mlflow_authenticated_user).is_admin:
        return True
    with contextlib.suppress(MlflowException):  # there is no such model
        may = auth._get_registered_model_or_prompt_permission(name).can_update
        return bool(may and auth._alias_version_requirement_met())
    return False


def allow_pages() -> None:
    """Let accounts reach the pages where MLflow denies every route that it has no rule for.

    Which it does with MLFLOW_BASIC_AUTH_FAIL_CLOSED; the pages leave out themselves what the
    account may not see.
    """
    path = re.compile(re.escape(handlers._add_static_prefix(pages.PREFIX)) + "(/.*)?")
    for method in ("GET", "POST"):
        auth.PARAMETERIZED_AFTER_REQUEST_HANDLERS[path, method] = _leave
    auth._SELF_AUTHORIZING_AFTER_REQUEST_HANDLERS |= {_leave}


def _leave(response: Any) -> None:
    """The pages have left out already what may not be seen."""
