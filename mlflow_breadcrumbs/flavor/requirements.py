"""What a version needs to be installed elsewhere: pinned requirements, or this package's code."""

import importlib.metadata
import json
import shutil
import zipfile
from pathlib import Path

import yaml
from mlflow.utils import environment

from mlflow_breadcrumbs.support import extras

_REQUIREMENTS = (
    "filelock",
    "mlflow",
    "numpy",
    "open_clip_torch",
    "pandas",
    "pillow",
    "pydantic",
    "pyyaml",
    "requests",
    "rfc8785",
    "safetensors",
    "sqlalchemy",
    "torch",
    "torchvision",
)
"""What loading and predicting import; held by a test."""


def default_pip_requirements() -> list[str]:
    """Give what a version needs, pinned to what is installed here.

    This package is among it where pip can get it again: from an index, or from a git commit.
    """
    package, _ = own_package()
    pinned = [
        # A local version (2.9.0+cu130) names a build that an index doesn't have.
        f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
        for name in _REQUIREMENTS
    ]
    return pinned + ([package] if package else [])


def own_package() -> tuple[str | None, list[str]]:
    """Give the requirement that installs this package elsewhere, or else the code to ship.

    `direct_url.json` (PEP 610) tells where an installation came from; an index leaves none.
    """
    here = Path(__file__).resolve().parent.parent
    code = [str(here)]
    try:
        distribution = importlib.metadata.distribution(extras.DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None, code
    if Path(str(distribution.locate_file(here.name))).resolve() != here:
        return None, code  # the installed package is not the one that runs
    return requirement(distribution.version, distribution.read_text("direct_url.json"), code)


def requirement(
    version: str, direct_url: str | None, code: list[str]
) -> tuple[str | None, list[str]]:
    """Give the requirement and the code to ship, from the content of `direct_url.json`."""
    if direct_url is None:
        return f"{extras.DISTRIBUTION}=={version}", []
    origin = json.loads(direct_url)
    if "vcs_info" in origin:
        info = origin["vcs_info"]
        return f"{extras.DISTRIBUTION} @ {info['vcs']}+{origin['url']}@{info['commit_id']}", []
    return None, code


UNSHIPPED = ("__pycache__", "static")
"""Folders that stay here: what browsers get of the server app would be a third of the archive."""
CODE = "code/mlflow_breadcrumbs.zip"
"""Where a version has this package, as one file that Python imports from."""


def write_code(folder: Path) -> str:
    """Write this package as an archive, whose bytes depend on nothing else; its path in the folder.

    MLflow puts that path first where Python looks for modules, as it does with folders of code.
    """
    here, target = Path(__file__).resolve().parent.parent, folder / CODE
    target.parent.mkdir(parents=True)
    if not here.is_dir():  # this process runs from such an archive
        shutil.copyfile(here.parent, target)
        return CODE
    files = (path for path in here.rglob("*") if path.is_file())
    paths = (path for path in files if not set(UNSHIPPED) & set(path.relative_to(here).parts))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(paths):
            entry = zipfile.ZipInfo(path.relative_to(here.parent).as_posix())
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return CODE


def write_files(folder: Path, pip_requirements: list[str] | str | None) -> None:
    """Write conda.yaml, python_env.yaml and requirements.txt as MLflow's own flavors do."""
    conda, requirements, constraints = environment._process_pip_requirements(
        default_pip_requirements() if pip_requirements is None else None, pip_requirements, None
    )
    with (folder / environment._CONDA_ENV_FILE_NAME).open("w", encoding="utf-8") as file:
        yaml.safe_dump(conda, file, default_flow_style=False)
    if constraints:
        (folder / environment._CONSTRAINTS_FILE_NAME).write_text("\n".join(constraints))
    (folder / environment._REQUIREMENTS_FILE_NAME).write_text("\n".join(requirements))
    environment._PythonEnv.current().to_yaml(str(folder / environment._PYTHON_ENV_FILE_NAME))
