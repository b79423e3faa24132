"""What the exports say: the statement of a merged version, and the ancestry behind it."""

import dataclasses
from collections.abc import Iterator

from mlflow_breadcrumbs.lineage import contents, relatives, statement
from mlflow_breadcrumbs.registry import uris, versions
from mlflow_breadcrumbs.support import canonical


@dataclasses.dataclass(frozen=True)
class Subject:
    """A merged version, as its exports describe it."""

    resolved: versions.ResolvedVersion
    content: bytes
    """Of `lineage.json`."""
    stated: statement.Statement
    ancestry: relatives.Ancestor
    """The version at the root, and all that it was made from."""

    @property
    def lineage_digest(self) -> str:
        """`sha256:…` of `lineage.json`."""
        return canonical.sha256(self.content)

    @property
    def title(self) -> str:
        """What the version is called."""
        return name_and_version(self.resolved.uri)[0]

    def parents(self) -> Iterator[tuple[statement.Input, relatives.Ancestor]]:
        """The base and the sources: what the statement says, and what the registry knows."""
        known = {parent.uri: parent for parent in self.ancestry.parents}
        for entry in self.stated.inputs:
            yield (
                entry,
                known.get(entry.uri)
                or relatives.Ancestor(
                    entry.uri, entry.role, "missing", entry.tasks, entry.weights_digest, ()
                ),
            )


def gather(uri: str) -> Subject:
    """The facts of a merged version.

    Raises:
        RegistryError: it can't be found, or has no `lineage.json`.
        IntegrityError: its `lineage.json` was changed after it was registered.
    """
    return of_version(versions.resolve(uri))


def of_version(resolved: versions.ResolvedVersion) -> Subject:
    """The same of a version that is resolved; see `gather`."""
    content, stated = contents.read_statement(resolved)
    return Subject(resolved, content, stated, relatives.tree(resolved.uri))


def name_and_version(uri: str) -> tuple[str, str | None]:
    """`models:/NAME/VERSION` in two; a logged model's id alone has no version."""
    return uris.registered(uri) or (uris.short(uri), None)
