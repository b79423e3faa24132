"""How a statement names the parts of a merge: a byproduct of its run, with a digest."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

NAME = "parts"
"""Of the byproduct."""


@dataclasses.dataclass(frozen=True)
class KeptParts:
    """What each source contributed, kept in the artifacts of the run; see `engine.parts`."""

    digest: str
    """Of the index, which has the digests of the files."""
    nbytes: int
    """Of the files."""
    format: str

    def byproduct(self) -> dict[str, Any]:
        """The in-toto ResourceDescriptor."""
        return {
            "name": NAME,
            "digest": {"sha256": self.digest.removeprefix("sha256:")},
            "annotations": {"bytes": self.nbytes, "format": self.format},
        }


def digest_in(byproducts: Iterable[Mapping[str, Any]]) -> str | None:
    """The digest of the index of the parts that a statement names; `None` where it names none."""
    found = (entry["digest"]["sha256"] for entry in byproducts if entry["name"] == NAME)
    return next((f"sha256:{content}" for content in found), None)
