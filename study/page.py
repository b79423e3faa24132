"""docs/study.md: its tables and pictures are written anew from the measurements.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; everything else on the page is
written by hand and left alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs.figures import studies
from study import measuring, tables
from study.summary import Summary

DRAWN = (
    *("weight_average", "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_signed"),
    *("tsv_m", "iso_c"),
)
"""The methods in the picture against the number of tasks; with all of them it can't be read."""


def write(
    folder: Path, page: Path, seeds: Sequence[int], smaller: Path | None = None
) -> dict[str, Any]:
    """Write the pictures and the page's tables.

    Args:
        folder: Of a setting's results; gets the pictures.
        page: Is made where there is none.
        seeds: The seeds that were asked for.
        smaller: Results of the same tasks with a smaller model, if there are any.

    Returns:
        A few numbers for people who wait.
    """
    if not (folder / measuring.FILE).exists():
        return {"measurements": 0}
    found = Summary(folder, seeds)
    if not found.chosen.largest:
        return {"measurements": len(found.results)}
    made = {name: make(found) for name, make in tables.MAKERS.items()}
    if smaller is not None and (smaller / measuring.FILE).exists():
        made["sizes"] = tables.sizes(found, Summary(smaller, seeds))
    text = page.read_text(encoding="utf-8") if page.exists() else _blank(made)
    page.write_text(fill(text, made), encoding="utf-8")
    pictures = _pictures(found)
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    return {
        "measurements": len(found.results),
        "seeds": list(found.seeds),
        "pictures": list(pictures),
        "correlations": found.correlations(),
    }


def fill(text: str, made: Mapping[str, tables.Table]) -> str:
    """Put tables into a page, between their marks; a page without a mark has no such table."""
    for name, table in made.items():
        start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(start)
        if found:
            text = f"{before}{found}{tables.markdown(table)}{end}{rest.partition(end)[2]}"
    return text


def _blank(made: Mapping[str, tables.Table]) -> str:
    parts = [f"## {name}\n\n<!-- table: {name} -->\n<!-- end -->\n" for name in made]
    return "\n".join(["# The study, another setting\n", *parts])


def _pictures(found: Summary) -> dict[str, bytes]:
    settings = found.chosen.largest["breadcrumbs"]
    best, rows = settings.every_field(), found.grid_rows("breadcrumbs")
    middle = found.figure("breadcrumbs", settings, [found.names], "validation")
    counts = found.task_count_rows({method: tables.NAMES[method] for method in DRAWN})
    drawn = {
        "heat_map.png": studies.heat_map(rows, best),
        # One density, since a line through several would be none.
        "lines.png": studies.lines([r for r in rows if r["density"] == best["density"]], best),
        "robustness.png": studies.robustness(
            found.robustness_rows("breadcrumbs"), middle.mean if middle else 0.0
        ),
        "task_counts.png": studies.scaling(counts) if counts else None,
    }
    return {name: content for name, content in drawn.items() if content is not None}
