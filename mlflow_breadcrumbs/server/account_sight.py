"""What an account of MLflow's basic-auth may see, by MLflow's own rules.

MLflow offers these rules to its own handlers alone, so some names here are private to it; a test
holds them against what its REST API answers.
"""

import re
import types
from typing import Any

import flask
from mlflow.server import auth, handlers

from mlflow_breadcrumbs.server import pages, visibility


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


def allow_pages() -> None:
    """Let accounts reach the pages where MLflow denies every route that it has no rule for.

    Which it does with MLFLOW_BASIC_AUTH_FAIL_CLOSED; the pages leave out themselves what the
    account may not see.
    """
    path = re.compile(re.escape(handlers._add_static_prefix(pages.PREFIX)) + "(/.*)?")
    auth.PARAMETERIZED_AFTER_REQUEST_HANDLERS[path, "GET"] = _leave
    auth._SELF_AUTHORIZING_AFTER_REQUEST_HANDLERS |= {_leave}


def _leave(response: Any) -> None:
    """The pages have left out already what may not be seen."""
