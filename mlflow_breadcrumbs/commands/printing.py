"""How commands print their results: to stdout, for people or as JSON."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from mlflow_breadcrumbs.commands import volume
from mlflow_breadcrumbs.registry import records
from mlflow_breadcrumbs.support import credentials, escaping, wording

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text as it is fit for a terminal: passwords masked, control characters visible.

    Args:
        text: One line or several.
        err: To stderr.
        nl: End with a line break.
    """
    click.echo(shown(text), err=err, nl=nl)


def remark(text: str) -> None:
    """Print what is no result and no error to stderr, unless only these are asked for."""
    if not volume.is_quiet():
        echo(text, err=True)


def shown(text: str) -> str:
    """A text as `echo` prints it."""
    return escaping.lines(credentials.hidden(text))


def cell(text: str) -> str:
    """A text for a table's cell or a tree's branch: on one line."""
    return escaping.line(credentials.hidden(text))


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(escaping.json(json.dumps(credentials.cleaned(value), indent=2, ensure_ascii=False)))


def print_json_line(value: Any) -> None:
    """Print a value as JSON on one line, for results that come one by one."""
    click.echo(escaping.json(json.dumps(credentials.cleaned(value), ensure_ascii=False)))


def details(values: Mapping[str, Any]) -> str:
    """An event's details on one line; the longer ones are in its JSON."""
    shown = {key: value for key, value in values.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{key}={_short(value)}" for key, value in shown.items())


def short_digests(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table's row with its digests cut to what tells them apart; JSON has all of each."""
    return {
        key: f"{value[:19]}…" if isinstance(value, str) and _DIGEST.fullmatch(value) else value
        for key, value in row.items()
    }


def _short(value: Any) -> str:
    text = wording.said(value)
    return text if len(text) <= 40 else f"{text[:20]}…"


def with_intervals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of accuracies with their 95% interval in one cell, `interval`."""
    return [
        {**row, "interval": f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}"}
        if row.get("accuracy_low") is not None
        else dict(row)
        for row in rows
    ]


def print_notes(notes: Iterable[str]) -> None:
    """Print what a user should know beside the result, a line each, unless only that is wanted."""
    for note in () if volume.is_quiet() else notes:
        echo(f"Note: {note}.")


def print_version(version: records.RegisteredVersion, as_json: bool) -> None:
    """Print a version that was just registered."""
    if as_json:
        print_json(version.to_dict())
    else:
        echo(f"{version.uri} registered\n{version.weights_digest}")
