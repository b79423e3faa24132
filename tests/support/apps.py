"""MLflow's server with our pages: what `mlflow server --app-name` needs; asking for pages."""

import base64
import dataclasses
import json
import os
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs.server import pinning

ROOT = Path(__file__).parents[2]
HOSTILE = "\"'><img src=x onerror=alert(1)> &amp; {{ 7 * 7 }}"
"""What somebody types wherever one can type."""
NAMED = "\"'><img src=x onerror=alert(1)> #?%2e"
"""The same as the name of a registered model, which has no slash."""


def entry_points(folder: Path) -> dict[str, str]:
    """Variables by which a process finds the apps that pyproject.toml names, installed or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = folder / "breadcrumbs_apps-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: breadcrumbs-apps\nVersion: 1\n")
    lines = [f"{key} = {place}" for key, place in project["entry-points"]["mlflow.app"].items()]
    (about / "entry_points.txt").write_text("\n".join(["[mlflow.app]", *lines, ""]))
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


PINNED = {
    "merged@champion": "average_accuracy: 0\n",
    "merged@approved": "approvals: 2\n",
    "*@pinned": "average_accuracy: 1\n",
}
"""Patterns of aliases, each with its policy."""


def configuration(folder: Path, pinned: Mapping[str, str], more: str = "") -> dict[str, str]:
    """Write a server's configuration with its policies; the variable that names it."""
    lines = ["aliases:"]
    for number, (pattern, policy) in enumerate(pinned.items()):
        (folder / f"policy{number}.yaml").write_text(policy)
        lines.append(f'  "{pattern}": policy{number}.yaml')
    (folder / "server.yaml").write_text("\n".join([*lines, more]))
    return {pinning.VARIABLE: str(folder / "server.yaml")}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The text as JSON."""
        return json.loads(self.text)


def ask(
    uri: str, path: str = "/breadcrumbs/", *, as_json: bool = False, account: str | None = None,
    password: str = "", method: str = "GET", body: bytes | None = None, **headers: str,
) -> Answer:  # fmt: skip
    """Ask for a page; an error is an answer, too."""
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    headers["Accept"] = "application/json" if as_json else "text/html"
    if account is not None:
        token = base64.b64encode(f"{account}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    request = urllib.request.Request(uri + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return Answer(found.status, dict(found.headers), found.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, dict(error.headers), error.read().decode())


def version(name: str, number: int | str, more: str = "") -> str:
    """The address of a version's page."""
    return f"/breadcrumbs/models/{urllib.parse.quote(name, safe='')}/versions/{number}{more}"
