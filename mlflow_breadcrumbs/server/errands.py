"""What a worker of the server does beside its answers, in threads that nobody waits for.

One thread writes into the ledger what `noticing` tells, at once. Another looks at the registry when
the worker starts and now and then, for what was moved past this server. A third delivers the
ledger's events where the environment says so; of several workers one does. They begin anew in each
process, and end with it: what was told is written before.
"""

import atexit
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette import concurrency

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.ledger import (
    alias_glances,
    alias_told,
    alias_watch,
    events,
    stores,
    witnessed,
)
from mlflow_breadcrumbs.server import noticing
from mlflow_breadcrumbs.webhooks import outbox

AGAIN = 0.05
"""Seconds after which what came too early is told again."""
LATER = 5.0
"""Seconds after which a ledger that could not be used is tried again."""
MOST = 10_000
"""Of what waits for the ledger; older moves are left to a look, which knows less of them."""
EVERY = 60.0
"""Seconds between two glances at the registry, of all workers together."""
START = 10.0
"""Seconds in which the workers of one server start."""
SETTLING = 6.0
"""Seconds for other workers to tell what they have moved, before a difference is looked at; more
than `alias_told.PATIENCE`."""
MANY = 20
"""Models to look at one by one; of more the whole registry is read."""
PATIENCE = 10.0
"""Seconds that a worker's end waits for its errands."""

Noted = alias_told.Told | witnessed.Registration
"""What is to be written."""

_logger = logging.getLogger(__name__)


class Errands:
    """The threads of one worker.

    Args:
        store: MLflow's, of the registry; `None` where nothing is told of it.
        receiver: Of the ledger's events; `None` without one.
    """

    def __init__(self, store: Any | None, receiver: outbox.Receiver | None) -> None:
        self._store = store
        self._receiver = receiver
        self._starting = threading.Lock()
        self._process: int | None = None
        self._told: queue.SimpleQueue[Noted | None] = queue.SimpleQueue()
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []

    def put(self, told: Noted) -> None:
        """Have something written down."""
        self.start()
        self._told.put(told)

    def start(self) -> None:
        """Begin in this process, unless that was done; a fork takes no threads along."""
        if self._process != os.getpid():
            with self._starting:
                if self._process != os.getpid():
                    self._begin()

    def _begin(self) -> None:
        self._told, self._end = queue.SimpleQueue(), threading.Event()
        work = [] if self._store is None else [("notes", self._write), ("looks", self._look)]
        work += [] if self._receiver is None else [("events", self._deliver)]
        self._threads = [
            threading.Thread(target=_serving, args=(do,), name=f"breadcrumbs {name}", daemon=True)
            for name, do in work
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.end)
        self._process = os.getpid()

    def end(self) -> None:
        """Write what was told, and end; what can't be written in time is left to a look."""
        if self._process != os.getpid() or self._end.is_set():
            return
        self._end.set()
        self._told.put(None)
        latest = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, latest - time.monotonic()))

    def _write(self) -> None:
        waiting: list[Noted] = []
        more = True
        while waiting or more:
            more = self._take(waiting) and more
            try:
                witnessed.keep([e for e in waiting if isinstance(e, witnessed.Registration)])
                moves = [e for e in waiting if isinstance(e, alias_told.Told)]
                waiting = [*moves]
                waiting = [*alias_told.tell(moves)]
            except Exception as error:  # noqa: BLE001 - nothing may end this thread
                _log("moves of aliases can't be written down now", error)
                waiting = waiting[-MOST:]
                if self._end.wait(LATER):
                    return

    def _take(self, waiting: list[Noted]) -> bool:
        """Add what was told, for which it waits if nothing else waits; whether there may be more.

        Args:
            waiting: What came too early, which is told again soon.
        """
        with contextlib.suppress(queue.Empty):
            told = self._told.get(timeout=AGAIN if waiting else None)
            while told is not None:
                waiting.append(told)
                told = self._told.get_nowait()
            return False
        return True

    def _look(self) -> None:
        recent = START
        while not self._end.is_set():
            try:
                if alias_glances.claim(recent):
                    self._glance()
            except Exception as error:  # noqa: BLE001 - nothing may end this thread
                _log("the aliases can't be looked at now", error)
            recent = 0.9 * EVERY
            self._end.wait(EVERY)

    def _glance(self) -> None:
        """Look at what is not as it is known to be."""
        begun = events.now()
        names = alias_glances.differing(noticing.aliases(self._store))
        if names:
            self._end.wait(SETTLING)
            begun = events.now()
            names &= alias_glances.differing(noticing.aliases(self._store))
        if len(names) > MANY:
            ledger.look((), alias_watch.SERVER)
            return
        if names:
            ledger.look(sorted(names), alias_watch.SERVER)
        alias_glances.confirm(begun)

    def _deliver(self) -> None:
        assert self._receiver is not None  # else there is no such thread
        problem: str | None = None
        while not self._end.is_set():
            try:
                for done in outbox.follow(self._receiver, ended=self._end):
                    if done.problem not in (None, problem):
                        _logger.warning("events wait to be delivered: %s", done.problem)
                    problem = done.problem
            except Exception as error:  # noqa: BLE001 - nothing may end this thread
                _log("events can't be delivered now", error)
                self._end.wait(LATER)

    @contextlib.asynccontextmanager
    async def beside(self, inner: Any) -> AsyncIterator[Any]:
        """The life of an ASGI app, with these errands until its end.

        Args:
            inner: Of the app itself.
        """
        async with inner as state:
            self.start()
            try:
                yield state
            finally:
                await concurrency.run_in_threadpool(self.end)


def run_beside(app: Any, doing: Errands) -> Any:
    """Let a worker's errands begin and end with it; the app.

    uvicorn tells an app when it ends, and may then end its process by a signal; in other servers
    the first request begins them, and the interpreter's end is theirs.

    Args:
        app: Of ASGI, with a router, or MLflow's Flask app.
        doing: Of this worker.
    """
    if (router := getattr(app, "router", None)) is not None:
        inner = router.lifespan_context
        router.lifespan_context = lambda asgi: doing.beside(inner(asgi))
    else:
        doing.start()
        app.before_request(doing.start)
    return app


def _serving(work: Callable[[], None]) -> None:
    """Do it as the registry's server, whose ledger its users can't see where it is a file."""
    with stores.serving():
        work()


def _log(what: str, error: Exception) -> None:
    """Say that something failed; of what is no error of ours also where."""
    known = isinstance(error, errors.BreadcrumbsError)
    _logger.warning("%s: %s", what, error, exc_info=None if known else error)
