"""Where a version's weights can be read without downloading them: an object store, or a server.

A server that hands artifacts on (`mlflow-artifacts:`) may fetch a whole file for every part that it
is asked for, so its files are streamed, each as a whole.
"""

import posixpath
from collections.abc import Iterator, Mapping

import requests
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils import rest_utils
from mlflow.utils.credentials import get_default_host_creds

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import bundles, stored_bytes
from mlflow_breadcrumbs.engine.remote import stores
from mlflow_breadcrumbs.registry import failures

PROXIED = ("mlflow-artifacts:", "http:", "https:")
"""What the locations begin with whose files a tracking server hands on."""
CHUNK = 1 << 20
"""Bytes of a stream that are handed on at once."""
ATTEMPTS = 5
"""At a stream at most, each from where the one before it broke off."""


def place(location: str, path: str, sizes: Mapping[str, int]) -> stores.Target | None:
    """Where a checkpoint of a version is read; `None` if it has to be downloaded for that.

    Args:
        location: of the version's artifacts.
        path: of the checkpoint, a file or an index, in it; or of several, see `bundles`.
        sizes: the bytes of every file, by its path.
    """
    bundle = bundles.parse(path)
    folder, name = (bundle.folder, bundle.file) if bundle else posixpath.split(path)
    if location.startswith(PROXIED):
        return stores.Target(ServedFolder(location, folder, sizes), name)
    if location.partition("://")[0].lower() not in stores.EXTRAS:
        return None
    try:
        found = stores.ObjectFolder(posixpath.join(location.rstrip("/"), folder).rstrip("/"))
    except errors.ExtraError:
        return None
    return stores.Target(found, name)


class ServedFolder:
    """A folder of a version whose files come through a tracking server.

    Args:
        location: of the version's artifacts.
        folder: in it; empty for the version's own.
        sizes: the bytes of every file, by its path in the version.
    """

    ranged = False

    def __init__(self, location: str, folder: str, sizes: Mapping[str, int]) -> None:
        self._origin = location, folder, sizes
        self.address = posixpath.join(location.rstrip("/"), folder).rstrip("/")
        below = f"{folder}/" if folder else ""
        self._sizes = {
            path.removeprefix(below): size for path, size in sizes.items() if path.startswith(below)
        }
        # The address that the server answers at.
        self._url: str = get_artifact_repository(self.address).artifact_uri

    def names(self, folder: str = "") -> list[str]:
        """See `stores.Folder.names`."""
        return sorted(name for name in self._sizes if "/" not in name)

    def state(self, name: str) -> stored_bytes.FileState:
        """See `stores.Folder.state`; a server does not say which version of a file it has."""
        if name not in self._sizes:
            raise errors.CheckpointError(f"there is no {self.address}/{name}; restore it")
        return stored_bytes.FileState(name, self._sizes[name], "")

    def related(self, path: str) -> "ServedFolder | None":
        """See `stores.Folder.related`; the version's files alone are there."""
        location, folder, sizes = self._origin
        found = posixpath.normpath(posixpath.join(folder, path))
        return None if found.startswith("..") else ServedFolder(location, found, sizes)

    def size(self, name: str) -> int | None:
        """See `stores.Folder.size`."""
        return self._sizes.get(name)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """See `stores.Folder.read`: a stream from `start` on, which is broken off."""
        found = bytearray()
        for chunk in self._from(name, start):
            found += chunk
            if len(found) >= stop - start:
                break
        return bytes(found[: stop - start])

    def stream(self, name: str) -> Iterator[bytes]:
        """See `stores.Folder.stream`; a stream that breaks off is taken up again."""
        done, attempt = 0, 1
        while done < self._sizes[name]:
            try:
                for chunk in self._from(name, done):
                    done += len(chunk)
                    yield chunk
                return
            except errors.RegistryError:
                attempt += 1
                if attempt > ATTEMPTS:
                    raise

    def _from(self, name: str, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start` on, in one request."""
        what = f"cannot read {self.address}/{name}"
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with rest_utils.http_request(
                get_default_host_creds(self._url),
                f"/{name}",
                "GET",
                stream=True,
                extra_headers=headers,
            ) as answer:
                rest_utils.augmented_raise_for_status(answer)
                skipped = start if answer.status_code != requests.codes.partial_content else 0
                for chunk in answer.iter_content(CHUNK):
                    if skipped < len(chunk):
                        yield chunk[skipped:]
                    skipped = max(0, skipped - len(chunk))
        except (MlflowException, requests.RequestException, OSError) as error:
            raise failures.explain(error, what, "restore it or register the model again") from error
