"""Libraries that most users don't need: imported where they are used, asked for by name."""

import contextlib
from collections.abc import Iterator

from mlflow_breadcrumbs import errors

DISTRIBUTION = "mlflow-breadcrumbs"
"""What pip knows this package as."""


@contextlib.contextmanager
def needed(extra: str, what: str) -> Iterator[None]:
    """Turn a failed import inside into the message that says what to install.

    Args:
        extra: of this package, as `audit`.
        what: can't be done without it.

    Raises:
        ExtraError: the extra is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise errors.ExtraError(
            f"{what} requires the {extra!r} extra ({error}). Install with "
            f"`pip install '{DISTRIBUTION}[{extra}]'`"
        ) from error
