"""A real HTTP receiver of the ledger's events, which can be told to misbehave."""

import contextlib
import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator

from mlflow_breadcrumbs.webhooks import signatures


@dataclasses.dataclass
class Listener:
    """What came, and what is answered to the next requests; 200 when there is nothing listed."""

    url: str = ""
    answers: list[int] = dataclasses.field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = dataclasses.field(default_factory=list)
    silent: threading.Event | None = None
    """While it isn't set, requests get no answer."""
    come: threading.Event = dataclasses.field(default_factory=threading.Event)
    """A request has come."""

    @property
    def events(self) -> list[dict]:
        return [json.loads(body) for _, body in self.requests]

    def check(self, secret: str) -> None:
        """Hold every request's signature against the secret."""
        for headers, body in self.requests:
            given = (headers[name] for name in signatures.STANDARD)
            identifier, timestamp, signature = given
            signatures.check(signatures.key(secret), identifier, timestamp, body, signature)


@contextlib.contextmanager
def running(port: int = 0) -> Iterator[Listener]:
    """Listen on a port of its own, or on a given one."""
    listener = Listener()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {key.lower(): value for key, value in self.headers.items()}
            listener.requests.append((headers, body))
            listener.come.set()
            if listener.silent is not None:
                listener.silent.wait(60)
            status = listener.answers.pop(0) if listener.answers else 200
            with contextlib.suppress(OSError):  # the sender may be gone
                self.send_response(status)
                self.send_header("Content-Length", "0")
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        listener.url = f"http://127.0.0.1:{server.server_port}/hook"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield listener
        finally:
            if listener.silent is not None:
                listener.silent.set()
            server.shutdown()
            thread.join()
