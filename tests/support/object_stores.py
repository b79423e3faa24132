"""A real object store over HTTP for tests: moto's S3, and a web server with and without ranges."""

import contextlib
import email.utils
import http.server
import logging
import re
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "models"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Store:
    """A bucket on a server of its own."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.variables = CREDENTIALS | {"MLFLOW_S3_ENDPOINT_URL": endpoint}
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def put(self, file: Path, folder: str) -> str:
        """Upload a file; its address."""
        self.client.upload_file(str(file), BUCKET, f"{folder}/{file.name}")
        return f"s3://{BUCKET}/{folder}/{file.name}"

    def names(self, prefix: str) -> list[str]:
        """The keys that begin so, without what they begin with."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [entry["Key"].removeprefix(prefix) for entry in found]


@contextlib.contextmanager
def running() -> Iterator[Store]:
    """Start the store."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Store(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}")
    finally:
        server.stop()


class _Files(http.server.BaseHTTPRequestHandler):
    """Files of a folder, in ranges if the server knows them; some answers may be a 503."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def _answer(self, *, body: bool) -> None:
        server: WebServer = self.server  # type: ignore[assignment]
        server.asked += 1
        file = server.folder / urllib.parse.unquote(self.path).lstrip("/")
        if server.asked <= server.failures or (server.flaky and server.asked % 3 == 0):
            return self._send(503, b"", {})
        if not file.is_file():
            return self._send(404, b"", {})
        changed = file.stat().st_mtime
        content, status = file.read_bytes(), 200
        headers = {"Last-Modified": email.utils.formatdate(changed, usegmt=True)}
        if server.tagged:
            headers["ETag"] = f'"{file.stat().st_mtime_ns}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if server.ranges:
            headers["Accept-Ranges"] = "bytes"
            if asked:
                start, stop = int(asked[1]), int(asked[2]) + 1
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
                content, status = content[start:stop], 206
        return self._send(status, content, headers, body=body)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], *, body: bool = True
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


class WebServer(http.server.ThreadingHTTPServer):
    """Serves a folder."""

    daemon_threads = True

    def __init__(
        self,
        folder: Path,
        *,
        ranges: bool = True,
        flaky: bool = False,
        tagged: bool = True,
        failures: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Files)
        self.folder, self.ranges, self.flaky, self.asked = folder, ranges, flaky, 0
        self.tagged, self.failures = tagged, failures

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"

    @contextlib.contextmanager
    def serving(self) -> Iterator["WebServer"]:
        """Answer until the end."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()
