"""Folders in object stores, by address: `s3://`, `gs://`, `abfss://`, `http://`; through fsspec."""

import contextlib
import logging
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import bundles
from mlflow_breadcrumbs.engine.stored_bytes import FileState
from mlflow_breadcrumbs.support import credentials, extras, json_documents

EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "s3": "s3",
        "s3a": "s3",
        "gs": "gs",
        "gcs": "gs",
        "abfs": "abfss",
        "abfss": "abfss",
        "http": "http",
        "https": "http",
    }
)
"""By scheme, which extra of this package brings the library that speaks it."""
SPELLINGS: Mapping[str, str] = MappingProxyType({"s3a": "s3", "gcs": "gs", "abfss": "abfs"})
"""Schemes that mean the same as another one."""
ATTEMPTS = 5
"""At a request at most; the first pause is half a second, each after it twice as long."""
CHANGES = (
    *("ETag", "etag", "generation", "md5Hash", "Content-MD5", "Digest"),
    *("LastModified", "last_modified", "Last-Modified", "mtime"),
)
"""Where the file systems say which version of a file there is, best first."""

_logger = logging.getLogger(__name__)
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_Found = TypeVar("_Found")


class Folder(Protocol):
    """A folder of files elsewhere; any thread may call it."""

    address: str
    """Without a slash at its end."""
    ranged: bool
    """Whether a part of a file costs no more than that part."""

    def names(self) -> list[str]:
        """The files in it, sorted."""
        ...

    def state(self, name: str) -> FileState:
        """The size of a file, and which version it is; raises `CheckpointError` for none."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; `None` where there is none of that name."""
        ...

    def related(self, path: str) -> "Folder | None":
        """Another folder, by its path from this one; `None` where that leads nowhere."""
        ...

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` to `stop`."""
        ...

    def stream(self, name: str) -> Iterator[bytes]:
        """The bytes of a whole file, from the start, chunk by chunk."""
        ...


class Target(NamedTuple):
    """What an address means: a folder, and a file in it where one is named."""

    folder: Folder
    file: str | None


def is_address(location: object) -> TypeGuard[str]:
    """Whether a location is the address of something in a store, and no path."""
    return isinstance(location, str) and _ADDRESS.match(location) is not None


def normal(address: str) -> str:
    """The one spelling of an address, by which two are held against each other."""
    scheme, mark, rest = address.partition("://")
    lower = scheme.lower()
    return f"{SPELLINGS.get(lower, lower)}{mark}{rest}"


def of(location: str) -> Target:
    """The folder and the file that an address means; nothing is asked yet.

    Raises:
        CheckpointError: nothing can be read from such an address.
        ExtraError: the library for it is not installed.
    """
    if bundle := bundles.parse(location):
        return Target(ObjectFolder(bundle.folder), bundle.file)
    if location.endswith((".safetensors", ".json")):
        folder, file = posixpath.split(location)
        return Target(ObjectFolder(folder), file)
    return Target(ObjectFolder(location.rstrip("/")), None)


class ObjectFolder:
    """A folder that fsspec can open.

    Credentials are found as the store's own tools find them (`AWS_…`, `GOOGLE_…`, `AZURE_…`);
    MLFLOW_S3_ENDPOINT_URL counts as it does for MLflow.

    Args:
        address: as `s3://bucket/models/clip`.

    Raises:
        CheckpointError: the scheme is not known.
        ExtraError: the library for it is not installed.
    """

    ranged = True

    def __init__(self, address: str) -> None:
        found = _ADDRESS.match(address)
        scheme = found[1].lower() if found else ""
        self.address = address if found is None else scheme + address[len(scheme) :]
        if scheme not in EXTRAS:
            raise errors.CheckpointError(
                f"{address} is no address that can be read: its scheme {scheme!r} is none of "
                f"{', '.join(EXTRAS)}. Download it and give the path"
            )
        with extras.needed(EXTRAS[scheme], f"{scheme}://"):
            import fsspec

            kind = fsspec.get_filesystem_class(SPELLINGS.get(scheme, scheme))
        options = {"use_listings_cache": False, **_options(EXTRAS[scheme], address, kind)}
        try:
            self._system = kind(**options)
        except Exception as error:  # every library has errors of its own
            raise _refused(address, error) from error

    def names(self, folder: str = "") -> list[str]:
        """See `Folder.names`; of a folder in this one if it is named, which may be missing."""
        place = self._place(folder).rstrip("/")
        if folder and not self._asked(lambda: self._system.exists(place), place):
            return []
        found = self._asked(lambda: self._system.ls(place, detail=True), place)
        names = (posixpath.basename(entry["name"].rstrip("/")) for entry in found)
        return sorted(name for name in names if name)

    def state(self, name: str) -> FileState:
        """See `Folder.state`."""
        place = self._place(name)
        found: Mapping[str, Any] = self._asked(lambda: self._system.info(place), place)
        if found.get("size") is None:
            raise errors.CheckpointError(
                f"{place} does not say how large it is, so it can't be read in parts; download it "
                "and give the path"
            )
        changed = next((str(found[key]) for key in CHANGES if found.get(key)), "")
        return FileState(name, int(found["size"]), changed)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """See `Folder.read`."""
        place = self._place(name)
        if start == stop:
            return b""
        found: bytes = self._asked(
            lambda: self._system.cat_file(place, start=start, end=stop), place
        )
        if len(found) != stop - start:
            raise errors.CheckpointError(
                f"{place} gave {len(found):,} bytes where {stop - start:,} were asked for: it was "
                "written to, or its server knows no ranges. Download it and give the path"
            )
        return found

    def stream(self, name: str) -> Iterator[bytes]:
        """See `Folder.stream`."""
        size, step = self.state(name).nbytes, 1 << 23
        for start in range(0, size, step):
            yield self.read(name, start, min(start + step, size))

    def put(self, file: Path, name: str) -> None:
        """Write a file of this machine into the folder, in parts if it is large."""
        place = self._place(name)
        self._asked(lambda: self._system.put_file(str(file), place), place)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole."""
        place = self._place(name)
        self._asked(lambda: self._system.pipe_file(place, content), place)

    def move(self, name: str, target: str) -> None:
        """Give a file of the folder another name; in between there are both.

        The store copies it, or if it can't, as some that only speak like one, it passes through
        here.
        """
        place, other = self._place(name), self._place(target)
        try:
            self._system.cp_file(place, other)
        except Exception as error:  # noqa: BLE001  every library has errors of its own
            _logger.info("%s can't be copied where it is: %r", place, error)
            with tempfile.NamedTemporaryFile() as file:
                self._asked(lambda: self._system.get_file(place, file.name), place)
                self.put(Path(file.name), target)
        self._asked(lambda: self._system.rm_file(place), place)

    def related(self, path: str) -> "ObjectFolder | None":
        """See `Folder.related`."""
        scheme, mark, place = self.address.partition("://")
        found = posixpath.normpath(posixpath.join(place, path))
        return None if found.startswith(("..", "/")) else ObjectFolder(f"{scheme}{mark}{found}")

    def size(self, name: str) -> int | None:
        """Bytes of a file; `None` where there is none of that name."""
        place = self._place(name)

        def ask() -> int | None:
            try:
                found = self._system.info(place)
            except FileNotFoundError:
                return None
            return int(found["size"]) if found["type"] == "file" else None

        return self._asked(ask, place)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        place = self._place(name)

        def ask() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(place)

        self._asked(ask, place)

    def _place(self, name: str) -> str:
        return f"{self.address}/{name}"

    def _asked(self, ask: Callable[[], _Found], place: str) -> _Found:
        """The store's answer, asked for again where a network may have failed."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return ask()
            except Exception as raised:
                error = _true(raised)
                if attempt == ATTEMPTS or not _may_pass(error):
                    raise _refused(place, error) from raised
                time.sleep(2.0 ** (attempt - 2))
        raise AssertionError


def small(folder: Folder, name: str) -> bytes:
    """The whole of a small file.

    Raises:
        CheckpointError: it is missing, or not small.
    """
    size = folder.state(name).nbytes
    if size > json_documents.BYTES:
        raise errors.CheckpointError(
            f"{folder.address}/{name} has {size:,} bytes, {json_documents.BYTES:,} is the most"
        )
    return folder.read(name, 0, size)


def _options(extra: str, address: str, kind: Any) -> dict[str, Any]:
    """What a file system is told beside what it finds in the environment."""
    if extra == "abfss":  # the account may be in the address, and nowhere else
        return dict(kind._get_kwargs_from_urls(address))
    if extra != "s3":
        return {}
    options: dict[str, Any] = {"config_kwargs": {"max_pool_connections": 64}}
    if endpoint := os.environ.get("MLFLOW_S3_ENDPOINT_URL"):
        options["endpoint_url"] = endpoint
    if os.environ.get("MLFLOW_S3_IGNORE_TLS", "").lower() in ("1", "true"):
        options["client_kwargs"] = {"verify": False}
    return options


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed: nobody answered, or asked for patience."""
    if isinstance(error, FileNotFoundError | PermissionError | NotImplementedError):
        return False
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    return not isinstance(error, ValueError | TypeError)


def _true(error: Exception) -> Exception:
    """What happened; of a web server that can't be asked fsspec says that there is no file."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    status = getattr(cause, "status", None)
    unanswered = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    refused = isinstance(status, int) and status not in (404, 410)
    return cause if unanswered or refused else error


def _refused(place: str, error: Exception) -> errors.CheckpointError:
    if isinstance(error, FileNotFoundError):
        return errors.CheckpointError(f"there is no {place}; check the address")
    said = credentials.cleaned(str(error)) or type(error).__name__
    return errors.CheckpointError(
        f"cannot reach {place}: {said}. Check the address, the credentials and the network"
    )
