"""The webhook on the tracking server that tells our receiver of aliases."""

import dataclasses
from typing import Any

import mlflow

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import database, failures

EVENTS = ("model_version_alias.created", "model_version_alias.deleted")
NAME = "mlflow-breadcrumbs"
REMEDY = (
    "a tracking server takes https:// and public addresses only, unless it was started with "
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true"
)


@dataclasses.dataclass(frozen=True)
class Subscription:
    """A webhook on the tracking server."""

    id: str
    url: str
    renewed: bool
    """It was there already, and got the secret."""
    problem: str | None
    """Why a test delivery was not taken; `None` if it was, or was not tried."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


def subscribe(url: str, secret: str, *, test: bool = True) -> Subscription:
    """Register a webhook for the changes of aliases, or give the one for this URL the secret.

    Args:
        url: Of the receiver, as the tracking server reaches it.
        secret: The receiver's.
        test: Let the server send a test delivery.

    Raises:
        HookError: MLflow is used without a server, and so sends no webhooks.
        RegistryError: The server refused, or can't be reached.
    """
    server = mlflow.get_registry_uri()
    if not server.startswith(("http://", "https://")):
        raise errors.HookError(
            f"webhooks are sent by a tracking server, and MLflow is used as {server}; set "
            "MLFLOW_TRACKING_URI to the server's, or use `mlflow-breadcrumbs watch`"
        )
    database.prepare()
    client = mlflow.MlflowClient()
    settings = {"events": list(EVENTS), "secret": secret, "status": "ACTIVE"}
    with failures.explained(f"cannot register a webhook for {url}", REMEDY):
        found = next((hook for hook in _all(client) if hook.url == url), None)
        if found is None:
            made = client.create_webhook(NAME, url, **settings)
        else:
            made = client.update_webhook(found.webhook_id, **settings)
        problem = _test(client, made.webhook_id) if test else None
    return Subscription(made.webhook_id, url, renewed=found is not None, problem=problem)


def _all(client: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = client.list_webhooks(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _test(client: Any, webhook_id: str) -> str | None:
    """What is wrong with a test delivery; nothing if it was taken."""
    result = client.test_webhook(webhook_id)
    if result.success:
        return None
    return result.error_message or f"it answered {result.response_status}: {result.response_body}"
