"""Workers on a Ray cluster, which is joined, or started on this machine.

The work goes into Ray's object store once, and each worker takes it from there. A worker is an
actor, so that it keeps what it has imported and opened from one piece to the next, and one GPU. A
worker that dies is replaced here and not by Ray: its piece is done again, a few times at most, and
a piece counts when its result has come, so nothing counts twice.
"""

import collections
import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray import exceptions

import mlflow_breadcrumbs
from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import executors, processes, progress, scratch, wording

MOST_TRIES = 3
"""That a piece gets; a worker that it kills again and again is out of memory, or worse."""
PATIENCE = 60.0
"""Seconds without any worker after which the reader of the log is told why nothing goes on."""
STOPPING = 20.0
"""Seconds at most until workers that were stopped are gone."""
ANSWER = 10.0
"""Seconds that a cluster's head has to take a connection."""
LONGEST_FOLDER = 36
"""Characters of a folder for Ray's sockets, whose paths have 107 at most and 70 of Ray's own."""

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def connected(
    address: str | None, workers: int | None, threads: int, gpus: int
) -> Iterator["RayExecutor"]:
    """Join a cluster, or start one; see `executors.opened`.

    In a process that is connected to Ray already, as a notebook is, that connection is used, and
    stays.
    """
    with contextlib.ExitStack() as stack:
        wanted = address or os.environ.get("RAY_ADDRESS")
        known = _joined(wanted) if wanted else None
        if not ray.is_initialized():
            settings = known or _started(stack, workers, threads, gpus)
            stack.callback(ray.shutdown)
            _connect(wanted, settings)
        executor = RayExecutor(workers or _room(threads, gpus), threads, gpus)
        stack.callback(executor.close)
        yield executor


class RayExecutor:
    """Hands pieces to workers on the cluster that this process is connected to.

    Args:
        workers: at once, at most.
        threads: processors of each worker.
        gpus: of each worker.
    """

    def __init__(self, workers: int, threads: int, gpus: int) -> None:
        self.workers = workers
        kind = ray.remote(RemoteWorker)
        options = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": 0}
        self._hire = functools.partial(kind.options(**options).remote, threads)
        self._idle: list[Any] = []
        self._last: tuple[Any, _Shared] | None = None

    def run(
        self,
        work: executors.Work[_Piece, _Result],
        pieces: Sequence[_Piece],
        *,
        advance: progress.Advance,
        amounts: Sequence[float],
    ) -> Iterator[tuple[int, _Result]]:
        """See `executors.Executor.run`; `advance` is told of whole pieces.

        The work of the run before is in the object store still, and is not put there again.
        """
        if not pieces:
            return
        if self._last is None or self._last[0] is not work:
            self._last = (work, _Shared(uuid.uuid4().hex, ray.put(work)))
        crew = _Crew(self._hire, self._idle, self._last[1], pieces)
        try:
            crew.begin(self.workers)
            while crew.left:
                for number, result in crew.next():
                    advance(amounts[number])
                    yield number, result
        finally:
            self._idle = crew.dismiss()

    def close(self) -> None:
        """Let the workers go."""
        for worker in self._idle:
            ray.kill(worker)
        self._idle = []


@dataclasses.dataclass(frozen=True)
class _Shared:
    """A work in the object store; Ray hands on what is in a field as the reference that it is."""

    token: str
    reference: Any


class _Crew:
    """The workers of one run, each with what it is at."""

    def __init__(
        self,
        hire: Callable[[], Any],
        idle: Sequence[Any],
        shared: _Shared,
        pieces: Sequence[Any],
    ) -> None:
        self._hire, self._idle = hire, list(idle)
        self._shared, self._pieces = shared, pieces
        self._waiting = collections.deque(range(len(pieces)))
        self._tries = collections.Counter[int | None]()
        self._busy: dict[Any, tuple[Any, int | None]] = {}
        """What will be known, of which worker, with which piece; no piece while it starts."""
        self.left = len(pieces)

    def begin(self, workers: int) -> None:
        """Give every worker that there is a piece, and start others."""
        wanted = min(workers, self.left)
        taken, self._idle = self._idle[:wanted], self._idle[wanted:]
        for worker in taken:
            self._give(worker)
        for _ in range(wanted - len(taken)):
            self._start()

    def next(self) -> Iterator[tuple[int, Any]]:
        """Wait until something has happened; the result that has come, if one has."""
        done, _ = ray.wait(list(self._busy), num_returns=1, timeout=PATIENCE)
        if not done:
            self._explain_waiting()
            return
        worker, number = self._busy.pop(done[0])
        try:
            found = ray.get(done[0])
        except exceptions.RayTaskError as error:  # a fault of ours: as it is, with where it was
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except exceptions.RayError as error:
            self._replace(worker, number, error)
            return
        if number is None:
            _check_version(found)
        elif isinstance(found, errors.BreadcrumbsError):
            self._idle.append(worker)
            raise found
        self._give(worker)  # before the result is looked at: nobody waits for the caller
        if number is not None:
            self.left -= 1
            yield number, found

    def dismiss(self) -> list[Any]:
        """Stop those that are at something, and wait until they are gone; the others."""
        for worker, _ in self._busy.values():
            ray.kill(worker)
        if self._busy:
            ray.wait(list(self._busy), num_returns=len(self._busy), timeout=STOPPING)
        self._busy = {}
        return self._idle

    def _start(self) -> None:
        worker = self._hire()
        self._busy[worker.version.remote()] = (worker, None)

    def _give(self, worker: Any) -> None:
        """The next piece for a worker; one without is idle."""
        if not self._waiting:
            self._idle.append(worker)
            return
        number = self._waiting.popleft()
        promised = worker.do.remote(self._shared, self._pieces[number])
        self._busy[promised] = (worker, number)

    def _replace(self, worker: Any, number: int | None, error: exceptions.RayError) -> None:
        """Have a worker's piece done by another one."""
        ray.kill(worker)  # one that can't be reached may live
        self._tries[number] += 1
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if self._tries[number] >= MOST_TRIES:
            raise errors.ExecutorError(
                f"{wording.counted(MOST_TRIES, 'workers')} died one after the other, the last "
                f"with: {reason} Look for a lack of memory (fewer --workers, smaller shards), and "
                "into Ray's logs"
            ) from error
        _logger.warning("a worker died (%s); what it was at is done again", reason)
        if number is not None:
            self._waiting.appendleft(number)
        if self._idle:
            self._give(self._idle.pop())
        else:
            self._start()

    def _explain_waiting(self) -> None:
        """Say why nothing goes on, where no worker has begun."""
        if all(number is None for _, number in self._busy.values()):
            _logger.warning(
                "no worker could start yet; of its processors the cluster has %g free",
                ray.available_resources().get("CPU", 0),
            )


class RemoteWorker:
    """Lives in a process of its own on the cluster, and does one piece after the other.

    Args:
        threads: that it may use.
    """

    def __init__(self, threads: int) -> None:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stdout is the command's, for results
        processes.allow(threads)
        importlib.import_module("torch").set_num_threads(threads)
        self._token = ""
        self._open = contextlib.ExitStack()
        self._do: Callable[[Any, progress.Advance], Any] | None = None

    def version(self) -> str:
        """Of this package, where the worker is."""
        return mlflow_breadcrumbs.__version__

    def do(self, shared: _Shared, piece: Any) -> Any:
        """Do a piece; an error that a user can cause is a result too.

        Args:
            shared: the work, which is begun once.
            piece: of it.
        """
        try:
            if self._do is None or shared.token != self._token:
                self._do = None
                self._open.close()
                work: executors.Work[Any, Any] = ray.get(shared.reference)
                self._do, self._token = self._open.enter_context(work.begin()), shared.token
            return self._do(piece, progress.unheard)
        except errors.BreadcrumbsError as error:
            return error


def _check_version(found: str) -> None:
    if found != mlflow_breadcrumbs.__version__:
        raise errors.ExecutorError(
            f"the workers have mlflow_breadcrumbs {found}, and this is "
            f"{mlflow_breadcrumbs.__version__}; install the same on all nodes"
        )


def _joined(address: str) -> dict[str, Any]:
    """How a cluster is joined; Ray itself would knock at a closed door for many minutes.

    Raises:
        ExecutorError: nobody answers at the address.
    """
    if address == "auto":  # Ray's word for one that runs on this machine
        return {"address": address}
    host, colon, port = address.rpartition(":")
    if "://" in address or not (colon and port.isdecimal()):
        raise errors.ExecutorError(
            f"the address of the Ray cluster is {address!r}; write the HOST:PORT of its head, and "
            "run this on one of its nodes (--ray-address)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error
    return {"address": address}


def _unreachable(address: str | None, error: Exception) -> errors.ExecutorError:
    """What `ray.init` or a connection came to, as one message."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    what = f"the Ray cluster at {address} can't be joined" if address else "Ray can't start"
    return errors.ExecutorError(
        f"{what}: {reason}. Check --ray-address, or leave it and RAY_ADDRESS out to start one here"
    )


def _started(
    stack: contextlib.ExitStack, workers: int | None, threads: int, gpus: int
) -> dict[str, Any]:
    """How a cluster on this machine is started; its files go when it does, where paths allow it."""
    folder = stack.enter_context(scratch.folder())
    count = workers or max(1, processes.processors() // threads)
    return {
        "address": "local",
        "num_cpus": count * threads,
        "num_gpus": None if gpus else 0,
        "include_dashboard": False,
        **({"_temp_dir": str(folder)} if len(str(folder)) <= LONGEST_FOLDER else {}),
    }


def _connect(address: str | None, settings: dict[str, Any]) -> None:
    """Call `ray.init`, which neither reports home nor takes our signals."""
    talkative = _logger.isEnabledFor(logging.INFO)
    level = logging.INFO if talkative else logging.ERROR
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(level)  # it speaks before it is told by `init`
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**settings, logging_level=level, log_to_driver=talkative)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, OSError) as error:
        raise _unreachable(address, error) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _room(threads: int, gpus: int) -> int:
    """How many workers the nodes of the cluster have room for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count = 0
    for node in nodes:
        fitting = int(node.get("CPU", 0) // threads)
        count += min(fitting, int(node.get("GPU", 0) // gpus)) if gpus else fitting
    if not count:
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        wanted = wording.counted(threads, "processors") + (" and a GPU" if gpus else "")
        raise errors.ExecutorError(
            f"no node of the Ray cluster has room for a worker with {wanted} (the largest has "
            f"{wording.counted(most, 'processors')}); take fewer --threads, or name --workers "
            "where the cluster grows on demand"
        )
    return count
