"""Write and read bundles: folders with an artifact, optionally its baseline, a model card and the manifest.

``read_bundle("runs/openvino-cpu/bundle").artifact()``. ``manifest.json`` has the hash of every other file, and a digest
of itself. The hashes detect accidental changes. They do not prove who wrote the bundle: `hnas.export.zoo.signing` does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hnas.export.bundle.card import CARD, MANIFEST, model_card
from hnas.export.bundle.manifest import Manifest
from hnas.export.device.artifact import RECORD, Artifact, digest_file, measure_files, verify_files
from hnas.export.device.records import check_version, decode, encode, read_json
from hnas.export.remote.scratch import Scratch

SCHEMA = 1
SIGNATURE = "model.sig"  # of the whole folder, in the format of OpenSSF model signing; the manifest cannot list it
LARGEST_SIGNATURE = 2**22  # bytes
_BLANK = "0" * 64  # replaces the manifest's own digest while the digest is computed


@dataclass(frozen=True)
class Bundle:
    """Hold a bundle whose files have been checked against their hashes.

    ``digest``: the sha256 of the manifest with its own digest left blank. It covers the content of every file, so two
    bundles with one digest are equal.
    """

    path: Path
    manifest: Manifest
    digest: str

    def artifact(self) -> Artifact:
        """Return the artifact of the network."""
        return Artifact.read(self.path / self.manifest.artifact)

    def baseline(self) -> Artifact | None:
        """Return the artifact that the speedup is measured against, or None if the bundle does not have it."""
        return None if self.manifest.baseline is None else Artifact.read(self.path / self.manifest.baseline)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the outputs."""
        return self.manifest.labels


def read_bundle(path: Path | str) -> Bundle:
    """Return the bundle in the folder ``path``, after a check of its types, names and hashes.

    Raises:
        FileNotFoundError: there is no folder.
        ValueError: the schema is unknown, or a field has a wrong type; a file is changed, missing or not in the
        manifest; a name or link leaves the folder; or the artifact differs from the manifest.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no bundle at {path}; expected a folder with {MANIFEST}")
    where = path / MANIFEST
    if not where.exists() and (path / "bundle" / MANIFEST).exists():
        raise ValueError(f"{path} is the folder of a run; its bundle is {path / 'bundle'}")
    manifest, digest = read_manifest(path)
    extra = next((name for name in _names(path) if name not in {*manifest.files, MANIFEST, SIGNATURE}), None)
    if extra is not None:
        raise ValueError(f"{path / extra} is not in the manifest; move it out of the bundle")
    if os.path.lexists(path / SIGNATURE):
        _check_signature_file(path)
    verify_files(path, manifest.files, manifest.sizes)
    bundle = Bundle(path, manifest, digest)
    _check_artifacts(bundle)
    return bundle


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Return the manifest in ``folder`` and its digest, after a check of its types. The other files are not looked at.

    Raises:
        ValueError: the schema is unknown, a field has a wrong type, or the digest is not the stated one.
    """
    where = folder / MANIFEST
    value = read_json(where)
    digest_file(folder, MANIFEST)  # no link out of the folder
    check_version(value, str(where), SCHEMA)
    stated = value.pop("digest", None)
    manifest = decode(Manifest, value, str(where))
    if not isinstance(stated, str) or stated != hashlib.sha256(_seal(where.read_bytes(), stated, _BLANK)).hexdigest():
        raise ValueError(f"{where} was changed after it was written: it does not have the digest that it states")
    return manifest, stated


def write_bundle(
    path: Path | str,
    manifest: Manifest,
    *,
    artifact: Artifact | Path | str,
    baseline: Artifact | Path | str | None = None,
) -> Bundle:
    """Copy the artifacts into a bundle at ``path``, a new or empty folder, and add the model card and the manifest.

    On failure, nothing is written.

    ``manifest``: the manifest; its ``grade``, ``files``, ``size_bytes`` and ``baseline`` are filled in.
    ``artifact``, ``baseline``: artifacts, or the paths of artifacts.

    Raises:
        ValueError: the folder is not empty or cannot be written, or the manifest contradicts the artifact.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not empty; choose another folder or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Scratch(f".{path.name}.", path.parent) as folder:
            _write(folder / path.name, manifest, artifact, baseline)
            (folder / path.name).rename(path)
    except OSError as error:
        raise ValueError(f"cannot write the bundle {path}: {error.strerror or error}") from None
    return read_bundle(path)


def _write(
    part: Path, manifest: Manifest, artifact: Artifact | Path | str, baseline: Artifact | Path | str | None
) -> None:
    """Write a bundle to the new folder ``part``, and check it as a reader does."""
    main = _copy(artifact, part / manifest.artifact)
    if baseline is not None:
        manifest = replace(manifest, baseline=manifest.baseline or "baseline")
        assert manifest.baseline is not None
        _copy(baseline, part / manifest.baseline)
    manifest = replace(manifest, size_bytes=main.size_bytes, grade=manifest.verification.grade)
    manifest = replace(manifest, files=_digests(part) | {CARD: _BLANK}, sizes={})  # the card lists all files
    (part / CARD).write_text(model_card(manifest, main), "utf-8")
    manifest = replace(manifest, files=_digests(part), sizes=measure_files(part, sorted(_names(part))))
    value = {"schema": SCHEMA, **encode(manifest), "digest": _BLANK}
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    (part / MANIFEST).write_bytes(_seal(text, _BLANK, hashlib.sha256(text).hexdigest()))
    read_bundle(part)


def _copy(source: Artifact | Path | str, folder: Path) -> Artifact:
    """Copy the files of an artifact, and no other files of its folder."""
    artifact = source if isinstance(source, Artifact) else Artifact.read(source)
    for name in artifact.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, folder / name)
    copied = replace(artifact, path=folder)
    copied.write()
    return copied


def _check_signature_file(folder: Path) -> None:
    """Raise ValueError unless the signature is a small plain file in the folder. What it says is not checked here."""
    digest_file(folder, SIGNATURE)
    size = measure_files(folder, [SIGNATURE])[SIGNATURE]
    if size > LARGEST_SIGNATURE:
        raise ValueError(f"{folder / SIGNATURE} has {size} bytes, a signature has at most {LARGEST_SIGNATURE}")


def _check_artifacts(bundle: Bundle) -> None:
    """Raise ValueError unless the manifest lists the artifacts and agrees with them."""
    manifest, where = bundle.manifest, bundle.path / MANIFEST
    for folder in filter(None, (manifest.artifact, manifest.baseline)):
        if f"{folder}/{RECORD}" not in manifest.files:
            raise ValueError(f"{where}: files has no {folder}/{RECORD}")
    artifact = bundle.artifact()
    bundle.baseline()
    stated = (manifest.backend, manifest.precision, manifest.size_bytes)
    found = (artifact.backend, artifact.precision, artifact.size_bytes)
    for name, a, b in zip(("backend", "precision", "size_bytes"), stated, found, strict=True):
        if a != b:
            raise ValueError(f"{where}: {name} is {a!r}, but the artifact's is {b!r}")


def _seal(text: bytes, old: str, new: str) -> bytes:
    """Return the bytes of a manifest with its own digest, the last field, changed from ``old`` to ``new``."""
    head, key, tail = text.rpartition(b'"digest": "')
    return head + key + tail.replace(old.encode(), new.encode(), 1)


def _digests(folder: Path) -> dict[str, str]:
    return {name: digest_file(folder, name) for name in sorted(_names(folder))}


def _names(folder: Path) -> Iterator[str]:
    """Yield the relative names of all files and links in ``folder``. Links are not followed."""
    for root, folders, files in os.walk(folder):
        for name in [*files, *(name for name in folders if (Path(root) / name).is_symlink())]:
            yield (Path(root) / name).relative_to(folder).as_posix()
