"""What the registry says of recalls to those who can't see the ledger that has them.

Where the registry's server has our app, its word counts: who may edit a version can delete the tag.
A server that does not take all recalls itself may not know of one; then the tags count as well.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from mlflow_breadcrumbs.registry import catalog, server_app, tag_keys


@dataclasses.dataclass(frozen=True)
class Notice:
    """That some weights were recalled."""

    uri: str
    """The version that it was said of, or that it may not be seen."""
    weights_digest: str
    reason: str
    actor: str
    time: str
    """UTC; empty where only a tag says it."""

    @property
    def is_tag(self) -> bool:
        """Whether only a tag says it."""
        return not self.time


def standing() -> tuple[Notice, ...]:
    """The recalls that stand.

    Raises:
        RegistryError: the registry can't be read.
    """
    said = server_app.said("/recalls.json")
    listed = said.get("recalls")
    fields = [field.name for field in dataclasses.fields(Notice)]
    found = [
        Notice(**{name: str(each.get(name, "")) for name in fields})
        for each in (listed if isinstance(listed, list) else ())
    ]
    if said.get("complete") is not True:
        known = {each.weights_digest for each in found}
        found += [each for each in _tagged() if each.weights_digest not in known]
    return tuple(found)


def touching(uri: str, known: Sequence[Notice]) -> tuple[Notice, ...]:
    """Those of a version's weights and of all that it was made from.

    Args:
        uri: Pinned.
        known: What `standing` gave.

    Raises:
        RegistryError: the registry can't be read.
    """
    if not known:
        return ()
    digests = {version.weights_digest for version in catalog.ancestry(uri).versions.values()}
    return tuple(each for each in known if each.weights_digest in digests)


def _tagged() -> Iterator[Notice]:
    for uri, tags in catalog.tagged(tag_keys.RECALLED):
        if digest := tags.get(tag_keys.WEIGHTS_DIGEST):
            yield Notice(uri, digest, tags[tag_keys.RECALLED], "somebody", "")
