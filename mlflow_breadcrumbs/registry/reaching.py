"""Whether somebody listens where MLflow's server or its database should be.

MLflow asks a server or a database that is gone again and again, for minutes. One connection tells
at once; it carries no request, so that a slow server is not taken for one that is gone.
"""

import socket
import urllib.parse

import requests

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import failures

PATIENCE = 8.0
"""Seconds that a connection may take to each of the addresses of a host."""
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_listening(uri: str) -> None:
    """Make sure that somebody listens where a store's URI says; of what is no host, nothing.

    Raises:
        UnreachableError: nobody does, or the host is unknown.
    """
    place = _place(uri)
    if place is None:
        return
    try:
        socket.create_connection(place, timeout=PATIENCE).close()
    except OSError as error:
        reason = "nothing in time" if isinstance(error, TimeoutError) else error.strerror
        what = "tracking server" if failures.is_http(uri) else "database"
        raise errors.UnreachableError(
            f"the {what} {uri} does not answer: {reason or error}. Check MLFLOW_TRACKING_URI, and "
            f"that it runs and can be reached from here, then {failures.AGAIN}"
        ) from error


def _place(uri: str) -> tuple[str, int] | None:
    """Host and port in a URI; `None` where there are none, or a proxy stands between."""
    try:
        parts = urllib.parse.urlsplit(uri)
        scheme, host, port = parts.scheme.partition("+")[0], parts.hostname, parts.port
    except ValueError:
        return None  # several hosts, or no URI at all: MLflow says so
    if host is None or scheme not in PORTS:
        return None
    if failures.is_http(uri) and requests.utils.get_environ_proxies(uri):
        return None
    return host, port if port is not None else PORTS[scheme]
