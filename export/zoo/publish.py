"""Publish bundles: ``push(Path("runs/x/bundle"), "fashion-cpu", open_store("s3://bucket/zoo"))``, or pack one file."""

from __future__ import annotations

import os
import tarfile
from contextlib import suppress
from pathlib import Path

from hnas.export.bundle.bundle import SIGNATURE, Bundle, read_bundle
from hnas.export.bundle.card import MANIFEST
from hnas.export.remote.scratch import Scratch
from hnas.export.zoo.address import Address
from hnas.export.zoo.arrival import Untrusted, refuse_pickles
from hnas.export.zoo.fetch import take_manifest, take_signature
from hnas.export.zoo.stores import BundleStore


def push(bundle: Path, name: str, store: BundleStore, *, replace: bool = False) -> str:
    """Publish a bundle, with its signature if it has one. Return its digest.

    1. ``name`` is new, or holds this very bundle without a signature or with the same one: it is published.
    2. ``name`` holds another bundle or signature: it is replaced if ``replace``, else refused.

    Raises:
        ValueError: the bundle is not valid, or case 2.
        Unavailable: the store refuses or cannot be reached.
    """
    wanted, found = Address(name), read_bundle(bundle)
    refuse_pickles(bundle, found.manifest.files)
    if not replace:
        _refuse_other(wanted, found, store)
    store.put(name, bundle, _listed(found))
    return found.digest


def pack(bundle: Path, out: Path) -> str:
    """Write a bundle into one tar file whose bytes depend on the bundle alone. Return the digest of the bundle.

    Names are sorted; owner, time and permissions are the same for all files. `pull` reads the file.

    Raises:
        ValueError: the bundle is not valid, or ``out`` exists or cannot be written.
    """
    found = read_bundle(bundle)
    if out.exists():
        raise ValueError(f"{out} exists; choose another file or remove it")
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive:
            for file in sorted(_listed(found)):
                member = tarfile.TarInfo(file)
                member.size, member.mode = (bundle / file).stat().st_size, 0o644
                with (bundle / file).open("rb") as content:
                    archive.addfile(member, content)
        part.replace(out)
    except (OSError, ValueError) as error:  # ValueError: a name is too long for the format
        raise ValueError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        part.unlink(missing_ok=True)
    return found.digest


def _refuse_other(wanted: Address, bundle: Bundle, store: BundleStore) -> None:
    """Raise ValueError if a name holds another bundle now, or a signature that this one does not have (case 2)."""
    with suppress(FileNotFoundError), Scratch() as scratch:
        try:
            there = take_manifest(wanted, scratch, store)[1]
        except Untrusted:
            there = "damaged"
        if there != bundle.digest:
            said = f"another bundle ({there[:12]}, this one is {bundle.digest[:12]})"
            raise ValueError(f"{wanted.name} holds {said}; choose another name, or give --replace")
        take_signature(wanted.name, scratch, store)
        signature = scratch / SIGNATURE
        mine = bundle.path / SIGNATURE
        if signature.exists() and not (mine.exists() and mine.read_bytes() == signature.read_bytes()):
            said = (
                "another signature than this bundle has" if mine.exists() else "a signature, and this bundle has none"
            )
            raise ValueError(f"{wanted.name} holds {said}; give --replace to publish this one in its place")


def _listed(bundle: Bundle) -> list[str]:
    """Return every file of a bundle; the manifest is the last, so that a half-published bundle has none."""
    signed = [SIGNATURE] if (bundle.path / SIGNATURE).exists() else []
    return [*bundle.manifest.files, *signed, MANIFEST]
