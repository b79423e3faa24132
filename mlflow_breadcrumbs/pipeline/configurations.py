"""Whether the sources compute as the base does: what weights can't say, configurations do."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_breadcrumbs import errors, flavor
from mlflow_breadcrumbs.models import agreement, architecture
from mlflow_breadcrumbs.registry import layouts, versions
from mlflow_breadcrumbs.support import documents

FOREIGN_FILE = "config.json"
"""Where transformers and its kin keep a model's configuration, or a module's."""

FOREIGN_HARMLESS = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "dropout",
        "dtype",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "initializer_range",
        "label_descriptions",
        "label_names",
        "pretrained_cfg",
        "problem_type",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Of its fields: where a model came from, what it was saved with, what only training reads."""

OF_TENSORS = frozenset(
    {
        "classifier_dropout",
        "id2label",
        "label2id",
        "num_labels",
        "pad_token_id",
        "tie_word_embeddings",
        "vocab_size",
    }
)
"""Of its fields: what heads and vocabularies are. The tensors say more of that: see
`engine.alignment`, which keeps other heads apart and refuses what can't be."""

SHOWN = 5
"""Differences that a message lists."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a source's configuration compares with the base's."""

    uri: str
    base: str
    found: agreement.Disagreement
    own: architecture.ModelConfig | None = None
    """The source's own configuration, where its preprocessing alone is another."""
    remedy: str = "import it again with the base's (`--architecture FILE`, a JSON configuration)"
    """What to do where the source's configuration is wrong."""

    @property
    def refusal(self) -> str | None:
        """Why the source can't be merged into this base, if it can't."""
        if not self.found.model:
            return None
        return (
            f"{self.uri} does not compute as the base {self.base} does: "
            f"{_listed(self.found.model)}. Merged, its weights would be run with the base's "
            "settings, which they were not trained with. Give the base that it was fine-tuned "
            f"from; or, if its configuration was recorded wrongly, {self.remedy}"
        )

    @property
    def note(self) -> str | None:
        """What a user should know of a source that is merged all the same."""
        if self.own is None:
            return None
        return (
            f"{self.uri} preprocesses images otherwise than the base {self.base}: "
            f"{'; '.join(self.found.preprocessing)}. Its own accuracy, the denominator, is "
            "measured with its own preprocessing, the merged model with the base's. Fine-tune with "
            "the base's preprocessing where accuracy is lost by it"
        )


def compare(opened: Sequence[versions.OpenedVersion]) -> tuple[Fit, ...]:
    """Hold each source's configuration against the base's.

    Args:
        opened: the base, then the sources.

    Raises:
        ArchitectureError: a configuration is damaged.
    """
    base, *sources = opened
    return tuple(_judge(base, source) for source in sources)


def check(opened: Sequence[versions.OpenedVersion]) -> tuple[Fit, ...]:
    """The same, for a merge.

    Raises:
        MergeError: a source's features would be others under the base's configuration.
        ArchitectureError: a configuration is damaged.
    """
    fits = compare(opened)
    if refusals := [fit.refusal for fit in fits if fit.refusal]:
        raise errors.MergeError("\n".join(refusals))
    return fits


def _judge(base: versions.OpenedVersion, source: versions.OpenedVersion) -> Fit:
    uris = source.resolved.uri, base.resolved.uri
    if base.flavor == source.flavor == flavor.FLAVOR_NAME:
        ours, theirs = (flavor.load_config(version.folder) for version in (base, source))
        found = agreement.between(ours, theirs)
        own = theirs if found.preprocessing and not found.model else None
        return Fit(*uris, found, own)
    ours_foreign, theirs_foreign = (_foreign(version) for version in (base, source))
    differing: tuple[str, ...] = ()
    for name in sorted(ours_foreign.keys() & theirs_foreign.keys()):  # else the tensors can tell
        pair = _own_fields(ours_foreign[name]), _own_fields(theirs_foreign[name])
        fields = agreement.of_mappings(*pair, FOREIGN_HARMLESS)
        differing += tuple(f"{name}: {said}" if name != FOREIGN_FILE else said for said in fields)
    remedy = f"register it again with the {FOREIGN_FILE} of the base"
    return Fit(*uris, agreement.Disagreement(model=differing), remedy=remedy)


def _own_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what the tensors say more of."""
    return {key: value for key, value in content.items() if key not in OF_TENSORS}


def _listed(differing: Sequence[str]) -> str:
    """Some differences, and how many there are further."""
    rest = len(differing) - SHOWN
    return "; ".join(differing[:SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _foreign(version: versions.OpenedVersion) -> dict[str, dict[str, Any]]:
    """The configurations of a model of another flavor by their place, which may be none.

    There is one beside the weights, and in sentence-transformers one per module.
    """
    if version.flavor == flavor.FLAVOR_NAME:
        return {}
    places = {FOREIGN_FILE: version.path.with_name(FOREIGN_FILE)}
    folder = version.folders[0]
    if (folder / layouts.MODULES).is_file():
        files = sorted(folder.glob(f"*/{FOREIGN_FILE}"))
        places |= {file.relative_to(folder).as_posix(): file for file in files}
    found: dict[str, dict[str, Any]] = {}
    for name, file in places.items():
        if file.is_file():
            origin = f"{name} of {version.resolved.uri}"
            content = documents.read(file, origin, errors.ArchitectureError).content
            found |= {name: content} if isinstance(content, dict) else {}
    return found
