"""Pictures of results, as PNG; they differ in hatching, lightness and print, not in colour alone.

matplotlib is imported when a picture is drawn: most commands draw none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_breadcrumbs.figures import canvas
from mlflow_breadcrumbs.registry import uris
from mlflow_breadcrumbs.support import scales

SERIES = (
    ("zero_shot_accuracy", "base (zero-shot)", "#d9d9d9", ""),
    ("finetuned_accuracy", "source (fine-tuned)", "#f0b35e", "//"),
    ("accuracy", "merged", "#2f6f9f", ""),
)
"""The bars of a task: key, label, colour, hatching."""

ANNOTATED = 20
"""Rows up to which a matrix carries its numbers."""

BESIDE = 9
"""Sources up to which two matrices stand side by side; more would be too wide to read."""

CORRECT, WRONG, SIGNED = "Blues", "Oranges", "PuOr"
"""Colours that are told apart without red and green; all grow darker from 0 on."""

NAMED = 50
"""Classes up to which a confusion matrix carries their names."""


def bars(rows: Sequence[Mapping[str, Any]], *, split: str = "test") -> bytes:
    """One group of bars per task: base, fine-tuned source, merged, with 95% intervals.

    A dashed line over each group is the base's accuracy, a dotted one what guessing gives, so that
    a merged model that is below either is seen at once.

    Args:
        rows: of `scorecard.Scorecard.rows`.
        split: of the images, for the axis.
    """
    rows = [_between_0_and_1(row) for row in rows]
    tasks = [str(row["task"]) for row in rows]
    figure = canvas.blank(max(6.0, 1.6 * len(tasks) + 2), 4)
    axes = figure.add_subplot()
    width = 0.27
    for number, (key, label, colour, hatch) in enumerate(SERIES):
        places = [place + (number - 1) * width for place in range(len(tasks))]
        values = [row[key] for row in rows]
        below = [row[key] - row.get(f"{key}_low", row[key]) for row in rows]
        above = [row.get(f"{key}_high", row[key]) - row[key] for row in rows]
        axes.bar(places, values, width, label=label, color=colour, hatch=hatch, edgecolor="#333333")
        whiskers = {"fmt": "none", "ecolor": "#111111", "elinewidth": 1, "capsize": 2.5}
        axes.errorbar(places, values, [below, above], **whiskers)
        for place, value, over in zip(places, values, above, strict=True):
            spot = (place, value + over + 0.015)
            axes.annotate(f"{value:.2f}", spot, fontsize=8, ha="center", va="bottom")
    _line(axes, [row["zero_shot_accuracy"] for row in rows], "--", "")
    _line(axes, [row.get("chance_accuracy") for row in rows], ":", "guessing")
    axes.set_xticks(range(len(tasks)), tasks)
    highest = max([1.0, *(row[key] for row in rows for key, *_ in SERIES)])
    axes.set_ylim(0, highest + 0.12)
    if highest == 1:
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    normalized = sum(row["normalized_accuracy"] for row in rows) / len(rows)
    if any("metric" in row for row in rows):
        axes.set_ylabel(f"value ({split} data)")
        title = f"normalized {normalized:.3f}"
    else:
        axes.set_ylabel(f"accuracy ({split} images)")
        average = sum(row["accuracy"] for row in rows) / len(rows)
        title = f"average accuracy {average:.3f}, normalized {normalized:.3f}"
    axes.set_title(f"{title}; whiskers: 95% intervals", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return canvas.png(figure)


def _between_0_and_1(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose values have room in one picture with accuracies: as fractions of the source's."""
    found, scale = scales.shown(row), scales.of_row(row)
    if (scale.greater_is_better, scale.low, scale.high) == (True, 0.0, 1.0):
        return found
    source = found["finetuned_accuracy"]
    found = {name: value for name, value in found.items() if not name.endswith(("_low", "_high"))}
    for key, *_ in SERIES:
        found[key] = scale.kept(found[key], source) or 0.0
    found["task"] += ",\nof the source's"
    return found


def _line(axes: Any, values: Sequence[float | None], style: str, label: str) -> None:
    """Draw a line across each task's group of bars, where there is a value."""
    places = [place for place, value in enumerate(values) if value is not None]
    if places:
        heights = [values[place] for place in places]
        left, right = ([place + side * 0.45 for place in places] for side in (-1, 1))
        axes.hlines(heights, left, right, "#111111", style, linewidth=1.1, label=label or None)


def heat_map(
    sources: Sequence[str],
    cosines: npt.NDArray[np.float64],
    moved: Mapping[str, npt.NDArray[np.float64]],
    *,
    still: int = 0,
) -> bytes:
    """Cosines between the sources, where there are several, and how far each moved every group.

    The cosines' scale has 0 in its middle: what agrees and what conflicts differ in colour.

    Args:
        sources: Their URIs.
        cosines: Of the task vectors, -1…1, [sources, sources].
        moved: ‖τ‖ / ‖base‖ by layer group, [sources]; at least one.
        still: Layer groups that no source changes: they are not in `moved`, the title counts them.
    """
    names = [_short(uri) for uri in sources]
    count = len(names)
    cell = 0.62 if count <= BESIDE else 0.45 if count <= ANNOTATED else 0.3
    side = max(2.4, cell * count)
    margin = 0.09 * max(map(len, [*names, *moved]), default=0)  # inches for the rows' names
    height = max(side + 0.7 * margin + 1, 0.2 * len(moved) + 2.4)
    lines, panels = (1, 2) if 1 < count <= BESIDE else (2, 1) if count > 1 else (1, 1)
    figure = canvas.blank(panels * (side + margin + 1.2), lines * height)
    left, right = figure.subplots(lines, panels, squeeze=False).flat[[0, -1]]
    if count > 1:
        cosines = cosines.copy()
        np.fill_diagonal(cosines, np.nan)  # always 1: it would only flatten the others
        most = max(0.1, float(np.nanmax(np.abs(cosines))))
        drawn = _matrix(left, cosines, names, names, low=-most, high=most, colours=SIGNED)
        figure.colorbar(drawn, ax=left, shrink=0.6).ax.tick_params(labelsize=8)
        left.set_title("cosine of the task vectors", fontsize=10)
    ratios = np.array(list(moved.values())).reshape(len(moved), count)
    drawn = _matrix(right, ratios, list(moved), names)
    figure.colorbar(drawn, ax=right, shrink=0.6).ax.tick_params(labelsize=8)
    unchanged = f"; {still} unchanged left out" if still else ""
    right.set_title(f"‖τ‖ / ‖base‖ per layer group{unchanged}", fontsize=10)
    return canvas.png(figure)


def confusion(classes: Sequence[str], counts: npt.NDArray[np.int64], title: str) -> bytes:
    """A confusion matrix: each row is a true class, with the images that were taken for each class.

    What is right, on the diagonal, is blue, what is wrong is orange: each is shaded as a share of
    its class, on a scale of its own, since a few errors among many images are what one looks for.

    Args:
        classes: Their names.
        counts: Images by true and predicted class, [classes, classes].
        title: Above the picture.
    """
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    size = len(classes)
    names = [canvas.clipped(name) for name in classes] if size <= NAMED else []
    edge = min(14.0, max(3.2, (0.5 if size <= ANNOTATED else 0.26) * size))
    figure = canvas.blank(edge + 3.4, edge + 1.4)
    axes = figure.add_subplot()
    diagonal = np.eye(size, dtype=bool)
    texts = counts.astype(str)
    errors = ~diagonal & (counts > 0)
    for cells, colours, label in ((diagonal, CORRECT, "right"), (errors, WRONG, "wrong")):
        part = np.where(cells, shares, np.nan)
        most = 1.0 if label == "right" else max(0.02, float(np.nanmax(part, initial=0.0)))
        drawn = _matrix(axes, part, names, names, high=most, colours=colours, texts=texts)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.6, label=f"{label}, share of the class")
        bar.ax.tick_params(labelsize=8)
    axes.set_ylim(size, 0)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted" if names else f"predicted ({size} classes, by number)")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)
    return canvas.png(figure)


def _matrix(
    axes: Any,
    values: npt.NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float = 0.0,
    high: float | None = None,
    colours: str = CORRECT,
    texts: npt.NDArray[np.str_] | None = None,
) -> Any:
    """Draw a matrix in shades, darker for more; small ones with numbers; what is NaN stays white.

    Args:
        axes: Where.
        values: [rows, columns].
        rows: Their names; none where there are too many.
        columns: Theirs.
        low: The value at the scale's lower end; below 0 where it has two sides.
        high: That at its upper end; the largest value without.
        colours: matplotlib's name of them.
        texts: What the cells say in place of their values, [rows, columns].
    """
    top = high if high is not None else max(float(np.nanmax(values, initial=low)), low + 1e-9)
    drawn = axes.pcolormesh(
        values, cmap=colours, vmin=low, vmax=top, edgecolors="#e5e5e5", linewidth=0.5
    )
    axes.invert_yaxis()
    if rows:
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=8)
        axes.set_xticks(
            np.arange(len(columns)) + 0.5, columns, fontsize=8, rotation=40, ha="right",
            rotation_mode="anchor",
        )  # fmt: skip
    axes.tick_params(length=0 if rows else 3)
    for (row, column), value in np.ndenumerate(values if values.shape[1] <= ANNOTATED else []):
        if np.isnan(value) and texts is not None:
            continue
        said = _signless(value) if texts is None else str(texts[row, column])
        dark = abs(value) / top > 0.6
        axes.annotate(
            said,
            (column + 0.5, row + 0.5),
            ha="center",
            va="center",
            fontsize=8.5 if values.shape[1] <= BESIDE else 7.5,
            color="white" if dark else "#222222",
        )
    return drawn


def _signless(value: float) -> str:
    """Two decimals, a dash for what there is none of; 0 has no sign."""
    return "–" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")


def _short(uri: str) -> str:
    return canvas.clipped(uris.short(uri))
