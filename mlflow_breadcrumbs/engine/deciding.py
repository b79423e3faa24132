"""What becomes of every tensor of base and sources, before anything of them is read but headers.

It is decided from the headers, the recipe's patterns and the configurations beside the checkpoints:

- `merge`: base and source have it, perhaps under another name (`naming`), perhaps with more or
  fewer tokens (`vocabularies`);
- `base`: it stays the base's, whatever a source has: the recipe excludes it, or only the base has
  it, in a head;
- `own`: each source keeps its own for its task, beside what is merged. These are the tensors that
  the recipe's `own` names, and heads: what lies outside the backbone, by `config.json`, where
  sources differ from the base in shape or in the names of their classes, or the base has none.

What else differs is refused, see `mismatches`.
"""

import fnmatch
from collections.abc import Sequence

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.engine import (
    alignment,
    checkpoints,
    library_configs,
    mismatches,
    naming,
    recipe,
    vocabularies,
)

POOLER = "pooler."
"""A layer of a backbone that comes with a classifier, and that models without one lack."""


def align(
    base: checkpoints.Checkpoint,
    sources: Sequence[checkpoints.Checkpoint],
    settings: recipe.MergeRecipe,
    labels: Sequence[str],
    apart: frozenset[str] = frozenset(),
) -> tuple[list[checkpoints.Checkpoint], frozenset[str]]:
    """The sources under the base's names and shapes.

    Args:
        base: the checkpoint that every source was fine-tuned from.
        sources: as they are, or aligned by another recipe's patterns.
        settings: the recipe, for its patterns.
        labels: how messages name each source.
        apart: tensors that further sources, which are not merged now, keep for themselves.

    Returns:
        The sources, and the tensors that some source keeps for itself, which are not merged.

    Raises:
        MergeError: tensors differ in what can't be told apart so.
        CheckpointError: a `config.json` is damaged.
    """
    whole = [
        source.source if isinstance(source, alignment.Aligned) else source for source in sources
    ]
    deciding = [
        _Deciding(base, source, settings, label)
        for source, label in zip(whole, labels, strict=True)
    ]
    for each in deciding:
        each.check_patterns()
    apart = apart.union(*(each.apart() for each in deciding))
    found = [each.decide(apart) for each in deciding]
    if wrong := [each.mismatch for each in deciding if each.mismatch]:
        raise errors.MergeError(mismatches.refusal(wrong))
    aligned: list[checkpoints.Checkpoint] = [
        source if made.is_plain else alignment.Aligned(base, source, made)
        for source, made in zip(whole, found, strict=True)
    ]
    return aligned, apart


class _Deciding:
    """Decides what becomes of the tensors of one source."""

    def __init__(
        self,
        base: checkpoints.Checkpoint,
        source: checkpoints.Checkpoint,
        settings: recipe.MergeRecipe,
        label: str,
    ) -> None:
        self._base, self._source, self._settings = base, source, settings
        self._ours, self._theirs = library_configs.read(base), library_configs.read(source)
        self._backbone = self._theirs.backbone(source) if self._theirs else None
        known = (self._ours.backbone(base) if self._ours else None, self._backbone)
        self._meeting = naming.meet(base, source, label, filter(None, known))
        self._inputs = naming.embeddings(base), naming.embeddings(source)
        self.mismatch = mismatches.Mismatch(label, base, source)
        self._names: dict[str, str] = {}
        self._kept: dict[str, str] = {}
        self._own: list[str] = []
        self._left: dict[str, str] = {}
        self._tied: dict[str, str] = {}
        self._resized: dict[str, str] = {}

    def check_patterns(self) -> None:
        """Hold the patterns against the names that they go by, which are the base's.

        Raises:
            MergeError: a pattern names tensors as the source calls them, and the base none so.
        """
        renamed = {own: name for name, own in self._meeting.names.items() if own != name}
        patterns = (*self._settings.include, *self._settings.exclude, *self._settings.own)
        for pattern in patterns:
            if fnmatch.filter(self._base.names, pattern):
                continue
            if found := fnmatch.filter(renamed, pattern):
                raise errors.MergeError(
                    f"the pattern {pattern!r} names no tensor of the base, but {len(found)} as "
                    f"{self.mismatch.label} calls them. Patterns go by the base's names: "
                    f"{found[0]} is {renamed[found[0]]!r} there"
                )

    def apart(self) -> set[str]:
        """The base's tensors that this source has of its own, in a head.

        Raises:
            MergeError: the classes are others, and the head is not known.
        """
        named = self._ours is not None and self._theirs is not None and self._other_classes()
        if named and self._backbone is None and not (self._settings.own or self._settings.exclude):
            raise errors.MergeError(
                f"{self.mismatch.label} has other classes than the base, and which of its tensors "
                "are the head's is not known; name them (--own 'PATTERN' keeps each source's, "
                "--exclude 'PATTERN' the base's)"
            )
        return {
            name
            for name, own in self._meeting.names.items()
            if self._settings.keeps(name)
            or (
                self._settings.merges(name)
                and self._is_head(own)
                and (named or not self._fits(name, own))
                and not self._is_vocabulary(name, own)
            )
        }

    def _other_classes(self) -> bool:
        """Whether the names of the classes are others, where both have a head."""
        assert self._ours is not None
        assert self._theirs is not None
        both = self._ours.has_head and self._theirs.has_head
        return both and self._ours.labels != self._theirs.labels

    def decide(self, apart: frozenset[str]) -> alignment.Alignment:
        """All of it; what can't be told apart is in `mismatch`.

        Args:
            apart: the tensors that any source keeps for itself.
        """
        for name in self._base.names:
            own = self._meeting.names.get(name)
            if name in apart:
                self._kept[name] = "own"
                if own is not None:
                    self._own.append(own)
            elif own is None:
                self._of_base_alone(name)
            else:
                self._of_both(name, own)
        taken = frozenset(self._meeting.names.values())
        for own in [name for name in self._source.names if name not in taken]:
            self._of_source_alone(own)
        mark = ("source" if self._meeting.in_source else "base") if self._meeting.prefix else ""
        return alignment.Alignment(
            names=self._names,
            base=self._kept,
            own=tuple(sorted(self._own)),
            left_out=dict(sorted(self._left.items())),
            tied=self._tied,
            prefix=self._meeting.prefix,
            prefix_in=mark,
            resized=self._resized,
            tokens=self._tokens() if self._resized else None,
        )

    def _of_both(self, name: str, own: str) -> None:
        if self._fits(name, own):
            self._names[name] = own
            if name in self._inputs[0] and self._settings.merges(name):
                rows = self._base.info(name).shape[0]
                vocabularies.check(self._base, self._source, rows, self.mismatch.label, name)
            elif self._settings.merges(name) and self._is_lost(name, own):
                self.mismatch.untied.append(own)
        elif not self._settings.merges(name):
            self._kept[name] = "excluded"
        elif self._is_vocabulary(name, own) and self._tokens() is not None:
            self._resized[name] = own
        elif self._base.info(name).shape != self._source.info(own).shape:
            self.mismatch.shapes.append((name, own))
        else:
            self.mismatch.kinds.append((name, own))

    def _of_base_alone(self, name: str) -> None:
        if not self._settings.merges(name):
            self._kept[name] = "excluded"
        elif naming.is_buffer(self._base, name):
            self._kept[name] = "a counter"
        elif twin := self._same_input(name):
            self._tied[name] = twin
            self._of_both(name, self._meeting.names[twin])
        elif self._is_others_head(name):
            self._kept[name] = "a head of the base"
        elif naming.may_tie(self._base, name, self._inputs[0]):
            self.mismatch.untied.append(name)
        else:
            self.mismatch.missing.append(name)

    def _of_source_alone(self, own: str) -> None:
        name = self._meeting.in_base(own)
        if self._settings.keeps(name) or self._settings.keeps(own):
            self._own.append(own)
        elif not self._settings.merges(name):
            self._left[own] = "excluded"
        elif naming.is_buffer(self._source, own):
            self._left[own] = "a counter"
        elif twin := _same(self._source, own, self._inputs[1]):
            self._left[own], self._tied[own] = "tied", twin
        elif naming.may_tie(self._source, own, self._inputs[1]) and not self._on_bare_base():
            self.mismatch.untied.append(own)
        elif self._is_head(own) or self._is_pooler(own):
            self._own.append(own)
        else:
            self.mismatch.extra.append(own)

    def _fits(self, name: str, own: str) -> bool:
        """Whether the two have one shape, and both numbers of one kind."""
        ours, theirs = self._base.info(name), self._source.info(own)
        if ours.shape != theirs.shape:
            return False
        if ours.dtype.is_floating_point or theirs.dtype.is_floating_point:
            return ours.dtype.is_floating_point == theirs.dtype.is_floating_point
        return ours.dtype == theirs.dtype

    def _is_lost(self, name: str, own: str) -> bool:
        """Whether an output of the source is its own, and no model of the base's kind reads it."""
        if self._ours is None or self._theirs is None:
            return False
        return (
            (self._ours.ties, self._theirs.ties) == (True, False)
            and naming.may_tie(self._base, name, self._inputs[0])
            and _same(self._source, own, self._inputs[1]) is None
        )

    def _is_head(self, own: str) -> bool:
        """Whether a tensor of the source lies outside its backbone, by its configuration."""
        outside = self._backbone is not None and not own.startswith(self._backbone)
        return outside or own in self._source.heads

    def _is_pooler(self, own: str) -> bool:
        """Whether a tensor that only the source has came with its head."""
        return self._backbone is not None and own.startswith(f"{self._backbone}{POOLER}")

    def _is_others_head(self, name: str) -> bool:
        """Whether a tensor that only the base has is of a head that the source has not."""
        if self._ours is None or self._theirs is None:
            return False
        backbone = self._ours.backbone(self._base)
        bare = "" if backbone is None else backbone
        pooler = name.removeprefix(bare).startswith(POOLER)
        outside = backbone is not None and not name.startswith(backbone)
        return (outside or pooler) and self._ours.architecture != self._theirs.architecture

    def _on_bare_base(self) -> bool:
        """Whether the base has no head at all."""
        return self._ours is not None and not self._ours.has_head

    def _same_input(self, name: str) -> str | None:
        """The base's input embedding, if a tensor that only the base has is no more than that."""
        found = _same(self._base, name, self._inputs[0])
        return found if found in self._meeting.names else None

    def _tokens(self) -> vocabularies.Common | None:
        """What the two vocabularies have in common; `None` where a tokenizer is missing."""
        pairs = ((self._base, self._inputs[0]), (self._source, self._inputs[1]))
        rows = min(found.info(names[0]).shape[0] for found, names in pairs)
        return vocabularies.common(self._base, self._source, rows, self.mismatch.label)

    def _is_vocabulary(self, name: str, own: str) -> bool:
        """Whether a tensor has another shape only since there are more or fewer tokens."""
        if self._fits(name, own) or not all(self._inputs):
            return False
        here, there = self._base.info(name).shape, self._source.info(own).shape
        ours = self._base.info(self._inputs[0][0]).shape[:1]
        theirs = self._source.info(self._inputs[1][0]).shape[:1]
        return ours != theirs and (here[:1], there[:1]) == (ours, theirs)


def _same(found: checkpoints.Checkpoint, name: str, inputs: Sequence[str]) -> str | None:
    """The input embedding that has the bytes of a tensor; `None` where none has."""
    return next(
        (
            other
            for other in naming.twins(found, name, inputs)
            if naming.same_bytes(found, name, other)
        ),
        None,
    )
