"""Sign bundles and check signatures, in the format of OpenSSF model signing: ``sign_bundle(folder, Path("key.pem"))``.

The signature is the file ``model.sig`` in the bundle and covers every other file. Keys are elliptic (P-256, P-384,
P-521), alone or with a certificate. Nothing here uses the network.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from hnas.export.bundle.bundle import LARGEST_SIGNATURE, SIGNATURE, read_bundle
from hnas.export.bundle.card import MANIFEST
from hnas.export.device.artifact import digest_file
from hnas.export.device.disk import read_bounded, read_plain
from hnas.export.device.errors import needing, one_line
from hnas.export.zoo.arrival import Untrusted

_PASSWORD = "HNAS_KEY_PASSWORD"  # noqa: S105  # the variable with the password of a private key, not a password
_LARGEST_KEY = 2**20
_STATEMENT = "https://model_signing/signature/v1.0"


def sign_bundle(bundle: Path, key: Path, certificate: Path | None = None, chain: Sequence[Path] = ()) -> Path:
    """Check a bundle, sign it, and return the file of the signature. An older signature is replaced.

    ``key``: the private key, PEM. Its password is in HNAS_KEY_PASSWORD; with a certificate it has none.
    ``certificate``: the certificate of the key; ``chain``: those between it and the root.

    Raises:
        ValueError: the bundle was changed, or a key cannot be read or does not fit.
        Unavailable: model-signing is not installed.
    """
    read_bundle(bundle)
    with needing("sign"):
        from model_signing import signing
    for file in filter(None, (key, certificate, *chain)):
        read_key(file)
    if certificate is not None and b"ENCRYPTED" in read_plain(key, _LARGEST_KEY):
        raise ValueError(f"{key} has a password, which works without --certificate only; openssl ec removes a password")
    config: Any = signing.Config().set_hashing_config(_hashing())
    try:
        if certificate is None:
            password = os.environ.get(_PASSWORD)
            config.use_elliptic_key_signer(private_key=key, password=password.encode() if password else None)
        else:
            given = chain or [certificate]  # the library cannot read a chain of none
            config.use_certificate_signer(private_key=key, signing_certificate=certificate, certificate_chain=given)
    except Exception as error:  # the library has errors of many types
        raise ValueError(f"{key} does not sign, expected an elliptic private key in PEM: {one_line(error)}") from error
    part = bundle.parent / f".{bundle.name}.{SIGNATURE}.{os.getpid()}"  # outside: the signature covers the folder
    try:
        config.sign(bundle, part)
        part.replace(bundle / SIGNATURE)
    except OSError as error:
        raise ValueError(f"cannot write {bundle / SIGNATURE}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    return bundle / SIGNATURE


def check_signature(bundle: Path, key: Path) -> None:
    """Raise Untrusted unless the folder has a signature that ``key`` verifies and that covers every file of it.

    Only the bytes of the files are read: nothing of the bundle is opened or parsed but the signature.

    ``key``: a public key or a root certificate, PEM.

    Raises:
        ValueError: ``key`` is neither.
        Unavailable: model-signing is not installed.
    """
    kind = read_key(key)
    with needing("sign"):
        from model_signing import verifying
    if not os.path.lexists(bundle / SIGNATURE):
        raise Untrusted(f"{bundle.name} is not signed, and a signature of {key} is required")
    config: Any = verifying.Config().set_hashing_config(_hashing())
    try:
        if kind == "certificate":
            config.use_certificate_verifier(certificate_chain=[key])
        else:
            config.use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # the library and OpenSSL raise errors of many types
        raise ValueError(f"{key} is no elliptic public key and no certificate: {one_line(error)}") from error
    try:
        stated = _statement(read_plain(bundle / SIGNATURE, LARGEST_SIGNATURE))
        with redirect_stdout(io.StringIO()):  # the library prints a warning about old signatures
            config.verify(bundle, bundle / SIGNATURE)
        # A valid signature may leave out paths. One that leaves out the manifest says nothing about this bundle.
        if stated.get(MANIFEST) != digest_file(bundle, MANIFEST):
            raise ValueError(f"the signature does not cover {MANIFEST}")
    except Exception as error:  # hostile signatures lead to errors of many types
        reason = one_line(error, 150).replace("ValueError: ", "")
        raise Untrusted(f"the signature of {bundle.name} is not one of {key}: {reason}") from error


def _statement(signature: bytes) -> dict[str, str]:
    """Return file -> sha256 as a signature states it. Whether the signature is valid is checked elsewhere."""
    payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    if payload["predicateType"] != _STATEMENT:
        raise ValueError(f"the statement is of the kind {str(payload['predicateType'])[:60]}")
    resources = payload["predicate"]["resources"]
    return {str(each["name"]): str(each["digest"]) for each in resources if each["algorithm"] == "sha256"}


def _hashing() -> Any:
    """Return what is hashed: every file but the signature, links refused, files of git included."""
    from model_signing import hashing

    config: Any = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def read_key(file: Path) -> str:
    """Return "certificate", "public" or "private" for a PEM file. Raise ValueError for any other file."""
    text = read_bounded(file, _LARGEST_KEY, f"no key {file}")
    for mark, kind in ((b"BEGIN CERTIFICATE", "certificate"), (b"PUBLIC KEY", "public"), (b"PRIVATE KEY", "private")):
        if mark in text:
            return kind
    raise ValueError(f"{file} is no key: expected PEM, as openssl writes it")
