"""What `merge --from` asks for: a merge of another one, with sources added or taken out."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from mlflow_breadcrumbs.commands import addresses, options

if TYPE_CHECKING:
    from mlflow_breadcrumbs.pipeline import changing

NEED_FROM = ("add", "remove", "weights")
"""Options that change a merge, so that they need one."""


def change_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that make a merge of another merge; `read` reads them."""
    return options.with_options(
        command,
        click.option(
            "--from",
            "origin",
            type=addresses.VERSION,
            metavar="URI",
            help="Merged version: its base, its sources and its recipe, in place of giving these.",
        ),
        click.option(
            "--add",
            multiple=True,
            type=addresses.WEIGHTED,
            metavar="URI[=WEIGHT]",
            help="With --from: merge this source too, after the others; repeatable, or a "
            "comma-separated list.",
        ),
        click.option(
            "--remove",
            multiple=True,
            type=addresses.VERSIONS,
            metavar="URI",
            help="With --from: leave this source out, even one that is gone; repeatable, or a "
            "comma-separated list.",
        ),
        click.option(
            "--weights",
            "--new-weights",
            "weights",
            type=options.TEXT,
            metavar="W,W,…",
            help="With --from: of all sources that result, in their order.  [default: as before, "
            "1 for an added one]",
        ),
        options.switch(
            "--keep-parts",
            help="Keep what each source contributes, so that --from reads no source but the added.",
        ),
    )


def read(origin: str | None, given: Mapping[str, Any]) -> "changing.MergeChange | None":
    """The change that the options ask for; `None` where they ask for none.

    Args:
        origin: of `--from`.
        given: what the other options gave, by parameter.

    Raises:
        click.UsageError: options that contradict each other, or that need others.
        BreadcrumbsError: see `changing.plan`.
    """
    if origin is None:
        _check_without(given)
        return None
    if named := decided(given):
        raise click.UsageError(
            f"--from takes base, sources and recipe from {origin}; leave out {', '.join(named)}, "
            "or give --base and --source in place of --from"
        )
    from mlflow_breadcrumbs.pipeline import changing

    return changing.plan(
        origin,
        list(itertools.chain(*given["add"])),
        list(itertools.chain(*given["remove"])),
        _weights(given["weights"]),
    )


def target(name: str | None, change: "changing.MergeChange | None") -> str:
    """Where the result goes: the name that was given, else that of the version that is changed.

    Raises:
        click.UsageError: there is neither.
    """
    found = name or (change.name if change is not None else None)
    if found is None:
        raise click.UsageError("Missing option '--registered-model'.")
    return found


RECIPE = (
    *("method", "recipe_file", "density", "gamma", "alpha", "unit", "consensus", "combine"),
    *("calibrate", "vectors", "packed", "depth", "include", "exclude", "own"),
    *("dtype", "balance", "choose"),
)


def decided(given: Mapping[str, Any]) -> list[str]:
    """The options, as they are typed, that decide base, sources or recipe and have a value."""
    return sorted(
        _option(name) for name, value in given.items() if _is_given(value) and _decides(name)
    )


def _decides(name: str) -> bool:
    """Whether an option decides what a version's lineage decides with `--from`."""
    return name in ("base", "sources", "source_list", "origin", *RECIPE)


def _is_given(value: Any) -> bool:
    """Whether an option has a value: not an empty one, as `mlflow run` passes; zero is one."""
    return any(value) if isinstance(value, tuple | list) else value is not None


def _option(name: str) -> str:
    special = {
        "origin": "--from",
        "sources": "--source",
        "source_list": "--sources",
        "recipe_file": "--recipe",
    }
    return special.get(name, f"--{name}")


def _check_without(given: Mapping[str, Any]) -> None:
    """Hold the options of a merge that is not of another one against each other."""
    for name in NEED_FROM:
        if _is_given(given[name]):
            raise click.UsageError(f"--{name} needs --from, the merged version that it changes")
    if not given["base"]:
        raise click.UsageError("Missing option '--base' (or '--from', to change a merged version).")


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(weight) for weight in found):
        raise click.UsageError(f"--weights is {text!r}; write numbers, as 1,0.5,1")
    return found
