"""MLflow's server with the pages of this package: what `--app-name breadcrumbs` starts."""

import os
from typing import Any

from mlflow.environment_variables import _MLFLOW_SGI_NAME


def create_app() -> Any:
    """MLflow's own app, with the pages under `/breadcrumbs/`.

    Returns:
        An ASGI app under uvicorn, which is MLflow's default; else a WSGI app.
    """
    import mlflow.server
    from mlflow.server import fastapi_app

    from mlflow_breadcrumbs.server import visibility

    flask_app = mlflow.server.app
    add_pages(flask_app, visibility.everything)
    if _MLFLOW_SGI_NAME.get() == "uvicorn":
        return fastapi_app.create_fastapi_app(flask_app)
    return flask_app


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
