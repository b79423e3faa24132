"""What the one who asks may see: which registered models, and the runs of which experiments."""

import dataclasses
from collections.abc import Callable

from mlflow_breadcrumbs.registry import uris

HIDDEN = "not visible to you"
"""What stands for a version of a model that may not be seen."""


@dataclasses.dataclass(frozen=True)
class Sight:
    """What may be seen."""

    model: Callable[[str], bool]
    """Whether a registered model of this name may; it need not exist."""
    experiment: Callable[[str], bool]
    """Whether the runs of an experiment of this id may."""
    whole: bool = False
    """Whether all may."""

    def version(self, uri: str) -> bool:
        """Whether a version may be seen; a logged model has no name, and only who sees all does."""
        named = uris.registered(uri)
        return self.whole or (named is not None and self.model(named[0]))

    def shown(self, uri: str) -> str:
        """A version's URI, or that it may not be seen."""
        return uri if self.version(uri) else HIDDEN


def everything() -> Sight:
    """The sight of a server without accounts, or of its admin."""
    return Sight(lambda name: True, lambda experiment: True, whole=True)
