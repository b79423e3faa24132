"""Sources under the base's names, tensor by tensor, where their own are not quite the base's.

What was decided of a source is its `Alignment`; `deciding` has the rules. A source that is aligned
is a view: its bytes are read where they are, and its digest is of all its own tensors under its own
names.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_breadcrumbs.engine import (
    checkpoints,
    overlays,
    stored_bytes,
    vocabularies,
)
from mlflow_breadcrumbs.support import canonical, wording


@dataclasses.dataclass(frozen=True)
class Alignment:
    """What was decided of one source's tensors."""

    names: Mapping[str, str]
    """By the base's tensor, the source's that is read for it."""
    base: Mapping[str, str]
    """The base's tensors that nothing of the source is read for, and why."""
    own: tuple[str, ...]
    """The source's tensors that it keeps for its task, sorted."""
    left_out: Mapping[str, str]
    """The source's tensors that go nowhere, and why."""
    tied: Mapping[str, str]
    """Outputs that only one of both has, and the input embedding that they are."""
    prefix: str = ""
    """That the names of one of both have more."""
    prefix_in: str = ""
    """`source` or `base`."""
    resized: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """As `names`, of tensors with a row per token, where there are more or fewer tokens."""
    tokens: vocabularies.Common | None = None
    """What the vocabularies have in common, where one was resized."""

    @property
    def is_plain(self) -> bool:
        """Whether the source is read as it is."""
        same = all(name == own for name, own in self.names.items())
        return same and not (self.base or self.own or self.left_out or self.resized)

    def in_source(self, name: str) -> str:
        """What the source would call a tensor of the base."""
        if self.prefix_in == "source":
            return f"{self.prefix}{name}"
        return name.removeprefix(self.prefix)

    def notes(self, label: str) -> list[str]:
        """What a user should know, sentences without their full stop."""
        found = []
        if self.prefix:
            having = label if self.prefix_in == "source" else "the base"
            found.append(f"the names of {having} have the prefix {self.prefix!r} more")
        if self.own:
            found.append(
                f"{label} has {wording.counted(len(self.own), 'tensors')} of its own, not merged: "
                f"{wording.listed(self.own)}"
            )
        if self.tied:
            pairs = ", ".join(f"{name} is {other}" for name, other in self.tied.items())
            found.append(f"of {label} and the base one has an output tied: {pairs}")
        if self.tokens is not None:
            common, added = (
                wording.counted(number, "tokens")
                for number in (self.tokens.rows, self.tokens.added)
            )
            found.append(
                f"{label} has another vocabulary: the rows of {common} are merged, the others are "
                f"the base's, and what {label} added ({added}) is left out"
            )
        rest = [name for name, why in self.left_out.items() if why != "tied"]
        if rest:
            found.append(f"left out of {label}: {wording.listed(rest)}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """What lineage and `--json` say; without what goes without saying."""
        found: dict[str, Any] = {"merged": len(self.names) + len(self.resized)}
        if self.prefix:
            found["prefix"] = {"text": self.prefix, "in": self.prefix_in}
        for key, value in (
            ("base", dict(self.base)),
            ("own", list(self.own)),
            ("tied", dict(self.tied)),
            ("leftOut", dict(self.left_out)),
        ):
            if value:
                found[key] = value
        if self.tokens is not None:
            found["vocabulary"] = {
                "tensors": sorted(self.resized),
                "common": self.tokens.rows,
                "added": self.tokens.added,
            }
        return found

    def rows(self, label: str, merges: Callable[[str], bool]) -> list[dict[str, str]]:
        """The decision per tensor.

        Args:
            label: of the source.
            merges: whether the recipe's patterns choose a tensor.
        """
        read = {**self.names, **self.resized}
        whys = {**self.base, **dict.fromkeys(self.resized, "common tokens")}
        rows = [
            {
                "source": label,
                "tensor": name,
                "decision": "merge" if name in read and merges(name) else "base",
                "name": read.get(name, ""),
                "why": whys.get(name, "" if merges(name) else "excluded"),
            }
            for name in sorted({*read, *self.base})
        ]
        for decision, names in (("own", dict.fromkeys(self.own, "")), ("left out", self.left_out)):
            rows += [
                {"source": label, "tensor": "", "decision": decision, "name": name, "why": why}
                for name, why in names.items()
            ]
        return rows


class Aligned(checkpoints.Checkpoint):
    """A source as the base's tensors; made by `align`.

    Args:
        base: open for as long as this is.
        source: the same.
        alignment: what was decided.
    """

    def __init__(
        self, base: checkpoints.Checkpoint, source: checkpoints.Checkpoint, alignment: Alignment
    ) -> None:
        taken = {name: overlays.Taken(0, name) for name in alignment.base}
        taken |= {name: overlays.Taken(1, own) for name, own in alignment.names.items()}
        made = {
            name: vocabularies.entry(base, name, source, own)
            for name, own in alignment.resized.items()
        }
        making = functools.partial(_fill, base, source, alignment)
        super().__init__(source.location, *overlays.lay([base, source], taken, made, making))
        self.source, self.alignment = source, alignment

    @property
    def files(self) -> tuple[Path, ...]:
        """The source's own."""
        return self.source.files

    @property
    def file_states(self) -> tuple[stored_bytes.FileState, ...]:
        """The source's own."""
        return self.source.file_states

    def check_unchanged(self) -> None:
        """Hold the source's files against what they were; see `TensorFiles.check_unchanged`."""
        self.source.check_unchanged()

    def beside(self, name: str) -> bytes | None:
        """What lies beside the source."""
        return self.source.beside(name)

    def digest_of(self, hexdigests: Mapping[str, str]) -> str:
        """The weights digest of the source's own tensors; those that were not read are read now."""
        known = {
            own: hexdigests[name]
            for name, own in self.alignment.names.items()
            if name in hexdigests
        }
        for name in self.source.names:
            if name not in known:
                known[name] = checkpoints.tensor_digest(self.source.tensor(name))
                self.source.release(name)
        return self.source.digest_of(known)


def _fill(
    base: checkpoints.Checkpoint,
    source: checkpoints.Checkpoint,
    alignment: Alignment,
    name: str,
) -> stored_bytes.NamelessFile:
    """Make a tensor with a row per token."""
    assert alignment.tokens is not None
    own = alignment.resized[name]
    return vocabularies.fill(base, name, source, own, alignment.tokens.runs)


def digest(sources: Sequence[checkpoints.Checkpoint]) -> str | None:
    """What was decided of all sources, as one digest; `None` where all are read as they are."""
    found = [aligned and dataclasses.asdict(aligned) for aligned in map(of, sources)]
    return canonical.digest(found) if any(found) else None


def of(source: checkpoints.Checkpoint) -> Alignment | None:
    """What was decided of a source's tensors; `None` where it is read as it is."""
    return source.alignment if isinstance(source, Aligned) else None
