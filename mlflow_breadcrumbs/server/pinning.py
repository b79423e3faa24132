"""Which aliases the server guards, and by which policies: its configuration, as YAML.

```yaml
aliases:
  "clip-*@champion": policies/champion.yaml   # beside this file; the first pattern that fits counts
  "*@production": policies/production.yaml
overrides: [ann]                              # accounts that may pass a policy by, with a reason
```

`BREADCRUMBS_SERVER_CONFIG` names the file. It is read once, when the server starts: `in_force`.
"""

import dataclasses
import fnmatch
import os
import re
from pathlib import Path
from typing import Annotated

import pydantic
import yaml

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.promotion import fields, policies
from mlflow_breadcrumbs.support import canonical, documents, validation

VARIABLE = "BREADCRUMBS_SERVER_CONFIG"
"""Names the file; without it, or where it is empty, nothing is guarded."""


def _pattern(text: str) -> str:
    name, at, alias = text.rpartition("@")
    if not (at and name and re.fullmatch(r"[A-Za-z0-9_\-*?]+", alias)):
        raise ValueError(
            f"{text!r} is no pattern of aliases; write MODEL@ALIAS, as clip-*@champion"
        )
    return text


class ServerConfiguration(fields.Strict):
    """What the file may say."""

    aliases: Annotated[
        dict[Annotated[str, pydantic.AfterValidator(_pattern)], str], pydantic.Field(min_length=1)
    ]
    """By pattern, `MODEL@ALIAS` with `*` and `?`: the policy's file, from this file's folder."""
    overrides: tuple[str, ...] = ()
    """Accounts of the server, exactly as written."""


@dataclasses.dataclass(frozen=True)
class Pin:
    """Some aliases and the policy that moves them."""

    pattern: str
    rules: policies.Policy

    def concerns(self, name: str, alias: str) -> bool:
        """Whether it is about this alias; upper and lower case are two, as in the registry."""
        return fnmatch.fnmatchcase(alias, self._parts[1]) and self.may_concern(name)

    def may_concern(self, name: str) -> bool:
        """Whether it is about any alias of this model."""
        return fnmatch.fnmatchcase(name, self._parts[0])

    @property
    def _parts(self) -> tuple[str, str]:
        name, _, alias = self.pattern.rpartition("@")
        return name, alias


@dataclasses.dataclass(frozen=True)
class Pins:
    """All that is guarded."""

    pins: tuple[Pin, ...] = ()
    overrides: tuple[str, ...] = ()
    """The accounts that may pass a policy by."""

    @property
    def digest(self) -> str:
        """SHA-256 of the patterns in order, their policies and the overrides, `sha256:…`."""
        listed = [[pin.pattern, pin.rules.digest] for pin in self.pins]
        return canonical.digest({"pins": listed, "overrides": list(self.overrides)})

    def of_alias(self, name: str, alias: str) -> Pin | None:
        """What an alias is pinned by; `None` where it is not."""
        return next((pin for pin in self.pins if pin.concerns(name, alias)), None)

    def concern(self, name: str) -> bool:
        """Whether any alias of a model can be pinned."""
        return any(pin.may_concern(name) for pin in self.pins)


def configured() -> Pins:
    """What the environment's file says; nothing where none is named.

    Raises:
        GuardError: the file, or a policy that it names, can't be read or is refused.
    """
    file = os.environ.get(VARIABLE, "")
    return load(file) if file else Pins()


def load(path: str | Path) -> Pins:
    """Read a configuration and its policies.

    Raises:
        GuardError: the file, or a policy that it names, can't be read or is refused.
    """
    origin = f"the configuration of the server {path} ({VARIABLE})"
    document = documents.read(path, origin, errors.GuardError)
    if not isinstance(document.root, yaml.MappingNode):
        raise errors.GuardError(f"{origin} is not a mapping, as `aliases: {{…}}`")
    try:
        found = ServerConfiguration.model_validate(document.content)
    except pydantic.ValidationError as error:
        faults = validation.faults(error, ServerConfiguration, document.root, "the configuration")
        raise errors.GuardError(f"{origin} is refused:\n  " + "\n  ".join(faults)) from error
    folder = Path(path).parent
    try:
        return Pins(
            tuple(
                Pin(pattern, policies.load(folder / file))
                for pattern, file in found.aliases.items()
            ),
            found.overrides,
        )
    except errors.PolicyError as error:
        raise errors.GuardError(f"{origin} is refused: {error}") from error
