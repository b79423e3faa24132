"""The receiver of MLflow's webhooks: each direct change of an alias becomes history at once.

An ASGI application. A delivery is taken only if it was signed with our secret, lately, and never
before; what it tells goes to `ledger.take`. Whatever is refused gets a status and one sentence.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import json
import logging
import queue
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import uvicorn
from starlette import applications, concurrency, requests, responses, routing

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import alias_history
from mlflow_breadcrumbs.registry import catalog, uris
from mlflow_breadcrumbs.support import escaping
from mlflow_breadcrumbs.webhooks import patience, signatures

LARGEST = 64 * 1024
"""Bytes of a delivery; MLflow's have some hundreds."""
RANGE = datetime.timedelta(days=1)
"""By how much the time of a change may differ from our clock; MLflow tries again for minutes."""
EXAMPLES = ("example_model", "example_alias")
"""The model and the alias of a delivery by which MLflow only tests a webhook."""

_logger = logging.getLogger(__name__)


class RefusalError(Exception):
    """A delivery is not taken."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclasses.dataclass(frozen=True)
class ReceiverSettings:
    """What a receiver takes."""

    secret: str
    """The one that the webhook was registered with."""
    tolerance: int = signatures.TOLERANCE
    """Seconds by which the time of a delivery may differ from our clock."""
    patience: float = patience.SECONDS
    """Seconds until a request's headers must be here, and then until its body must be."""


def serve(settings: ReceiverSettings, listening: socket.socket) -> None:
    """Receive until the process is told to end (SIGINT, SIGTERM).

    Args:
        settings: What is taken.
        listening: Of `listen`.
    """
    server(settings).run(sockets=[listening])


def server(settings: ReceiverSettings) -> uvicorn.Server:
    """The server of the application, before it runs."""
    config = uvicorn.Config(
        application(settings),
        http=patience.protocol(settings.patience),
        log_config=None,
        access_log=False,
        server_header=False,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket for `serve`; port 0: any that is free.

    Raises:
        HookError: The address can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)  # from here on callers wait, and are not turned away
    except OSError as error:
        made.close()
        raise errors.HookError(
            f"can't listen at {host}, port {port}: {error.strerror}; choose another --port"
        ) from error
    return made


def application(settings: ReceiverSettings) -> applications.Starlette:
    """The ASGI application: `POST /` takes a delivery, `GET /health` says that it is up."""
    kept: queue.Queue[Any] = queue.Queue()

    async def health(_: requests.Request) -> responses.Response:
        return responses.JSONResponse({"status": "ok"})

    async def receive(request: requests.Request) -> responses.Response:
        try:
            body = await _read(request, settings.patience)
            answer, written = await concurrency.run_in_threadpool(
                _take, settings, request.headers, body
            )
        except RefusalError as refused:
            _logger.warning("refused a delivery: %s", refused)
            return responses.JSONResponse({"error": str(refused)}, refused.status)
        kept.put(written)
        return responses.JSONResponse(answer)

    @contextlib.asynccontextmanager
    async def keeping(_: applications.Starlette) -> AsyncIterator[None]:
        with _keeper(kept):
            yield

    routes = [
        routing.Route("/health", health),
        routing.Route("/", receive, methods=["POST"]),
    ]
    return applications.Starlette(routes=routes, lifespan=keeping)


async def _read(request: requests.Request, seconds: float) -> bytes:
    """The body, no longer than it may be, and in time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusalError(415, f"a delivery is application/json, not {kind or 'untold'}")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST:
                    raise RefusalError(413, f"a delivery has at most {LARGEST} bytes")
    except TimeoutError as error:
        raise RefusalError(408, f"the delivery was not here within {seconds:g} s") from error
    except requests.ClientDisconnect as error:
        raise RefusalError(400, "the connection was closed before the delivery was here") from error
    return bytes(body)


def _take(
    settings: ReceiverSettings, headers: Mapping[str, str], body: bytes
) -> tuple[dict[str, Any], list[Any]]:
    """Check a delivery and keep what it tells; the answer, and what is to go into MLflow."""
    identifier, timestamp, signature = (headers.get(name, "") for name in signatures.MLFLOW)
    if not signature:
        raise RefusalError(401, "the delivery is not signed; register the webhook with a secret")
    if len(timestamp) > signatures.LONGEST_TIMESTAMP:
        raise RefusalError(
            400, f"a timestamp of {len(timestamp)} characters is no number of seconds"
        )
    try:
        signatures.check(
            settings.secret.encode(),  # as MLflow does it, whatever the secret's form
            identifier,
            timestamp,
            body,
            signature,
            tolerance=settings.tolerance,
        )
    except errors.SignatureError as error:
        raise RefusalError(401, str(error)) from error
    told = parse(identifier, body)
    if told is None:
        return {"recorded": False, "message": "not about a model's alias, or only a test"}, []
    _check_version(told)
    try:
        written = ledger.take(told)
    except errors.ReplayError as error:
        raise RefusalError(409, str(error)) from error
    except errors.BreadcrumbsError as error:
        raise RefusalError(503, str(error)) from error
    if not written:
        return {"recorded": False, "message": "known already"}, []
    _logger.info("%s@%s is now %s", told.name, told.alias, told.version)
    return {"recorded": True, "event": written[0][0].sequence}, written


def parse(identifier: str, body: bytes) -> ledger.Delivery | None:
    """What MLflow tells of an alias; `None` for other events, and for its test deliveries.

    Raises:
        RefusalError: The content is not what MLflow sends.
    """
    try:
        content = json.loads(body)
        event = (content["entity"], content["action"])
        data = content["data"]
        if event not in (("model_version_alias", "created"), ("model_version_alias", "deleted")):
            return None
        name, alias = _text(data["name"]), _text(data["alias"])
        version = str(int(_text(data["version"]))) if event[1] == "created" else None
        changed = alias_history.utc(datetime.datetime.fromisoformat(content["timestamp"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise RefusalError(400, "the content is not what MLflow sends of an alias") from error
    if (name, alias) == EXAMPLES:
        return None
    moment = datetime.datetime.fromisoformat(changed)
    if abs(datetime.datetime.now(datetime.UTC) - moment) > RANGE:
        raise RefusalError(
            400, f"the delivery tells of a change at {changed}, which is more than a day from now"
        )
    return ledger.Delivery(identifier, name, alias, version, changed)


def _check_version(told: ledger.Delivery) -> None:
    """Refuse a version that the registry has not; where it does not answer, nothing is known."""
    if told.version is None:
        return
    uri = uris.of_version(told.name, told.version)
    try:
        known = catalog.fetch(uri) is not None
    except errors.RegistryError as error:
        _logger.warning("%s was not looked up: %s", uri, error)
        return
    if not known:
        raise RefusalError(400, f"the registry has no {uri}")


def _text(value: Any) -> str:
    """A name; control characters and what is no text are in none."""
    if not isinstance(value, str) or not 0 < len(value) <= 256 or escaping.line(value) != value:
        raise ValueError(value)
    return value


@contextlib.contextmanager
def _keeper(kept: "queue.Queue[Any]") -> Iterator[None]:
    """Keep the heads of what was written in MLflow, beside the answers: the server waits for them.

    At the end what waits is still kept.
    """

    def work() -> None:
        while (written := kept.get()) is not None:
            ledger.anchor_last(written)

    thread = threading.Thread(target=work, name="heads")
    thread.start()
    try:
        yield
    finally:
        kept.put(None)
        thread.join()
