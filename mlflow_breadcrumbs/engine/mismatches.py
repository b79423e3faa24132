"""Why a source does not fit its base: some names, the cause where it is known, a remedy."""

import dataclasses
from collections.abc import Sequence

from mlflow_breadcrumbs.engine import checkpoints, library_configs, naming
from mlflow_breadcrumbs.support import wording

SHOWN = 5
"""Fields of configurations that a message lists."""
HEADS = ("classifier", "score", "lm_head", "head", "cls", "qa_outputs", "fc", "heads")
"""What the modules of heads are called."""


@dataclasses.dataclass
class Mismatch:
    """How the tensors of one source differ from the base's."""

    label: str
    base: checkpoints.Checkpoint
    source: checkpoints.Checkpoint
    missing: list[str] = dataclasses.field(default_factory=list)
    extra: list[str] = dataclasses.field(default_factory=list)
    shapes: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """Names in base and source."""
    kinds: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """Names in base and source, of which one holds integers."""
    untied: list[str] = dataclasses.field(default_factory=list)
    """Outputs that only one of both has, and that are not its input embedding."""

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any((self.missing, self.extra, self.shapes, self.kinds, self.untied))

    def lines(self) -> list[str]:
        """One line per kind of difference."""
        shapes = [
            f"{name} {list(self.source.info(own).shape)} instead of "
            f"{list(self.base.info(name).shape)}"
            for name, own in self.shapes
        ]
        kinds = [
            f"{name} {_dtype(self.source, own)} instead of {_dtype(self.base, name)}"
            for name, own in self.kinds
        ]
        return [
            f"{self.label}: {kind}: {wording.listed(names)}"
            for kind, names in (
                ("missing", self.missing),
                ("extra", self.extra),
                ("other shape", shapes),
                ("other kind of dtype", kinds),
                ("not the input embedding", self.untied),
            )
            if names
        ]

    def cause(self) -> str:
        """What is behind it, as far as that can be known, and what to do; a sentence."""
        return (
            self._other_model()
            or self._adapter()
            or self._vocabulary()
            or self._untied()
            or self._prefix()
            or self._heads()
            or "They are not fine-tuned from it. Give the base that they come from"
        )

    def _other_model(self) -> str | None:
        ours, theirs = library_configs.read(self.base), library_configs.read(self.source)
        if ours is None or theirs is None:
            return None
        fields = ("model_type", *library_configs.SIZES)
        differing = [key for key in fields if ours.content.get(key) != theirs.content.get(key)]
        if not differing:
            return None
        said = ", ".join(
            f"{key} is {theirs.content.get(key)} (the base's: {ours.content.get(key)})"
            for key in differing[:SHOWN]
        )
        return f"{self.label} is another model: {said}. Give the base that it was fine-tuned from"

    def _adapter(self) -> str | None:
        if not any(".lora_" in name for name in self.source.names):
            return None
        return (
            f"{self.label} holds the factors of a LoRA adapter; name its folder, with its "
            "adapter_config.json, or merge it into its base first (merge_and_unload)"
        )

    def _vocabulary(self) -> str | None:
        known = naming.embeddings(self.base)
        pairs = [(ours, theirs) for ours, theirs in self.shapes if ours in known]
        if not pairs:
            return None
        ours, theirs = pairs[0]
        there, here = (self.source.info(theirs).shape, self.base.info(ours).shape)
        if there[1:] != here[1:]:
            return None
        return (
            f"The vocabulary of {self.label} was resized, to {there[0]:,} tokens from "
            f"{here[0]:,}, and a tokenizer is missing beside it or the base, by which common "
            "tokens could be told. Log both with their tokenizer (tokenizer.json), or keep the "
            f"base's embedding (--exclude '{ours}')"
        )

    def _untied(self) -> str | None:
        if not self.untied:
            return None
        return (
            f"One of {self.label} and the base has an output of its own, the other takes its input "
            "embedding for it. Give a base that has one too, keep each source's "
            f"(--own '{self.untied[0]}'), or the base's (--exclude '{self.untied[0]}')"
        )

    def _prefix(self) -> str | None:
        """A beginning of names that only one of both has, and that is none of the known ones."""
        for longer, shorter, where in (
            (self.source, self.base, f"of {self.label}"),
            (self.base, self.source, "of the base"),
        ):
            ends = [name for name in longer.names if name.partition(".")[2] in shorter]
            firsts = {name.partition(".")[0] for name in ends}
            if len(firsts) == 1 and 2 * len(ends) > len(shorter.names):
                return (
                    f"The names {where} begin with '{firsts.pop()}.', and the other's don't; save "
                    "both from one class"
                )
        return None

    def _heads(self) -> str | None:
        """A head that the source has of its own, on the base's backbone."""
        names = [*self.missing, *self.extra, *(name for name, _ in self.shapes)]
        first = {name: name.split(".")[0] for name in names}
        if self.kinds or not names or not set(first.values()) <= set(HEADS):
            return None
        patterns = sorted({f"{start}.*" for start in first.values()})
        own, rest = (" ".join(f"{word} '{p}'" for p in patterns) for word in ("--own", "--exclude"))
        return f"They have heads of their own. Keep each source's ({own}), or the base's ({rest})"


def refusal(found: Sequence[Mismatch]) -> str:
    """The message for sources that don't fit.

    Args:
        found: of those sources.
    """
    causes = list(dict.fromkeys(mismatch.cause() for mismatch in found))
    lines = [f"  {line}" for mismatch in found for line in mismatch.lines()]
    return "\n".join(["the sources don't have the base's tensors:", *lines, *causes])


def _dtype(found: checkpoints.Checkpoint, name: str) -> str:
    return str(found.info(name).dtype).removeprefix("torch.")
