"""What MLflow's own pages say of a run, a version and a registered model.

A job hands over what it knows as a `Page`; here it becomes Markdown: the description of the run and
of the version, and of a registered model that has none. What a person wrote there stays. Where the
server has the pages of this package, the descriptions lead to the version's.
"""

import dataclasses
import logging
import re
import shlex
import urllib.parse
from collections.abc import Iterable, Sequence

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.registry import server_app, uris
from mlflow_breadcrumbs.support import escaping, tables

LIMIT = 5_000
"""Characters of a description that MLflow takes."""
SPACE = "&emsp;"
"""Between the columns of a table."""
CUTS = (100, 20, 10, 5, 0)
"""How many rows and versions are shown, the first number with which all of it fits."""

_logger = logging.getLogger(__name__)
_NO_NAME = re.compile(r"[/:.%\"'\s]+")
"""What MLflow refuses in the name of a logged model."""


@dataclasses.dataclass(frozen=True)
class Page:
    """What there is to say; what others wrote is escaped by now, in all but URIs and commands."""

    said: str
    """What it is and what came out, in Markdown: MLflow's page of a run shows four lines of it, and
    all of it when it is asked for more."""
    titles: Sequence[str] = ()
    """Of the table's columns."""
    rows: Sequence[Sequence[str]] = ()
    """The table, its cells in Markdown."""
    how: str = ""
    """How it was made, in Markdown; below the table."""
    made_from: Sequence[tuple[str, str]] = ()
    """Versions by their role, as `base` or `source`, with their URI."""
    following: Sequence[str] = ()
    """The words of the command that comes next."""
    own: str = ""
    """The address of this package's page of the version, from MLflow's; empty without one."""

    def markdown(self) -> str:
        """All of it; of long tables and lists the beginning."""
        texts = (self._cut(count) for count in CUTS)
        return next(
            (text for text in texts if len(text) <= LIMIT), escaping.line(self.said)[:LIMIT]
        )

    def _cut(self, count: int) -> str:
        parts = [self.said]
        if self.rows and count:
            rows = [_spaced(row) for row in self.rows[:count]]
            parts.append(tables.to_markdown(_spaced(self.titles), rows))
        parts += [f"and {left} more rows"] if (left := len(self.rows) - count) > 0 else []
        parts += [self.how] if self.how else []
        versions = [f"- {role}: {version_link(uri)}" for role, uri in self.made_from[:count]]
        left = len(self.made_from) - count
        versions += [f"- and {left} more versions"] if left > 0 else []
        parts += ["\n".join(["Made from:", "", *versions])] if versions else []
        parts += [f"More on [the page of this version]({self.own})."] if self.own else []
        if self.following:
            command = escaping.line(shlex.join(self.following))
            parts.append(f"Next:\n\n```sh\n{command}\n```")
        return "\n\n".join(parts)


def _spaced(row: Sequence[str]) -> list[str]:
    """A row with a space after each cell but the last: MLflow's tables have none of their own."""
    return [*(f"{cell}{SPACE}" for cell in row[:-1]), row[-1]]


def tell(
    page: Page, *, run_id: str | None = None, uri: str | None = None, model: str | None = None
) -> None:
    """Write a page where there is no description yet.

    The job is done: that this fails is logged.

    Args:
        page: what there is to say.
        run_id: of the run.
        uri: of the version, `models:/NAME/VERSION`.
        model: what the registered model of that version is, in Markdown.
    """
    client = mlflow.MlflowClient()
    try:
        text = dataclasses.replace(page, own=_own_page(uri)).markdown()
        if run_id is not None and not client.get_run(run_id).data.tags.get(MLFLOW_RUN_NOTE):
            client.set_tag(run_id, MLFLOW_RUN_NOTE, text)
        if named := uris.registered(uri):
            name, number = named
            if not client.get_model_version(name, number).description:
                client.update_model_version(name, number, text)
            if model is not None and not client.get_registered_model(name).description:
                client.update_registered_model(name, model)
    except (MlflowException, requests.RequestException) as error:
        _logger.warning("MLflow's pages do not tell of %s: %s", uri or run_id, error)


def _own_page(uri: str | None) -> str:
    """The address of a version's page by this package, where the registry's server has one."""
    named = uris.registered(uri)
    try:
        if named is None or not server_app.said("/guard.json"):
            return ""
    except errors.RegistryError as error:
        _logger.info("%s gets no link to its page: %s", uri, error)
        return ""
    return f"breadcrumbs/models/{urllib.parse.quote(named[0], safe='')}/versions/{named[1]}"


def logged_name(name: str) -> str:
    """The name of a logged model that becomes a version of a registered model."""
    return _NO_NAME.sub("-", name)


def listed(names: Iterable[str]) -> str:
    """Foreign names in a sentence."""
    return ", ".join(escaping.markdown(name) for name in names)


def version_link(uri: str) -> str:
    """A version in Markdown, as MLflow's pages link to it."""
    named = uris.registered(uri)
    if named is None:
        return escaping.markdown(uri)
    name, number = named
    page = f"#/models/{urllib.parse.quote(name, safe='')}/versions/{number}"
    return f"[{escaping.markdown(uri)}]({page})"


def run_link(run_id: str) -> str:
    """A run in Markdown, as MLflow's pages link to it."""
    info = mlflow.MlflowClient().get_run(run_id).info
    title = escaping.markdown(str(info.run_name or run_id))
    return f"[run {title}](#/experiments/{info.experiment_id}/runs/{run_id})"
