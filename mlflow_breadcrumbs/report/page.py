"""The report as one HTML file that needs no network, no script and no colour."""

import base64
import functools

import jinja2

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.figures import results
from mlflow_breadcrumbs.registry import projects, run_files
from mlflow_breadcrumbs.report import contents
from mlflow_breadcrumbs.support import credentials

FILE = "report.html"

NOTABLE = 0.9
"""The normalized accuracy below which a task is marked."""


def render(found: contents.MergeReport) -> bytes:
    """The page in UTF-8; what comes from outside is escaped, and has no password."""
    images = {"bars": results.bars(found.evaluation)} if found.evaluation else {}
    if found.heat_map is not None:
        images["heat_map"] = found.heat_map
    page = (
        _environment()
        .get_template(FILE)
        .render(
            found=found,
            images=images,
            notable=NOTABLE,
            has_weights=any(source.weight not in (None, 1) for source in found.inputs),
        )
    )
    return page.encode()


def log(found: contents.MergeReport, page: bytes) -> str:
    """Log the page to the run that made the version.

    Returns:
        The artifact's URI.

    Raises:
        RegistryError: the run is gone.
    """
    if found.run_id is None:
        raise errors.RegistryError(
            f"the run that made {found.uri} is gone, so the page can't be logged to it; "
            "write it with --output FILE.html --no-log"
        )
    run_files.log_bytes(found.run_id, page, FILE)
    said = f"The page is {FILE} of the version's run."
    projects.point(f"report {found.uri}", said, version=found.uri, run_id=found.run_id)
    return f"runs:/{found.run_id}/{FILE}"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mlflow_breadcrumbs.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: credentials.hidden(value) if type(value) is str else value,
    )
    environment.filters |= {"png": _data_uri, "size": _size, "percent": _percent, "short": _short}
    return environment


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _size(count: int) -> str:
    """Bytes for people, in powers of ten."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12] + "…"
