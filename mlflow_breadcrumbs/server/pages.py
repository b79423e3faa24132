"""The pages: which address shows what, as HTML or as JSON, and what headers go with it.

Every page only reads, and no form in it changes anything: the dialog of a recall sends a request in
JSON (`deciding`), which no page of another site can send. What a browser may load is from here
alone, and nothing in a page is run or styled inline.
"""

import functools
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import flask

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.server import (
    alias_page,
    comparison_page,
    lineage_page,
    model_page,
    openapi,
    rendering,
    start,
    version_page,
    visibility,
)
from mlflow_breadcrumbs.support import credentials

PREFIX = "/breadcrumbs"
"""Of every address here, after the server's own prefix."""
MOST = 50
"""Versions that are listed, where nobody says how many."""
LARGEST = 5000
"""That may be asked for."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Accept",
}
STATUS = {errors.AbsentError: 404, errors.UnreachableError: 503, errors.LedgerError: 400}
"""Of what goes wrong; the registry's own troubles are 503, what somebody typed is 400."""

_logger = logging.getLogger(__name__)


def blueprint(sight: Callable[[], visibility.Sight]) -> flask.Blueprint:
    """The pages, for MLflow's Flask app.

    Args:
        sight: Says, inside a request, what the one who asks may see.
    """
    made = flask.Blueprint(
        "breadcrumbs", __name__, static_folder="static", static_url_path="/static"
    )
    version = "/models/<name>/versions/<int:number>"

    def page(rule: str, template: str, gather: Callable[..., Any]) -> None:
        def answer(**arguments: Any) -> flask.Response:
            return _answer(template, functools.partial(gather, sight(), **arguments))

        made.add_url_rule(rule, template, answer, methods=["GET"])

    page("/", "start", _start)
    page("/models/<name>", "model", _model)
    page("/models/<name>/aliases", "aliases", _aliases)
    page(version, "version", _version)
    page(f"{version}/lineage", "lineage", _lineage)
    page("/compare", "compare", _compare)

    @made.get(f"{version}/exports/<form>")
    def export(name: str, number: int, form: str) -> flask.Response:
        return _export(name, number, form, sight())

    @made.get("/openapi.json")
    def described() -> flask.Response:
        return as_json(openapi.document(flask.url_for("breadcrumbs.start").rstrip("/")))

    made.after_request(guarded)
    return made


def _start(sight: visibility.Sight) -> start.Overview:
    return start.overview(sight, most=_most())


def _model(sight: visibility.Sight, name: str) -> model_page.ModelPage:
    return model_page.gather(name, sight, most=_most())


def _aliases(sight: visibility.Sight, name: str) -> alias_page.AliasPage:
    return alias_page.gather(name, flask.request.args.get("at") or None, sight)


def _version(sight: visibility.Sight, name: str, number: int) -> version_page.VersionPage:
    return version_page.gather(name, str(number), sight)


def _lineage(sight: visibility.Sight, name: str, number: int) -> lineage_page.LineagePage:
    return lineage_page.gather(name, str(number), sight)


def _compare(sight: visibility.Sight) -> comparison_page.ComparisonPage:
    given = flask.request.args
    return comparison_page.gather(given.get("one", ""), given.get("other", ""), sight)


def _export(name: str, number: int, form: str, sight: visibility.Sight) -> flask.Response:
    """A file to keep; what goes wrong is said as on a page."""

    def download() -> flask.Response:
        text = version_page.exported(name, str(number), form, sight)
        response = flask.Response(text, mimetype="application/json")
        file = f"version-{number}.{form}.json"
        response.headers["Content-Disposition"] = f'attachment; filename="{file}"'
        return response

    return _tried(download)


def _answer(template: str, gather: Callable[[], Any]) -> flask.Response:
    """A page, in the form that was asked for."""

    def show() -> flask.Response:
        found = gather()
        if _wants_json():
            return as_json(found.to_dict())
        given = flask.request.args
        pair = (given.get("one", ""), given.get("other", ""))
        page = rendering.render(template, found, most=_most(), given=pair)
        return flask.Response(page, mimetype="text/html")

    return _tried(show)


def _tried(act: Callable[[], flask.Response]) -> flask.Response:
    """What was asked for, or why not."""
    try:
        return act()
    except errors.BreadcrumbsError as error:
        status = _status(error)
        # Who may read a page need not know where the server keeps what it has.
        said = credentials.hidden(str(error))
        if status == 503:
            _logger.warning("%s: %s", flask.request.path, said)
            said = "The registry can't be read at the moment; the server's log says why."
    if _wants_json():
        response = as_json({"error": said})
    else:
        page = rendering.render("error", {"status": status, "text": said}, most=MOST)
        response = flask.Response(page, mimetype="text/html")
    response.status_code = status
    return response


def _status(error: errors.BreadcrumbsError) -> int:
    """The status of an error; of one that only what was typed can cause, 400."""
    for kind, status in STATUS.items():
        if isinstance(error, kind):
            return status
    typed = isinstance(error, errors.RegistryError) and "names no version" in str(error)
    return 400 if typed else 503


def _most() -> int:
    """How many lines were asked for."""
    given = flask.request.args.get("most", "")
    if not given:
        return MOST
    if not (given.isascii() and given.isdigit()) or not 1 <= int(given[:9]) <= LARGEST:
        raise errors.LedgerError(f"most is {given!r}; write a number from 1 to {LARGEST}")
    return int(given)


def _wants_json() -> bool:
    kinds = ["text/html", "application/json"]
    return flask.request.accept_mimetypes.best_match(kinds, "text/html") == "application/json"


def as_json(content: Any) -> flask.Response:
    """An answer in JSON: no passwords, and no number that is none."""
    text = json.dumps(_plain(content), ensure_ascii=False, allow_nan=False)
    return flask.Response(text, mimetype="application/json")


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return credentials.hidden(value) if isinstance(value, str) else value


def guarded(response: flask.Response) -> flask.Response:
    """Every answer of ours with `HEADERS`; a file of the package may be kept for an hour."""
    for header, text in HEADERS.items():
        response.headers[header] = text
    if flask.request.endpoint == "breadcrumbs.static":
        response.headers["Cache-Control"] = "max-age=3600"
    return response
