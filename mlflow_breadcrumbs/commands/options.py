"""What the commands' options have in common: types, the recipe, devices."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from mlflow_breadcrumbs.engine import drafts, recipe
from mlflow_breadcrumbs.support import defaults
from mlflow_breadcrumbs.webhooks import notifying

PATTERNS = ("include", "exclude", "own")
"""The fields of a recipe that are patterns of tensors' names."""

BACKENDS = ("auto", "reference", "cpu", "gpu")
"""`choosing.NAMES`, without importing torch for a help text."""

SHARD_SIZE = "5GB"
"""Of the shards that libraries write by default."""

SIZE_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


class Size(click.ParamType[Any]):
    """A number of bytes with an optional unit, as `2GB` or `500MiB`."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Turn the text into bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", str(value).strip())
        if not match or match[2].upper() not in SIZE_UNITS or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a size; write 5GB, 500MB or a number of bytes", param, ctx)
        found = int(float(match[1]) * SIZE_UNITS[match[2].upper()])
        if found >= 1 << 53:
            self.fail(f"{value!r} is more than any disk holds; write 5GB", param, ctx)
        return found


def size(text: str) -> int:
    """The bytes that a size of ours means."""
    return Size().convert(text, None, None)


class Optional(click.ParamType[Any]):
    """A parameter that `mlflow run` passes as an empty string when it was not given."""

    def __init__(self, inner: click.ParamType[Any]) -> None:
        self.inner = inner
        self.name = inner.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take an empty string for an option that was not given: for its default, or `None`."""
        if value != "":
            return self.inner.convert(value, param, ctx)
        return param.get_default(ctx) if param is not None and ctx is not None else None

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Show the inner type in the help."""
        return self.inner.get_metavar(param, ctx)


class NumberOrAuto(click.ParamType[Any]):
    """A number, or `auto`; nothing where it is empty, as `mlflow run` gives it."""

    name = "float|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str | None:
        """Turn the text into a number, or leave it."""
        if value == drafts.AUTO:
            return drafts.AUTO
        found: float | None = NUMBER.convert(value, param, ctx)
        return found


TEXT = Optional(click.STRING)
NUMBER = Optional(click.FLOAT)
WHOLE = Optional(click.IntRange(min=1))
COUNT = Optional(click.IntRange(min=0))


def choice(*values: str) -> Optional:
    """One of `values`, or nothing."""
    return Optional(click.Choice(values))


def switch(name: str, *, help: str) -> Callable[..., Any]:
    """An option that is on when it is named; `mlflow run` gives it a value, or an empty one."""
    return click.option(
        name, type=Optional(click.BOOL), is_flag=False, flag_value="true", metavar="", help=help
    )


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that make a recipe; `make_recipe` reads them."""
    return with_options(
        command,
        click.option(
            "--method",
            type=choice(*recipe.PRESETS),
            help="Preset that fills in the recipe.  [default: breadcrumbs]",
        ),
        click.option("--alpha", type=NUMBER, help="Scale of the summed, masked changes."),
        *_field_options(),
    )


def draft_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that make a recipe or leave some of it open; `make_draft` reads them."""
    return with_options(
        command,
        click.option(
            "--method",
            type=choice(drafts.AUTO, *recipe.PRESETS),
            help="Preset that fills in the recipe; auto chooses one by what the weights show.  "
            f"[default: {defaults.METHOD}]",
        ),
        click.option(
            "--alpha",
            type=NumberOrAuto(),
            help="Scale of the summed, masked changes; auto finds one from their lengths.",
        ),
        switch(
            "--balance",
            help="Shorten sources that went much farther than most to the median length.",
        ),
        *_field_options(),
    )


def with_options(command: Callable[..., None], *options: Callable[..., Any]) -> Callable[..., None]:
    """The command with these options, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def _field_options() -> tuple[Callable[..., Any], ...]:
    """The fields of a recipe that commands take, but for method and alpha."""
    return (
        click.option("--recipe", "recipe_file", type=TEXT, help="Recipe file (YAML or JSON)."),
        click.option(
            "--density", type=NUMBER, help="Fraction of each unit that is kept, 0 < density ≤ 1."
        ),
        click.option(
            "--gamma",
            type=NUMBER,
            help="Fraction of each unit, the largest changes, that is dropped, 0…1.",
        ),
        click.option("--unit", type=choice(*recipe.UNITS), help="What is masked as one vector."),
        click.option(
            "--consensus",
            type=choice(*recipe.CONSENSUS),
            help="mass: drop contributions against the sign of the weighted sum.",
        ),
        click.option(
            "--combine",
            type=choice(*recipe.COMBINE),
            help="Sum, or mean over the contributions that remain; of matrices, task singular "
            "vectors (tsv), an isotropic sum (iso, iso_cts) or a mean weighted by covariances "
            "(covariance, ace).",
        ),
        click.option(
            "--calibrate",
            type=choice(*recipe.CALIBRATE),
            help="svc: give each singular direction of a merged matrix the sources' own length.",
        ),
        click.option(
            "--vectors",
            type=choice(*recipe.VECTORS),
            help="Tensors that are no matrices: the same as matrices, or the mean of the sources, "
            "after the masks or before them (whole_mean).  [default: same; mean where matrices are "
            "decomposed]",
        ),
        click.option(
            "--packed",
            type=choice(*recipe.PACKED),
            help="Matrices of queries, keys and values: decomposed whole, or split into the three.",
        ),
        click.option(
            "--depth",
            type=NUMBER,
            help="Added to alpha in the last block of the model, less in those before (LiNeS).",
        ),
        click.option(
            "--include",
            multiple=True,
            metavar="PATTERN",
            help="Tensors to merge, shell-style; repeatable.  [default: all floating-point]",
        ),
        click.option(
            "--exclude",
            multiple=True,
            metavar="PATTERN",
            help="Tensors to leave as the base's; repeatable.",
        ),
        click.option(
            "--own",
            multiple=True,
            metavar="PATTERN",
            help="Tensors that each source keeps for its task, as heads; repeatable.",
        ),
        click.option(
            "--dtype", type=choice(*recipe.DTYPES), help="Of the merged tensors.  [default: base]"
        ),
    )


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of how a merge is computed, whatever its recipe."""
    return with_options(
        command,
        click.option(
            "--backend",
            type=choice(*BACKENDS),
            default="auto",
            show_default=True,
            help="What computes the merge; every one gives the same bits (where matrices are "
            "decomposed: within a tolerance). auto: gpu with --device cuda, otherwise cpu.",
        ),
        click.option("--threads", type=WHOLE, help="Of the cpu backend.  [default: all]"),
        click.option(
            "--max-norm-ratio",
            type=NUMBER,
            default=defaults.MAX_NORM_RATIO,
            show_default=True,
            help="Refuse a source farther from the base than so many times its norm; inf takes "
            "any.",
        ),
    )


def make_recipe(
    sources: Sequence[tuple[str, float | None]], options: Mapping[str, Any]
) -> recipe.MergeRecipe:
    """The recipe of the command line's options, and the weights given with the sources."""
    return recipe.make(
        sources=len(sources),
        method=options["method"],
        file=options["recipe_file"],
        overrides=_overrides(sources, options),
    )


def make_draft(
    sources: Sequence[tuple[str, float | None]], options: Mapping[str, Any]
) -> drafts.RecipeDraft:
    """The same, where the options may leave something open."""
    draft = drafts.draft(
        sources=len(sources),
        method=options["method"],
        file=options["recipe_file"],
        overrides=_overrides(sources, options) | {drafts.BALANCE: options["balance"]},
        default=defaults.METHOD,
    )
    return dataclasses.replace(draft, patterns=named_patterns(options))


def named_patterns(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The patterns that the command line names; those of a recipe file are not among them."""
    return tuple(pattern for field in PATTERNS for pattern in options[field] if pattern)


def _overrides(
    sources: Sequence[tuple[str, float | None]], options: Mapping[str, Any]
) -> dict[str, Any]:
    overrides = {
        field: options[field]
        for field in (
            *("density", "gamma", "alpha", "unit", "consensus"),
            *("combine", "calibrate", "vectors", "packed", "depth", "dtype"),
        )
    }
    for field in PATTERNS:
        patterns = [pattern for pattern in options[field] if pattern]
        overrides[field] = patterns or None
    if any(weight is not None for _, weight in sources):
        overrides["weights"] = [1.0 if weight is None else weight for _, weight in sources]
    return overrides


def _use_ledger(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    """Take this ledger for as long as the command runs; `ledger` reads the variable itself."""
    if value and ctx.get_parameter_source("ledger_uri") is not ParameterSource.ENVIRONMENT:
        from mlflow_breadcrumbs import ledger

        ctx.with_resource(ledger.using(value))


LEDGER_URI = "BREADCRUMBS_LEDGER_URI"
"""`ledger.stores.VARIABLE`, without importing MLflow for a help text."""

ledger_option = click.option(
    "--ledger-uri",
    type=TEXT,
    expose_value=False,
    callback=_use_ledger,
    metavar="URI",
    envvar=LEDGER_URI,
    show_envvar=True,
    help="sqlite:///FILE or postgresql://…; without it, beside MLflow.",
)


def receiver_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that name a receiver of events, for `notifying.configured`."""
    options = [
        click.option(
            "--notify-url",
            type=TEXT,
            metavar="URL",
            envvar=notifying.URL,
            show_envvar=True,
            help="Send signed events of promotions there.",
        ),
        click.option(
            notifying.OPTION,
            type=TEXT,
            metavar="FILE",
            help="Holds the secret that signs them; without it, "
            f"${notifying.SECRET} is the secret.",
        ),
        click.option(
            "--notify-kinds",
            "kinds",
            type=TEXT,
            metavar="KIND,KIND,…",
            envvar=notifying.KINDS,
            show_envvar=True,
            help="Of events; without it, all about promotions.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def notify_option(command: Callable[..., None]) -> Callable[..., None]:
    """For commands that write events about promotions: deliver them when the command has ended.

    A receiver that is down or slow takes two seconds at most, and never makes a command fail.
    """

    @functools.wraps(command)
    def telling(
        *arguments: Any,
        notify_url: str | None,
        notify_secret_file: str | None,
        kinds: str | None,
        **named: Any,
    ) -> None:
        context = click.get_current_context()
        url = notify_url or os.environ.get(notifying.URL)
        receiver = notifying.configured(url, notify_secret_file, kinds) if url else None
        if receiver is not None:
            from mlflow_breadcrumbs import ledger

            context.meta[_NOTIFY] = (receiver, ledger.now())
        try:
            command(*arguments, **named)
        finally:
            notify(context)

    return receiver_options(telling)


def notify(context: click.Context) -> None:
    """Deliver briefly what the command has written so far, if it was given a receiver."""
    if found := context.meta.get(_NOTIFY):
        from mlflow_breadcrumbs.webhooks import outbox

        outbox.deliver_briefly(*found)


_NOTIFY = "mlflow_breadcrumbs.notify"


def seed_option(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option of what is drawn at random."""
    return click.option("--seed", type=COUNT, default=defaults.SEED, show_default=True, help=what)


cache_option = click.option(
    "--no-cache",
    is_flag=True,
    help="Measure every accuracy, also those in the cache ($BREADCRUMBS_CACHE).",
)
force_alias_option = click.option(
    "--force-alias",
    is_flag=True,
    help="Point the alias at a merge that existed already, even if it goes back by that.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
batch_size_option = click.option(
    "--batch-size",
    type=WHOLE,
    default=defaults.BATCH_SIZE,
    show_default=True,
    help="Images at a time.",
)
split_option = click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="test",
    show_default=True,
    help="Of the images.",
)
threads_option = click.option("--threads", type=WHOLE, help="Of the merges.  [default: all]")
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda",
    help="Where models run; auto takes CUDA if it is there.",
)
