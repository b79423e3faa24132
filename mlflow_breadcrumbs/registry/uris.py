"""The registry's URIs, `models:/…`: the one place that takes them apart and puts them together.

Whoever names a version may leave `models:/` out: `clip/1` and `clip@champion` are what
`models:/clip/1` and `models:/clip@champion` are. `full` gives the long form, which is what is
recorded. What MLflow or a tag says is never short: there `clip/1` may be a folder.
"""

import dataclasses
import re

from mlflow_breadcrumbs import errors

SCHEME = "models:/"
FORMS = "NAME/VERSION or NAME@ALIAS, with or without models:/ before it, or models:/m-…"

_FORM = re.compile(
    r"models:/(?:(?P<model_id>m-[0-9a-zA-Z]+)"
    r"|(?P<name>[^/]+?)(?:/(?P<version>[0-9]{1,9})|@(?P<alias>[^/@]+)|/(?P<stage>[^/]+)))"
)
_SHORT = re.compile(r"[^/:]+(?:/[0-9]{1,9}|@[^/:@]+)")


@dataclasses.dataclass(frozen=True)
class ModelUri:
    """A URI taken apart: a logged model's id, or a name with a version, an alias or a stage."""

    model_id: str | None
    """`m-…`."""
    name: str | None
    """Of a registered model."""
    version: str | None
    """Its number, in digits."""
    alias: str | None
    stage: str | None
    """A stage's name, or `latest`."""

    @property
    def is_pinned(self) -> bool:
        """Whether it means the same version for ever."""
        return self.model_id is not None or self.version is not None


def full(given: str) -> str:
    """The URI of a version that somebody names, with its scheme; the alias is not looked up.

    Args:
        given: `NAME/VERSION` or `NAME@ALIAS`, with or without `models:/`, or `models:/m-…`.

    Raises:
        RegistryError: it names no version.
    """
    uri = f"{SCHEME}{given}" if _SHORT.fullmatch(given) else given
    parse(uri)
    return uri


def names_version(given: str) -> bool:
    """Whether it is for `full`, rather than a name alone, a file or another URI."""
    return given.startswith(SCHEME) or _SHORT.fullmatch(given) is not None


def find(uri: str) -> ModelUri | None:
    """The parts of a URI; `None` for what is no version's URI."""
    match = _FORM.fullmatch(uri)
    return ModelUri(**match.groupdict()) if match else None


def parse(uri: str) -> ModelUri:
    """The parts of a URI.

    Raises:
        RegistryError: it is no version's URI.
    """
    found = find(uri)
    if found is None:
        raise errors.RegistryError(f"{uri!r} names no version; write {FORMS}")
    return found


def of_version(name: str, version: str | int) -> str:
    """The URI of a registered version."""
    return f"{SCHEME}{name}/{version}"


def of_model(model_id: str) -> str:
    """The URI of a logged model."""
    return f"{SCHEME}{model_id}"


def is_model(uri: str | None) -> bool:
    """Whether it is a logged model's URI."""
    return logged_model(uri) is not None


def logged_model(uri: str | None) -> str | None:
    """The id in a logged model's URI; `None` for every other."""
    found = find(uri or "")
    return found.model_id if found else None


def registered(uri: str | None) -> tuple[str, str] | None:
    """The name and number in a registered version's URI; `None` for every other."""
    found = find(uri or "")
    return (found.name, found.version) if found and found.name and found.version else None


def order(uri: str) -> tuple[str, int]:
    """What versions are sorted by: by model, and those of one by their numbers."""
    name, number = registered(uri) or (uri, "0")
    return name, int(number)


def short(uri: str) -> str:
    """The URI without its scheme, for labels."""
    return uri.removeprefix(SCHEME)
