"""What the one who asks may see: which registered models, and the runs of which experiments."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from mlflow_breadcrumbs.registry import uris

HIDDEN = "not visible to you"
"""What stands for a version of a model that may not be seen."""

_NAMED = (
    re.compile(r"models:/([^/:\n]+?)/[0-9]+"),
    re.compile(r"models:/([^/:\n]+?)@[A-Za-z0-9_-]+"),
    re.compile(r"(?<=\bname=)(.+?)(?=, version=|\)| not found)"),
)
"""How versions and models are named in sentences, ours and MLflow's; the group is the name."""
_LOGGED = re.compile(r"models:/m-[0-9a-zA-Z]+(?![^/:\n]*?/[0-9])")


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

    def told(self, said: Any) -> Any:
        """What is said, as JSON, without the versions in its texts that may not be seen."""
        if self.whole:
            return said
        if isinstance(said, dict):
            return {key: self.told(value) for key, value in said.items()}
        if isinstance(said, list | tuple):
            return [self.told(value) for value in said]
        return self._sentence(said) if isinstance(said, str) else said

    def _sentence(self, text: str) -> str:
        for form in _NAMED:
            text = form.sub(lambda found: found[0] if self.model(found[1]) else HIDDEN, text)
        return _LOGGED.sub(HIDDEN, text)


def everything() -> Sight:
    """The sight of a server without accounts, or of its admin."""
    return Sight(lambda name: True, lambda experiment: True, whole=True)
