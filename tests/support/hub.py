"""A stand-in for Hugging Face's hub that only counts: a real server on this machine."""

import contextlib
import http.server
import threading
from collections.abc import Iterator

import pytest
from huggingface_hub import constants


@contextlib.contextmanager
def counting(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[list[tuple[str, str | None]]]:
    """Send what goes to the hub here, with a token and an empty cache.

    Gives the path and the credentials of every request.
    """
    asked: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self):
            self.do_GET()

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", url)
        files = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()
