"""The same around MLflow's basic-auth: what `--app-name breadcrumbs-auth` starts.

MLflow looks at `create_app` here before it starts any worker. For its own app it makes the admin's
account at that moment, so that a missing password or key ends the command with one message, and not
each worker in an endless loop. It knows no such moment of other apps, so `__getattr__` is ours.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """The factory, once the accounts are ready and the configuration is known to be sound.

    Raises:
        ClickException: The configuration is refused.
        MlflowException: The key or the admin's password is missing.
    """
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlflow.server import auth

    from mlflow_breadcrumbs.server import app

    app.check()
    auth.get_flask_server_secret_key()
    auth.bootstrap_admin_user()
    return _create_app


def _create_app() -> Any:
    """MLflow's app with accounts, the pages and the guard."""
    import mlflow.server
    from mlflow.server import auth

    from mlflow_breadcrumbs.server import account_sight, app

    account_sight.allow_pages()
    app.add_pages(mlflow.server.app, account_sight.of_request)
    app.add_guard(mlflow.server.app, account_sight.caller_of_request)
    return app.with_errands(auth.create_app(mlflow.server.app), account_sight.account_of_request)
