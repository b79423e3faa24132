"""Stand-ins for Hugging Face's hub, real servers on this machine, and its cache."""

import contextlib
import hashlib
import http.server
import json
import shutil
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants


@contextlib.contextmanager
def counting(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[list[tuple[str, str | None]]]:
    """Send what goes to the hub to a server that only counts, with a token and an empty cache.

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


def keep(cache: Path, repository: str, folder: Path) -> str:
    """Put a folder's files into a cache as the hub's client does; the commit."""
    own = cache / f"models--{repository.replace('/', '--')}"
    names = sorted(file.name for file in folder.iterdir())
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    commit = hashlib.sha1(" ".join(digests).encode()).hexdigest()
    snapshot = own / "snapshots" / commit
    for made in (snapshot, own / "blobs", own / "refs"):
        made.mkdir(parents=True)
    for name, digest in zip(names, digests, strict=True):
        shutil.copy(folder / name, own / "blobs" / digest)
        (snapshot / name).symlink_to(f"../../blobs/{digest}")
    (own / "refs" / "main").write_text(commit)
    return commit


@contextlib.contextmanager
def serving(repository: str, commit: str, folder: Path) -> Iterator[str]:
    """A hub with one repository of one commit: a real server; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = urllib.parse.urlparse(self.path).path
            tree = f"/api/models/{repository}/tree/{commit}"
            files = f"/{repository}/resolve/{commit}/"
            if path in (f"/api/models/{repository}", f"/api/models/{repository}/revision/{commit}"):
                siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                said = {"id": repository, "sha": commit, "siblings": siblings}
                self.answer(json.dumps(said).encode(), {})
            elif path == tree:
                found = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": ""}
                    for file in sorted(folder.iterdir())
                ]
                self.answer(json.dumps(found).encode(), {})
            elif path.startswith(files) and (folder / path.removeprefix(files)).is_file():
                content = (folder / path.removeprefix(files)).read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                self.answer(content, {"ETag": etag, "X-Repo-Commit": commit})
            else:
                self.send_error(404)

        def do_HEAD(self):
            self.do_GET()

        def answer(self, content, headers):
            self.send_response(200)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def use(monkeypatch: pytest.MonkeyPatch, cache: Path, url: str | None = None) -> None:
    """Have the hub's client use a cache, and a hub; without one it is offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", url is None)
    if url is not None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        files = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
