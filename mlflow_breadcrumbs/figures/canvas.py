"""A blank figure, and the PNG of a drawn one; without a screen, and without pyplot's state.

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
