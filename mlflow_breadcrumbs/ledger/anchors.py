"""The ledger's head in MLflow's tags: what shows if the history is rewritten."""

import logging
from collections.abc import Sequence

import mlflow
import requests
from mlflow.exceptions import MlflowException

from mlflow_breadcrumbs.ledger import events
from mlflow_breadcrumbs.registry import tag_keys, uris

TAG_HEAD = "breadcrumbs.ledger_head"
"""On versions and runs: the head of the ledger when their last event was written."""

UNREACHABLE = (MlflowException, requests.RequestException)
_logger = logging.getLogger(__name__)


def anchor(head: events.ChainHead, about: events.Draft) -> None:
    """Keep the head in MLflow, on the version that the event is about, or on its run."""
    client = mlflow.MlflowClient()
    try:
        if named := uris.registered(about.subject):
            client.set_model_version_tag(*named, TAG_HEAD, head.tag())
        elif about.run_id is not None:
            client.set_tag(about.run_id, TAG_HEAD, head.tag())
    except UNREACHABLE as error:
        if getattr(error, "error_code", "") == "PERMISSION_DENIED":
            return  # of a version with a guarded alias: the server's own ledger has its head there
        _logger.warning("the ledger's head %s was not kept in MLflow: %s", head, error)


def anchor_last(
    written: Sequence[tuple[events.ChainHead, events.Draft]], *, ours: bool = False
) -> None:
    """Keep the head in MLflow on the last of the versions that a batch of events is about.

    Every head holds for all events before it, so one does for the batch.

    Args:
        written: the batch.
        ours: only on a version that this package has registered; others keep the tags that they
            have. For events that nobody has asked for.
    """
    passed: set[str] = set()
    for head, draft in reversed(written):
        if draft.subject is None or draft.subject in passed:
            continue
        passed.add(draft.subject)
        if not ours or _is_ours(draft.subject):
            anchor(head, draft)
            return


def _is_ours(uri: str) -> bool:
    """Whether the registry has a version with the digest of its weights."""
    named = uris.registered(uri)
    try:
        return named is not None and tag_keys.WEIGHTS_DIGEST in (
            mlflow.MlflowClient().get_model_version(*named).tags
        )
    except UNREACHABLE:  # it may be deleted
        return False
