"""Connections that take too long to say what they want are closed, so that none stays open.

uvicorn waits for ever for a request to be complete; the limits that it has begin after an answer.
"""

import asyncio

from uvicorn.protocols.http import h11_impl

SECONDS = 10.0
"""How long a request may take until all of its headers are here, and then until its body is."""


def protocol(seconds: float = SECONDS) -> type[asyncio.Protocol]:
    """What uvicorn is to speak: HTTP/1.1, with a limit of time for the headers.

    The body's limit is for whoever reads it, who can still answer.

    Args:
        seconds: From the connection, or from the answer before, until the headers are here.
    """

    class TimedProtocol(h11_impl.H11Protocol):
        """Closes a connection that has no request in time."""

        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """Begin to wait for the first request."""
            super().connection_made(transport)
            self._wait()

        def on_response_complete(self) -> None:
            """Begin to wait for the next request."""
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            """Wait no more."""
            if self.deadline is not None:
                self.deadline.cancel()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
            self.deadline = self.loop.call_later(seconds, self._expire)

        def _expire(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return TimedProtocol
