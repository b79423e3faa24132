"""How commands are told which versions: one form of address, with a weight or in a list of them."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from mlflow_breadcrumbs.commands import options
from mlflow_breadcrumbs.registry import uris

Weighted = tuple[str, float | None]
"""A version's URI or a file, and its weight where one was given."""


class VersionType(click.ParamType[Any]):
    """A version, as `uris.full` takes it; nothing where it is empty, as `mlflow run` gives it."""

    name = "URI"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | None:
        """The URI with `models:/`."""
        return uris.full(str(value)) if value != "" else None


class SourceType(click.ParamType[Any]):
    """`URI=WEIGHT`: a source with an optional weight.

    Args:
        of: What a source is: a version, or a file.
    """

    def __init__(self, of: click.ParamType[Any] | None = None) -> None:
        self._of = of or VersionType()
        self.name = f"{'URI' if of is None else 'FILE'}[=WEIGHT]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Weighted:
        """Split off the weight."""
        if isinstance(value, tuple):
            return value
        uri, equals, number = str(value).rpartition("=")
        if not equals or "/" in number or "@" in number:  # an '=' in the model's name
            return self._of.convert(str(value), param, ctx), None
        try:
            weight = float(number)
        except ValueError:
            self.fail(f"{number!r} in {value!r} is not a weight; write URI=0.5", param, ctx)
        return self._of.convert(uri, param, ctx), weight


class ListType(click.ParamType[Any]):
    """A comma-separated list; none of it where it is empty.

    Args:
        of: What is in it.
    """

    def __init__(self, of: click.ParamType[Any]) -> None:
        self.of = of
        self.name = f"{of.name},…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        """Take it apart."""
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        return [self.of.convert(part, param, ctx) for part in parts if part]


VERSION = VersionType()
VERSIONS = ListType(VERSION)
WEIGHTED = ListType(SourceType())


def sources_options(command: Callable[..., None], *, required: bool = True) -> Callable[..., None]:
    """The base and the sources, in both of the ways to name several; `all_sources` joins them."""
    return options.with_options(
        command,
        click.option(
            "--base",
            required=required,
            type=VERSION,
            metavar="URI",
            help="Version the sources come from.",
        ),
        click.option(
            "--source",
            "sources",
            multiple=True,
            type=SourceType(),
            help="Fine-tuned version; repeatable.",
        ),
        click.option(
            "--sources",
            "source_list",
            type=WEIGHTED,
            metavar="URI,URI,…",
            help="The same as a comma-separated list.",
        ),
    )


def files_options(command: Callable[..., None], *, required: bool = True) -> Callable[..., None]:
    """The base and the sources as files."""
    return options.with_options(
        command,
        click.option(
            "--base", required=required, type=click.Path(), help="Checkpoint of the base."
        ),
        click.option(
            "--source",
            "sources",
            required=required,
            multiple=True,
            type=SourceType(click.STRING),
            help="Repeatable.",
        ),
    )


def all_sources(sources: Sequence[Weighted], listed: Sequence[Weighted] | None) -> list[Weighted]:
    """The sources of `--source` and of `--sources`, with their weights."""
    return [*sources, *(listed or ())]
