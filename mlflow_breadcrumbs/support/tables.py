"""Results as text that spreadsheets or Markdown's readers read."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as comma-separated values with a header; a cell is empty where a row has no such key."""
    content = io.StringIO()
    if rows:
        names = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(content, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return content.getvalue()


def to_markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, whose cells are Markdown but for their bars."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
