"""What this package hands on about a version it has just made or found; imports nothing heavy."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model that this package has just made or found."""

    name: str
    version: str
    uri: str
    """`models:/NAME/VERSION`."""
    run_id: str
    model_id: str
    """The logged model's id, `m-…`."""
    weights_digest: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for `--json`."""
        return dataclasses.asdict(self)
