"""A real HTTP proxy before a real tracking server, which can be told to misbehave."""

import contextlib
import dataclasses
import http.client
import http.server
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator


@dataclasses.dataclass
class Proxy:
    """What goes wrong: for requests whose path matches `path`, `times` times."""

    uri: str = ""
    path: str = ""
    method: str = ""
    times: int = 0
    fault: str = ""
    """`lose` the answer; `cut` the connection after some of the body; `slow`; or a status."""
    met: int = 0

    def misbehave(self, fault: str, path: str, *, times: int = 10**6, method: str = "") -> None:
        self.fault, self.path, self.times, self.method, self.met = fault, path, times, method, 0

    def behave(self) -> None:
        self.times = 0

    def meets(self, method: str, path: str) -> bool:
        if self.times and re.search(self.path, path) and self.method in ("", method):
            self.times -= 1
            self.met += 1
            return True
        return False


@contextlib.contextmanager
def running(server: str) -> Iterator[Proxy]:
    """A proxy before `server`, on a port of its own."""
    target = urllib.parse.urlparse(server).netloc
    proxy = Proxy()

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_request(self):
            bad = proxy.meets(self.command, self.path)
            length = int(self.headers.get("Content-Length") or 0)
            if bad and proxy.fault == "cut":
                self.rfile.read(min(length, 1000))
                self.close_connection = True
                return
            body = self.read_body(length)
            if bad and proxy.fault == "slow":
                time.sleep(2)
            elif bad and proxy.fault.isdecimal():
                self.answer(int(proxy.fault), [], b"out of order")
                return
            connection = http.client.HTTPConnection(target, timeout=60)
            headers = {
                key: value
                for key, value in self.headers.items()
                if key not in ("Transfer-Encoding", "Content-Length")
            }
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
            connection.close()
            self.close_connection = True
            if not (bad and proxy.fault == "lose"):
                self.answer(reply.status, reply.getheaders(), content)

        def read_body(self, length):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(length)
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def answer(self, status, headers, content):
            with contextlib.suppress(OSError):  # the client has given up
                self.send_response(status)
                for key, value in headers:
                    if key.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_request  # noqa: N815

        def log_message(self, *arguments):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.uri = f"http://127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listening.shutdown()
        listening.server_close()
