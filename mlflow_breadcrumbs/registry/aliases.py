"""Aliases as MLflow keeps them: check a name, read where one points, point it.

Whoever moves an alias goes through `ledger.set_alias` or `ledger.move`, which write history.
"""

import re

import mlflow
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import failures, uris


def check_alias(alias: str) -> None:
    """Raise `RegistryError` for an alias that MLflow would not take."""
    if not re.fullmatch(r"[A-Za-z0-9_\-]{1,255}", alias) or re.fullmatch(
        r"latest|v\d+", alias, re.IGNORECASE
    ):
        raise errors.RegistryError(
            f"{alias!r} can't be an alias: letters, digits, '_' and '-', and not 'latest' or 'v1'"
        )


def point(name: str, alias: str, version: str) -> None:
    """Point an alias at a version.

    Of several jobs that create an alias at once, PostgreSQL lets one insert it and tells the
    others that it exists; when they ask again, they change it.
    """
    client = mlflow.MlflowClient()
    with failures.explained(
        f"{uris.of_version(name, version)} is registered, but {name}@{alias} cannot be set"
    ):
        try:
            client.set_registered_model_alias(name, alias, version)
        except MlflowException as error:
            if "unique" not in str(error).lower():
                raise
            client.set_registered_model_alias(name, alias, version)


def remove(name: str, alias: str) -> None:
    """Take an alias away; one that is not there is none to take."""
    with failures.explained(f"{name}@{alias} cannot be removed"):
        mlflow.MlflowClient().delete_registered_model_alias(name, alias)


def version_at(name: str, alias: str) -> str | None:
    """The version that an alias points at; `None` where there is no such alias.

    Raises:
        RegistryError: the registry can't be asked.
    """
    with failures.explained(f"cannot read {name}@{alias}"):
        try:
            return str(mlflow.MlflowClient().get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                raise
            return None
