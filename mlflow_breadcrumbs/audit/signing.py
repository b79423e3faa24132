"""Signatures over a version's files, by the OpenSSF model-signing specification.

A signature is a sigstore bundle whose payload lists the SHA-256 of every file of the version: the
weights, `lineage.json`, the heads, the configuration. Keys are elliptic-curve keys in PEM form:

```sh
openssl ecparam -name prime256v1 -genkey -noout -out signing.pem
openssl ec -in signing.pem -pubout -out signing.pub
```

Any tool of that specification verifies it too: `model_signing verify key FOLDER --signature
FOLDER/model.sig --public_key signing.pub --ignore_unsigned_files`.
"""

import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mlflow_breadcrumbs import errors
from mlflow_breadcrumbs.support import extras

FILE = "model.sig"
UNSIGNED = (FILE, "registered_model_meta")
"""Not covered: the signature itself, and what MLflow writes into a local store's folder."""
PASSWORD = "BREADCRUMBS_KEY_PASSWORD"
"""The environment variable with the password of an encrypted private key."""


def signer(key: str | Path) -> Callable[[Path], bytes]:
    """A function that signs all files of a version's folder and gives the signature.

    Args:
        key: the private key, PEM.

    Raises:
        SigningError: the key can't be read, or is of a kind that can't sign.
        ExtraError: the extra `signing` is not installed.
    """
    with extras.needed("signing", "signing a version"):
        from model_signing import hashing
        from model_signing import signing as library
    password = os.environ.get(PASSWORD)
    files = hashing.Config().set_ignored_paths(paths=UNSIGNED)
    try:
        settings = (
            library.Config()
            .set_hashing_config(files)
            # The library's type says str for the password; the one below it takes bytes.
            .use_elliptic_key_signer(
                private_key=Path(key), password=password.encode() if password else None
            )
        )
    except (OSError, ValueError, TypeError) as error:
        raise errors.SigningError(
            f"cannot sign with the key {key}: {error}. It must be a private elliptic-curve key "
            f"in PEM form; the password of an encrypted one goes into {PASSWORD}"
        ) from error

    def sign(folder: Path) -> bytes:
        with tempfile.TemporaryDirectory(prefix="breadcrumbs-") as temporary:
            path = Path(temporary) / FILE
            settings.sign(folder, path)
            return path.read_bytes()

    return sign


def verifier(key: str | Path) -> Callable[[Path], str | None]:
    """A function that says what is wrong with the signature in a version's folder, if anything.

    It gives `None` if the files are as they were signed by the key's other half.

    Args:
        key: the public key, PEM.

    Raises:
        SigningError: the key can't be read.
        ExtraError: the extra `signing` is not installed.
    """
    with extras.needed("signing", "verifying a signature"):
        from cryptography.exceptions import InvalidSignature
        from model_signing import verifying
    try:
        settings = verifying.Config().use_elliptic_key_verifier(public_key=Path(key))
    except (OSError, ValueError, TypeError) as error:
        raise errors.SigningError(
            f"cannot verify with the key {key}: {error}. It must be a public elliptic-curve key in "
            "PEM form"
        ) from error
    settings.set_ignore_unsigned_files(True)

    def fault(folder: Path) -> str | None:
        try:
            # A copy, since the library keeps the first signature's way of hashing.
            copy.copy(settings).verify(folder, folder / FILE)
        except InvalidSignature:
            return "the signature is not of this key"
        except Exception as error:  # noqa: BLE001 - a forged bundle fails in many ways
            return " ".join(str(error).split()) or type(error).__name__
        return None

    return fault
