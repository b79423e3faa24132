"""Results as text that spreadsheets read."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as comma-separated values with a header."""
    content = io.StringIO()
    if rows:
        writer = csv.DictWriter(content, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return content.getvalue()
