"""How much a command says beside its results, and that others say no more.

Results go to stdout, whatever the volume. On stderr are, as a rule, progress and warnings;
`--quiet` leaves the errors, `--verbose` adds what this package and MLflow log. MLflow's own links
and bars are never shown: a link is no result, and may hold a password; a bar per file tells nothing
of the job.
"""

import contextlib
import enum
import logging
import os
import sys
from collections.abc import Iterator

import click

OURS = "mlflow_breadcrumbs"
THEIRS = ("mlflow", "alembic")
"""Loggers that MLflow gives a level when it is imported: that of `MLFLOW_LEVEL`, or INFO."""
MLFLOW_LEVEL = "MLFLOW_LOGGING_LEVEL"
"""Holds where no option says otherwise."""
SILENCED = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""What keeps MLflow's links and bars away."""
NO_BARS = "TQDM_DISABLE"
"""Keeps away the bars of other libraries, as of a download."""


class Volume(enum.Enum):
    """The levels from which on records of this package and of MLflow are shown."""

    QUIET = ("ERROR", "ERROR")
    USUAL = ("WARNING", "WARNING")
    VERBOSE = ("DEBUG", "INFO")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Keep the links and bars of others away, at the usual volume until `choose` is called."""
    names = (*SILENCED, MLFLOW_LEVEL, NO_BARS)
    variables = {name: os.environ.get(name) for name in names}
    levels = {name: logging.getLogger(name).level for name in (OURS, *THEIRS)}
    os.environ.update(SILENCED)
    if not sys.stderr.isatty():
        os.environ[NO_BARS] = "1"
    _set_levels(Volume.USUAL.value[0], variables[MLFLOW_LEVEL] or Volume.USUAL.value[1])
    try:
        yield
    finally:
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def choose(volume: Volume) -> None:
    """Take this volume for as long as the command runs."""
    _set_levels(*volume.value)
    if volume is Volume.QUIET:
        os.environ[NO_BARS] = "1"


def is_quiet() -> bool:
    """Whether only results and errors are to be shown."""
    return not logging.getLogger(OURS).isEnabledFor(logging.WARNING)


def options() -> list[click.Option]:
    """`--quiet` and `--verbose`, which every command has; the last one given holds."""
    return [
        _option("-q", "--quiet", Volume.QUIET, "Only results and errors."),
        _option("-v", "--verbose", Volume.VERBOSE, "Also what is logged, on stderr."),
    ]


def _option(short: str, name: str, volume: Volume, words: str) -> click.Option:
    def take(_: click.Context, __: click.Parameter, given: bool) -> None:
        if given:
            choose(volume)

    return click.Option([short, name], is_flag=True, expose_value=False, callback=take, help=words)


def _set_levels(ours: str, theirs: str) -> None:
    """The loggers' levels, and for a MLflow that is not imported yet, or in another process."""
    logging.getLogger(OURS).setLevel(ours)
    os.environ[MLFLOW_LEVEL] = theirs
    for name in THEIRS:
        logging.getLogger(name).setLevel(theirs.upper())
