"""The pages as HTML: Jinja templates, in which everything that comes from outside is escaped."""

import functools
import math
from typing import Any
from urllib import parse

import flask
import jinja2

from mlflow_breadcrumbs.registry import pages, uris
from mlflow_breadcrumbs.server import version_page, visibility
from mlflow_breadcrumbs.support import credentials, escaping, wording

DIGEST = len("sha256:") + 12
"""Characters of a digest that a page shows."""
MOST = 1e15
"""Numbers below it are written out; MLflow gives an infinite metric back as 1.8e308."""


def render(template: str, found: Any, **more: Any) -> str:
    """A page.

    Args:
        template: Its name, without `.html`.
        found: What the page says.
        more: Further names in the template.
    """
    return _environment().get_template(f"{template}.html").render(found=found, **more)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mlflow_breadcrumbs.server"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "share": _share,
        "short": _short,
        "uri": uris.short,
        "moment": wording.moment,
        "noted": _noted,
        "measured": _measured,
    }
    environment.globals |= {
        "HIDDEN": visibility.HIDDEN,
        "FORMATS": version_page.FORMATS,
        "counted": wording.counted,
        "mlflow": _mlflow,
        "place": _place,
        "url": _url,
    }
    return environment


def _shown(value: Any) -> Any:
    """What stands in a page: no password, and no character that nobody sees."""
    return escaping.line(credentials.hidden(value)) if type(value) is str else value


def _noted(text: str) -> str:
    """A description of MLflow's on as many lines as it has, yet to be escaped for HTML.

    The spaces that widen MLflow's tables are left out.
    """
    return escaping.lines(credentials.hidden(text)).replace(pages.SPACE, "")


def _measured(value: float, sign: str = "") -> str:
    """A metric with four digits; one of thousands, as bytes and images are, without a fraction."""
    if not value:
        return "0"
    return f"{value:{sign},.0f}" if 1000 <= abs(value) < MOST else f"{value:{sign}.4g}"


def _url(endpoint: str, **values: Any) -> str:
    """The address of one of our pages."""
    return flask.url_for(f"breadcrumbs.{endpoint}", **values)


def _place(uri: str) -> str | None:
    """The page of a version; `None` for what has none."""
    named = uris.registered(uri)
    return None if named is None else _url("version", name=named[0], number=int(named[1]))


def _mlflow(*parts: str) -> str:
    """A page of MLflow's own, by the parts of its address."""
    root = flask.url_for("serve")
    return f"{root}#/{'/'.join(parse.quote(part, safe='') for part in parts)}"


def _share(value: Any) -> str:
    """An accuracy, 0…1, with three digits; a dash where there is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.3f}"


def _short(digest: str | None) -> str:
    """A digest as far as people compare them."""
    return "–" if digest is None else f"{digest[:DIGEST]}…"
