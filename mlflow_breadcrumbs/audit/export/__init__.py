"""A merged version's lineage in the forms that auditors and their tools read.

| format | for | checked by |
|---|---|---|
| `slsa` | in-toto and SLSA verifiers: `lineage.json` itself, byte by byte | in-toto-attestation |
| `cyclonedx` | bills of materials (CycloneDX 1.6 ML-BOM) | cyclonedx-python-lib |
| `openlineage` | Marquez, DataHub: run events, one JSON object per line | openlineage-python |
| `prov` | W3C PROV-JSON | prov |
| `model-card` | readers; Hugging Face's form | huggingface-hub |

`export` has `subjects` gather what is known once and hands it to the format's module (`card`,
`cyclonedx`, `openlineage`, `prov`); the same version gives the same bytes. `seal` signs a version
that passes `verify`.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from mlflow_breadcrumbs import errors, ledger
from mlflow_breadcrumbs.audit import signing, verify
from mlflow_breadcrumbs.audit.export import card, cyclonedx, openlineage, prov, subjects
from mlflow_breadcrumbs.registry import versions
from mlflow_breadcrumbs.support import canonical, credentials, escaping

FORMATS: dict[str, Callable[[subjects.Subject], str]] = {
    "slsa": lambda known: known.content.decode(),
    "cyclonedx": cyclonedx.write,
    "openlineage": openlineage.write,
    "prov": prov.write,
    "model-card": card.write,
}
"""What writes each format, by its name."""


def export(uri: str, form: str) -> str:
    """The lineage of a merged version as a text in one of `FORMATS`.

    Raises:
        ValueError: there is no such format.
        RegistryError: the version can't be found, or has no `lineage.json`.
        IntegrityError: its `lineage.json` was changed after it was registered.
        ExtraError: the format's library is not installed.
    """
    if form not in FORMATS:
        raise ValueError(f"there is no format {form!r}; choose one of {', '.join(FORMATS)}")
    return written(subjects.gather(uri), form)


def written(known: subjects.Subject, form: str) -> str:
    """The lineage of a version whose facts are gathered, in one of `FORMATS`; see `export`."""
    text = FORMATS[form](known)
    if form == "slsa":  # the file itself, byte for byte
        return text
    return escaping.json(credentials.hidden(text))


def seal(uri: str, key: str) -> str:
    """Verify a version, sign its files, and put the signature beside them; the pinned URI.

    Args:
        uri: of the version.
        key: the private key, PEM.

    Raises:
        IntegrityError: the version does not pass `verify`; nothing was signed.
        SigningError: the key can't be used.
        ExtraError: the extra `signing` is not installed.
    """
    sign = signing.signer(key)
    resolved = versions.resolve(uri)
    if failures := verify.verify(resolved.uri).failures:
        listed = "\n  ".join(f"{c.name}: {c.status}: {c.detail}" for c in failures)
        raise errors.IntegrityError(
            f"{resolved.uri} is not what was registered, so it was not signed:\n  {listed}"
        )
    with versions.workspace() as folder:
        opened = versions.open_version(resolved, folder, whole=True)
        path = folder / signing.FILE
        signature = sign(opened.folder)
        path.write_bytes(signature)
        with _recorded(resolved, canonical.sha256(signature)):
            versions.add_file(resolved, path)
    return resolved.uri


def _recorded(
    resolved: versions.ResolvedVersion, digest: str
) -> contextlib.AbstractContextManager[Any]:
    """The job in the history that adds a signature; a logged model has no history."""
    if resolved.name is None:
        return contextlib.nullcontext()
    details = {"file": signing.FILE, "signature_digest": digest}
    return ledger.recording("sign", resolved.name, subject=resolved.uri, details=details)
