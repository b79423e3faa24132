"""How a statement names the adapter of a merge: a byproduct of its run, with a digest."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

NAME = "adapter"
"""Of the byproduct, and of the folder in the artifacts of the run."""


@dataclasses.dataclass(frozen=True)
class KeptAdapter:
    """The merged change as a LoRA adapter, kept in the artifacts of the run; see `lowering`."""

    rank: int
    energy_kept: float
    """The share of ‖merged − base‖² that it has, 0…1."""
    file_digest: str
    """Of the file with its tensors."""
    weights_digest: str
    """Of the model that the base makes with it."""
    nbytes: int

    def byproduct(self) -> dict[str, Any]:
        """The in-toto ResourceDescriptor."""
        return {
            "name": NAME,
            "digest": {
                "sha256": self.file_digest.removeprefix("sha256:"),
                "weightsSha256": self.weights_digest.removeprefix("sha256:"),
            },
            "annotations": {
                "rank": self.rank,
                "energyKept": self.energy_kept,
                "bytes": self.nbytes,
            },
        }


def rank_in(byproducts: Iterable[Mapping[str, Any]]) -> int | None:
    """The rank of the adapter that a statement names; `None` where it names none."""
    found = (entry["annotations"]["rank"] for entry in byproducts if entry["name"] == NAME)
    return next(found, None)
