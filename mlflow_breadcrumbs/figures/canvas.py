"""A blank figure, names that fit into it, and the PNG of a drawn one.

They need no screen and leave pyplot's state alone.

matplotlib is imported when a picture is drawn: most commands draw none.
"""

import io
from typing import Any


def blank(width: float, height: float) -> Any:
    """An empty figure of so many inches, at 120 dots per inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """The figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def clipped(name: str, most: int = 24) -> str:
    """The name, without its middle where it is long: versions differ at the end."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"
