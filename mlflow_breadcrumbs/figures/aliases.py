"""The moves of aliases as a picture: which version each pointed at, over time.

It reads without colour: each kind of move has a marker of its own, and what a direct change put
there is drawn with a broken line. Where only an interval is known of a change, it is hatched.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.figures import canvas
from mlflow_breadcrumbs.ledger import alias_history

MARKERS = {
    "promote": ("^", "#1f4e79", "promoted"),
    "rollback": ("v", "#b3541e", "rolled back"),
    alias_history.DIRECT: ("X", "#c0392b", "changed directly in MLflow"),
    alias_history.FIRST_SEEN: ("s", "#777777", "first seen"),
    alias_history.ORDER: ("d", "#777777", "two moves at once"),
}
"""Marker, colour and words of the causes; all others are moves of ours without a decision."""
OURS = ("o", "#1f4e79", "set by this package")
MOST_TICKS = 16
"""Versions that are named on an axis."""
UNSET = "not set"


def write(name: str, found: Sequence[ledger.Change], path: str) -> None:
    """Draw the moves into a PNG file.

    Raises:
        LedgerError: There are none to draw.
        OutputError: The file can't be written.
    """
    if not found:
        raise errors.LedgerError(f"the ledger has no moves of aliases of {name} to draw")
    content = draw(name, found, ledger.now())
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise errors.OutputError(f"can't write the picture to {path}: {error.strerror}") from error


def draw(name: str, found: Sequence[ledger.Change], end: str) -> bytes:
    """A panel per alias, with the versions upwards and the time to the right; PNG.

    Args:
        name: The registered model.
        found: The moves; at least one.
        end: UTC: how far the last state is drawn.
    """
    names = list(dict.fromkeys(move.alias for move in found))
    each = [[move for move in found if move.alias == alias] for alias in names]
    levels = [_levels(own) for own in each]
    heights = [0.9 + 0.32 * min(len(own), MOST_TICKS) for own in levels]
    figure, panels = _figure(heights)
    for axes, alias, own, level in zip(panels, names, each, levels, strict=True):
        _panel(axes, own, level, _time(end))
        axes.set_title(f"@{alias}", loc="left", fontsize=11)
    panels[-1].set_xlabel("time (UTC)")
    figure.suptitle(f"aliases of {name}", fontsize=12)
    _legend(figure, found)
    return canvas.png(figure)


def _levels(own: Sequence[ledger.Change]) -> list[str | None]:
    """The versions that occur, lowest first; that an alias was not set is below them."""
    seen = {move.after for move in own} | {move.before for move in own[1:]}
    seen |= {own[0].before} - {None}  # that it was not set before the first is no level of its own
    numbers = sorted((each for each in seen if each is not None), key=int)
    return [*([None] if None in seen else []), *numbers]


def _panel(
    axes: Any, own: Sequence[ledger.Change], levels: Sequence[str | None], end: datetime.datetime
) -> None:
    """One alias: lines for what stood, markers for what moved."""
    ordered = sorted(own, key=lambda move: (move.latest, move.event))
    ends = [*(_time(_sure_until(move)) for move in ordered[1:]), end]
    for move, until in zip(ordered, ends, strict=True):
        start, level = _time(move.latest), levels.index(move.after)
        marker, colour, _ = _style(move)
        broken = move.is_direct
        axes.plot(
            [start, max(start, until)],
            [level, level],
            linestyle=(0, (2, 1.5)) if broken else "-",
            color="#999999" if move.after is None else colour if broken else OURS[1],
            linewidth=1.2 if move.after is None else 2.6,
            solid_capstyle="butt",
            zorder=2,
        )
        if move.before in levels and move.cause != alias_history.FIRST_SEEN:
            below = levels.index(move.before)
            axes.plot([start, start], [below, level], color="#bbbbbb", linewidth=1, zorder=1)
            _interval(axes, move, below, level)
        axes.plot(
            [start],
            [level],
            marker=marker,
            markersize=9,
            color=colour,
            markeredgecolor="white",
            linestyle="",
            zorder=3,
        )
    step = -(-len(levels) // MOST_TICKS)
    axes.set_yticks(
        range(0, len(levels), step),
        [UNSET if each is None else f"version {each}" for each in levels[::step]],
        fontsize=9,
    )
    room = max(0.6, 0.03 * len(levels))
    axes.set_ylim(-room, len(levels) - 1 + room)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _time_axis(axes)


def _sure_until(move: ledger.Change) -> str:
    """How long it is certain that a move had not happened yet."""
    return move.earliest if move.is_direct and move.earliest else move.latest


def _interval(axes: Any, move: ledger.Change, below: int, level: int) -> None:
    """Hatch the time in which a direct change happened, where more isn't known."""
    if not move.is_direct or move.earliest is None or move.earliest == move.latest:
        return
    axes.fill_between(
        [_time(move.earliest), _time(move.latest)],
        min(below, level) - 0.12,
        max(below, level) + 0.12,
        facecolor="none",
        edgecolor="#c0392b",
        hatch="////",
        linewidth=0.6,
        alpha=0.55,
        zorder=1,
    )


def _legend(figure: Any, found: Sequence[ledger.Change]) -> None:
    """The markers that occur, and the hatching if it does."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [
        Line2D([], [], marker=marker, color=colour, linestyle="", markersize=8, label=words)
        for marker, colour, words in dict.fromkeys(_style(move) for move in found)
    ]
    if any(move.is_direct and move.earliest not in (None, move.latest) for move in found):
        label = "a direct change happened in this time"
        entries.append(Patch(facecolor="none", edgecolor="#c0392b", hatch="////", label=label))
    figure.legend(
        handles=entries,
        loc="outside lower center",
        ncols=min(len(entries), 4),
        frameon=False,
        fontsize=9,
    )


def _style(move: ledger.Change) -> tuple[str, str, str]:
    return MARKERS.get(move.cause, OURS)


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def _time_axis(axes: Any) -> None:
    from matplotlib import dates

    locator = dates.AutoDateLocator(tz=datetime.UTC, minticks=4, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=datetime.UTC))


def _figure(heights: Sequence[float]) -> tuple[Any, list[Any]]:
    """A figure with a panel under the other, which share the time."""
    figure = canvas.blank(10, sum(heights) + 1.2)
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=list(heights)
    )
    return figure, [row[0] for row in panels]
