"""MLflow's server with the pages of this package: what `--app-name breadcrumbs` starts.

MLflow looks at `create_app` here before it starts any worker. `__getattr__` reads the configuration
at that moment, once for all of them, so that a broken one ends the command with one message, and
not each worker in an endless loop.
"""

import os
from typing import Any

from mlflow.environment_variables import _MLFLOW_SGI_NAME


def __getattr__(name: str) -> Any:
    """The factory, once the configuration is known to be sound.

    Raises:
        ClickException: The configuration is refused; MLflow's command line prints it.
    """
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check()
    return _create_app


def check() -> None:
    """Read the configuration, and hand it over to the workers.

    Raises:
        ClickException: It can't be read; MLflow's command line prints it.
    """
    import click

    from mlflow_breadcrumbs import errors
    from mlflow_breadcrumbs.server import in_force
    from mlflow_breadcrumbs.webhooks import notifying

    try:
        in_force.hand_over()
        notifying.configured()
    except errors.BreadcrumbsError as error:
        raise click.ClickException(str(error)) from error


def _create_app() -> Any:
    """MLflow's own app, with the pages under `/breadcrumbs/`, the guard and its errands.

    Returns:
        An ASGI app under uvicorn, which is MLflow's default; else a WSGI app.
    """
    import mlflow.server
    from mlflow.server import fastapi_app

    from mlflow_breadcrumbs.server import callers, visibility

    flask_app = mlflow.server.app
    add_pages(flask_app, visibility.everything)
    add_guard(flask_app, callers.anybody)
    made = flask_app
    if _MLFLOW_SGI_NAME.get() == "uvicorn":
        made = fastapi_app.create_fastapi_app(flask_app)
    return with_errands(made, lambda: None)


def add_pages(flask_app: Any, sight: Any) -> None:
    """Add the pages to MLflow's Flask app, and let this process read the server's own stores.

    Args:
        flask_app: Of MLflow; what it does to every request it does to ours.
        sight: Says, inside a request, what the one who asks may see.
    """
    import mlflow
    from mlflow import server
    from mlflow.server import handlers

    from mlflow_breadcrumbs.server import pages

    store = os.environ[server.BACKEND_STORE_URI_ENV_VAR]
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(os.environ.get(server.REGISTRY_STORE_URI_ENV_VAR) or store)
    prefix = handlers._add_static_prefix(pages.PREFIX)
    flask_app.register_blueprint(pages.blueprint(sight), url_prefix=prefix)


def add_guard(flask_app: Any, caller: Any) -> None:
    """Guard what the configuration pins, and let MLflow's Flask app take the requests for it.

    Args:
        flask_app: Of MLflow, which has the pages already.
        caller: Says, inside a request, who asks.

    Raises:
        GuardError: The registry's database is none that can be guarded.
    """
    from mlflow.server import handlers

    from mlflow_breadcrumbs.server import deciding, guard, in_force, kept_files, pages

    known = in_force.taken()
    guard.stand(known.pins)
    kept_files.take_over()
    prefix = handlers._add_static_prefix(pages.PREFIX)
    flask_app.register_blueprint(deciding.blueprint(known, caller), url_prefix=prefix)


def with_errands(made: Any, account: Any) -> Any:
    """Let the server write down what it moves itself, look for what others move, and tell of it.

    Args:
        made: MLflow's app, with pages and guard.
        account: Says, inside a request, whom the server has authenticated.
    """
    from mlflow_breadcrumbs.server import errands, in_force, noticing, witnessing
    from mlflow_breadcrumbs.webhooks import notifying

    store = noticing.store()
    doing = errands.Errands(store, notifying.configured())
    if store is not None:
        noticing.Noticing(store, account, doing.put).stand()
        witnessing.Witnessing(store, in_force.taken().pins, account, doing.put).stand()
    return errands.run_beside(made, doing)
