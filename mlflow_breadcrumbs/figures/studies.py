"""Pictures of many measurements: sweeps, task counts, and what each source and layer does.

Every picture reads without colour: numbers in the cells, markers and dashes on the lines, hatching
on the bars.
"""

import datetime
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs.figures import canvas

METRIC = "average_normalized_accuracy"
LABEL = "average normalized accuracy"

Row = Mapping[str, Any]

MOST_CELLS = 16
"""Values on a side of a heat map; beyond, the points are scattered."""

STYLES = tuple(
    {"marker": marker, "linestyle": line, "color": colour}
    for marker, line, colour in (
        ("o", "-", "#1f4e79"),
        ("s", "--", "#b3541e"),
        ("^", "-.", "#3b7d3c"),
        ("D", ":", "#7a3e8f"),
        ("v", "-", "#555555"),
        ("P", "--", "#a67c00"),
        ("X", "-.", "#008080"),
    )
)
"""Of the lines, in order; over again when there are more."""


def heat_map(rows: Sequence[Row], best: Row) -> bytes | None:
    """Density against alpha; each cell has the best of all other fields; a frame has the chosen.

    Random draws with many different values are scattered instead.

    Args:
        rows: with `density`, `alpha`, `images` and the metric.
        best: the fields of the chosen recipe.

    Returns:
        PNG, or nothing where either field has one value.
    """
    xs, ys = (sorted({row[field] for row in rows}) for field in ("alpha", "density"))
    if len(xs) < 2 or len(ys) < 2:
        return None
    if max(len(xs), len(ys)) > MOST_CELLS:
        return _scatter(rows, best)
    cells = {
        (x, y): max(values)
        for x in xs
        for y in ys
        if (values := [r[METRIC] for r in rows if (r["alpha"], r["density"]) == (x, y)])
    }
    low, high = min(cells.values()), max(cells.values())
    figure, axes = _figure(max(5.0, 0.85 * len(xs) + 2.5), max(3.2, 0.55 * len(ys) + 1.8))
    grid = [[cells.get((x, y), float("nan")) for x in xs] for y in ys]
    image = axes.imshow(
        grid, cmap="Greys", vmin=low - 0.15 * (high - low), vmax=high, origin="lower", aspect="auto"
    )
    for (x, y), value in cells.items():
        dark = high > low and (value - low) / (high - low) > 0.5
        axes.text(
            xs.index(x),
            ys.index(y),
            f"{value:.3f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else "black",
        )
    _frame(axes, xs.index(best["alpha"]), ys.index(best["density"]))
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axes.set_xlabel("alpha")
    axes.set_ylabel("density")
    axes.set_title(
        f"{_measured_on(rows)}; each cell is the best over the other fields", fontsize=10
    )
    figure.colorbar(image, ax=axes, label=LABEL)
    return canvas.png(figure)


def lines(rows: Sequence[Row], best: Row) -> bytes | None:
    """The metric against alpha (or density, where alpha has one value), a line per gamma.

    Each point is the best of all other fields. Random draws are grouped by gamma into at most five
    kinds of points, without lines, which would suggest that nothing else differs.

    Returns:
        PNG, or nothing where there is nothing to draw a line along.
    """
    along = next((f for f in ("alpha", "density") if len({r[f] for r in rows}) > 1), None)
    if along is None:
        return None
    figure, axes = _figure(7, 4.2)
    drawn = len({(row["density"], row["gamma"]) for row in rows}) == len(rows)
    for number, (label, members) in enumerate(_by_gamma(rows)):
        xs = sorted({row[along] for row in members})
        ys = [max(row[METRIC] for row in members if row[along] == x) for x in xs]
        style = STYLES[number % len(STYLES)] | ({"linestyle": ""} if drawn else {})
        axes.plot(xs, ys, label=label, markersize=6, **style)
    axes.axvline(best[along], color="#999999", linewidth=1, zorder=0)
    axes.annotate(
        f"chosen {best[along]:g}",
        (best[along], 0),
        xycoords=("data", "axes fraction"),
        xytext=(4, 6),
        textcoords="offset points",
        fontsize=9,
        color="#444444",
    )
    axes.set_xlabel(along)
    axes.set_ylabel(LABEL)
    what = "one point per recipe" if drawn else "each point is the best over the other fields"
    axes.set_title(f"{_measured_on(rows)}; {what}", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.3)
    return canvas.png(figure)


def robustness(rows: Sequence[Row], best: float) -> bytes | None:
    """How far the metric falls where one hyperparameter is up to 50 % off.

    Args:
        rows: with `field`, `factor` and the metric.
        best: the metric of the chosen recipe.

    Returns:
        PNG, or nothing without rows.
    """
    fields = list(dict.fromkeys(row["field"] for row in rows))
    if not fields:
        return None
    figure, axes = _figure(7, 4.2)
    for number, field in enumerate(fields):
        own = [(row["factor"], row[METRIC]) for row in rows if row["field"] == field]
        points = sorted({*own, (1.0, best)})
        axes.plot(
            [100 * (factor - 1) for factor, _ in points],
            [value for _, value in points],
            label=f"{field} (falls by {max(0.0, best - min(v for _, v in points)):.3f} at most)",
            markersize=6,
            **STYLES[number % len(STYLES)],
        )
    axes.axhline(best, color="#999999", linewidth=1, zorder=0)
    axes.set_xlabel("change of one hyperparameter, %")
    axes.set_ylabel(LABEL)
    axes.set_title("robustness of the chosen recipe, validation images", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.3)
    return canvas.png(figure)


def over_time(
    rows: Sequence[Row],
    floors: Mapping[str, float | None],
    promotions: Sequence[datetime.datetime] = (),
) -> bytes | None:
    """The accuracy of the same weights over time, a panel per task, with 95% intervals.

    Args:
        rows: with `task`, `time`, `accuracy`, `accuracy_low`, `accuracy_high`; the oldest first.
        floors: by task, what a policy asks for; drawn as a dashed line where there is one.
        promotions: when the version got the alias; drawn as dotted, upright lines.

    Returns:
        PNG, or nothing without a task.
    """
    names = list(floors)
    if not names:
        return None
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, _ = _figure(max(5.0, 3.6 * columns), 2.4 * lines + 0.4, columns, rows=lines)
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    limits = [floor for floor in floors.values() if floor is not None]
    lowest = min([row["accuracy_low"] for row in rows] + limits)
    for axes, task in zip(figure.axes, names, strict=False):
        own = [row for row in rows if row["task"] == task]
        values = [row["accuracy"] for row in own]
        below = [row["accuracy"] - row["accuracy_low"] for row in own]
        above = [row["accuracy_high"] - row["accuracy"] for row in own]
        times = [row["time"] for row in own]
        axes.errorbar(times, values, [below, above], capsize=2, markersize=4, **STYLES[0])
        if (floor := floors[task]) is not None:
            axes.axhline(floor, color="#b3541e", linestyle="--", linewidth=1.2, label=FLOOR)
        for moment in promotions:
            axes.axvline(moment, color="#333333", linestyle=":", linewidth=1.4, label=PROMOTED)
        _mark_times(axes, [*times, *promotions])
        axes.set_ylim(lowest - 0.03, 1.03)
        asked = "" if floor is None else f", limit {floor:.3g}"
        title = f"{canvas.clipped(task)}: {values[-1]:.3f}{asked}"
        axes.set_title(
            title, fontsize=9.5, color="#b3541e" if _is_below(values, floor) else "black"
        )
        axes.grid(alpha=0.3)
    figure.supylabel("accuracy; bars: 95% intervals", fontsize=9)
    _legend(figure)
    return canvas.png(figure)


FLOOR, PROMOTED = "the policy's limit", "the version got the alias"


def _is_below(values: Sequence[float], floor: float | None) -> bool:
    return floor is not None and values[-1] < floor


def _mark_times(axes: Any, times: Sequence[datetime.datetime]) -> None:
    """Name the first and the last time, and the middle, where that is an hour or more apart."""
    first, last = min(times), max(times)
    day = f"{first:%Y-%m-%d}" if first.date() == last.date() else None
    marked = [first, last] if last > first else [first]
    if last - first > datetime.timedelta(hours=1):
        marked.insert(1, first + (last - first) / 2)
    axes.set_xticks(
        marked,
        [f"{each:%H:%M}" if day else f"{each:%Y-%m-%d\n%H:%M}" for each in marked],
        fontsize=8,
    )
    for label, side in zip(axes.get_xticklabels(), _sides(len(marked)), strict=True):
        label.set_horizontalalignment(side)
    if day:
        axes.set_xlabel(day, fontsize=8)


def _sides(count: int) -> tuple[str, ...]:
    """How labels stand at an axis: those at its ends within it, so that panels don't meet."""
    return {1: ("center",), 2: ("left", "right"), 3: ("left", "center", "right")}[count]


def _legend(figure: Any) -> None:
    """One legend below all panels, of what stands in any."""
    known: dict[str, Any] = {}
    for axes in figure.axes:
        known |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if known:
        figure.legend(
            known.values(), known.keys(), loc="outside lower center", ncols=2, frameon=False
        )


def _scatter(rows: Sequence[Row], best: Row) -> bytes:
    figure, axes = _figure(6.5, 4.6)
    values = [row[METRIC] for row in rows]
    drawn = axes.scatter(
        [row["alpha"] for row in rows],
        [row["density"] for row in rows],
        c=values,
        cmap="Greys",
        edgecolors="#333333",
        s=90,
    )
    axes.scatter(
        [best["alpha"]],
        [best["density"]],
        s=320,
        facecolors="none",
        edgecolors="#c0392b",
        linewidths=2,
    )
    axes.annotate(
        f"chosen {max(values):.3f}",
        (best["alpha"], best["density"]),
        xytext=(10, 10),
        textcoords="offset points",
        fontsize=9,
    )
    axes.set_xlabel("alpha")
    axes.set_ylabel("density")
    axes.set_title(f"one point per recipe; {_measured_on(rows)}", fontsize=10)
    figure.colorbar(drawn, ax=axes, label=LABEL)
    return canvas.png(figure)


def _measured_on(rows: Sequence[Row]) -> str:
    """What the numbers were measured on; successive halving gives poor recipes fewer images."""
    if all(row["images"] is None for row in rows):
        return "validation images"
    return "validation images, fewer for recipes that fell out early"


def _by_gamma(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    gammas = sorted({row["gamma"] for row in rows})
    if len(gammas) <= len(STYLES):
        return [(f"gamma {g:g}", [r for r in rows if r["gamma"] == g]) for g in gammas]
    edges = [gammas[len(gammas) * part // 5] for part in range(5)] + [float("inf")]
    return [
        (f"gamma from {low:g}", [row for row in rows if low <= row["gamma"] < high])
        for low, high in itertools.pairwise(edges)
    ]


def _frame(axes: Any, x: int, y: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor="#c0392b", linewidth=3)
    )


def _figure(
    width: float, height: float, columns: int = 1, *, rows: int = 1, share: bool = True
) -> tuple[Any, Any]:
    figure = canvas.blank(width, height)
    return figure, figure.subplots(rows, columns, sharey=share and columns > 1)


def scaling(rows: Sequence[Row]) -> bytes:
    """The metric against the number of merged sources: a panel per protocol, a line per method.

    The bands reach from the lowest to the highest subset of that many sources.
    """
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    titles = {"tuned": "alpha chosen at every T", "carried": "alpha chosen once, at the first T"}
    figure, panels = _figure(5.2 * len(protocols), 4.4, len(protocols))
    for axes, protocol in zip(panels if len(protocols) > 1 else [panels], protocols, strict=True):
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            own = [r for r in rows if (r["protocol"], r["method"]) == (protocol, method)]
            sizes = [row["sources"] for row in own]
            style = STYLES[number % len(STYLES)]
            axes.plot(sizes, [row[METRIC] for row in own], label=method, markersize=6, **style)
            axes.fill_between(
                sizes,
                [row["lowest"] for row in own],
                [row["highest"] for row in own],
                color=style["color"],
                alpha=0.1,
                linewidth=0,
            )
        axes.set_xticks(sorted({row["sources"] for row in rows}))
        axes.set_xlabel("merged sources, T")
        axes.set_title(titles.get(protocol, protocol), fontsize=10)
        axes.grid(alpha=0.3)
        if protocol == protocols[0]:
            axes.set_ylabel(f"{LABEL}, test images")
            axes.legend(frameon=False, fontsize=9)
    return canvas.png(figure)


def blame(rows: Sequence[Row], sentence: str, most: int = 12) -> bytes:
    """What a task gains without each source, and with the base's weights in each layer group.

    Args:
        rows: with `kind`, `left_out`, `gain`, `images` and `clear`.
        sentence: goes above.
        most: bars of a kind; the largest gains are shown.
    """
    kinds = {
        kind: [row for row in rows if row["kind"] == kind][:most] for kind in ("source", "layers")
    }
    titles = {"source": "left out: one source", "layers": "left at the base: one layer group"}
    gains = [0.0, *(row["gain"] for own in kinds.values() for row in own)]
    room = 0.3 * (max(gains) - min(gains)) or 0.01
    height = 1.7 + 0.34 * max(len(own) for own in kinds.values())
    figure, panels = _figure(12, max(3.4, height), 2, share=False)
    for axes, (kind, own) in zip(panels, kinds.items(), strict=True):
        values = [row["gain"] for row in own]
        drawn = axes.barh(
            range(len(own)),
            values,
            color=["#b3541e" if row["clear"] else "#d9d9d9" for row in own],
            hatch=["//" if row["clear"] else "" for row in own],
            edgecolor="#333333",
        )
        axes.bar_label(drawn, [f"{value:+.3f}" for value in values], padding=3, fontsize=9)
        axes.set_yticks(
            range(len(own)),
            [f"{row['left_out']}  ({row['images']})" for row in own],
            fontsize=9,
        )
        axes.invert_yaxis()
        axes.axvline(0, color="#333333", linewidth=1)
        axes.set_xlim(min(gains) - room, max(gains) + room)
        axes.set_title(f"{titles[kind]} (images)", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "change of the task's accuracy; hatched: above the 95 % interval of the merged version",
        fontsize=10,
    )
    figure.suptitle("\n".join(textwrap.wrap(sentence, 130)), fontsize=10, x=0.01, ha="left")
    return canvas.png(figure)
