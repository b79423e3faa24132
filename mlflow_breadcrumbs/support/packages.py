"""Archives of public registries, fetched by the registries' own clients and read in place.

`pip`, `npm` and `apt-get` put archives into a folder; what is there already is not fetched again.
Nothing is installed. A client that the machine lacks, or a fetch that fails, is reported for each
package; it is no error.
"""

import dataclasses
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mlflow_breadcrumbs import errors

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Package:
    """A package of a public registry."""

    name: str
    version: str
    client: str
    """`pip`, `npm` or `apt-get`."""
    pattern: str
    """Of the archive's file name."""
    holds: str
    licence: str
    """As the package, or the data set in it, states it."""
    source: bool = False
    """Of a Python package: the source distribution, not the wheel."""

    def found(self, folder: Path) -> Path | None:
        """The archive in a folder, if it is there."""
        return next(iter(sorted(folder.glob(self.pattern))), None)

    def command(self, folder: Path) -> list[str]:
        """What fetches it into a folder."""
        if self.client == "npm":
            wanted = f"{self.name}@{self.version}"
            return ["npm", "pack", "--silent", wanted, "--pack-destination", str(folder)]
        if self.client == "apt-get":
            return ["apt-get", "download", self.name]  # the version is the distribution's
        kind = ["--no-binary", self.name] if self.source else []
        wanted = f"{self.name}=={self.version}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        return [*pip, *kind, "--dest", str(folder), wanted]


def fetch(packages: Sequence[Package], folder: Path) -> dict[str, str]:
    """Fetch what is not there yet.

    Returns:
        Why a package is not there, by its name; empty when all are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = {}
    for package in packages:
        if package.found(folder) is not None:
            continue
        if package.client != "pip" and shutil.which(package.client) is None:
            missing[package.name] = f"this machine has no {package.client}"
            continue
        _logger.info("fetching %s with %s", package.name, package.client)
        done = subprocess.run(
            package.command(folder.resolve()), cwd=folder, capture_output=True, text=True
        )
        if done.returncode or package.found(folder) is None:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            missing[package.name] = f"{package.client} failed: {last}"
    return missing


def archive(package: Package, folder: Path) -> Path:
    """The archive of a package.

    Raises:
        TaskError: It was not fetched.
    """
    found = package.found(folder)
    if found is None:
        raise errors.TaskError(
            f"'{folder}' has no archive of {package.name} ({package.pattern}); fetch it with "
            f"{package.client}."
        )
    return found
