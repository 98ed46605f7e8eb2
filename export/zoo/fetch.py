"""Fetch bundles from a store, and verify them before anything in them is opened.

``pull("zoo://fashion-cpu", Path("model"), store=open_store("s3://bucket/zoo"), key=Path("public.pem"))``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hnas.export.bundle.bundle import LARGEST_SIGNATURE, SIGNATURE, Bundle, read_bundle, read_manifest
from hnas.export.bundle.card import MANIFEST
from hnas.export.bundle.manifest import Manifest
from hnas.export.device.errors import Unavailable
from hnas.export.remote.scratch import Scratch
from hnas.export.zoo.address import Address, parse_address
from hnas.export.zoo.arrival import PATIENCE, Untrusted, receive, refuse_pickles
from hnas.export.zoo.signing import check_signature, read_key
from hnas.export.zoo.stores import BundleStore

_LARGEST_MANIFEST = 2**24  # bytes
_MOST_FILES = 1000


def pull(address: str, out: Path, *, store: BundleStore, key: Path | None = None, patience: float = PATIENCE) -> Bundle:
    """Fetch a bundle into the new or empty folder ``out``. On failure, nothing is written.

    1. The manifest arrives: its types, names, sizes and digest are checked, and the digest of the address.
    2. Each file arrives into a folder aside, with exactly the stated size and sha256. No links.
    3. ``key`` is given: the signature covers every file, and the key verifies it.
    4. No file is a pickle. The bundle is read as any bundle from elsewhere, and takes its place.

    ``address``: NAME, NAME@DIGEST, with or without ``zoo://``.
    ``key``: the public key or root certificate that must have signed the bundle. None: a signature is not looked at.
    ``patience``: seconds after which a store that sends less than 1 KiB/s is given up.

    Raises:
        ValueError: the address or ``out`` is wrong, or the bundle is not valid.
        FileNotFoundError: the store has no such bundle.
        Untrusted: the store or the signature is not what it has to be.
        Unavailable: the store cannot be reached, or a package is missing.
    """
    wanted = parse_address(address)
    if key is not None:
        read_key(key)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ValueError(f"{out} is not empty; choose another folder or remove it")
    try:
        home = next(each for each in out.absolute().parents if each.exists())
        with Scratch(f".{out.name}.", home) as scratch:
            part = scratch / wanted.name
            part.mkdir()
            manifest, _ = take_manifest(wanted, part, store, patience)
            _take_files(wanted.name, part, store, manifest, patience)
            take_signature(wanted.name, part, store, patience)
            if key is not None:
                check_signature(part, key)
            refuse_pickles(part, manifest.files)  # case 4
            read_bundle(part)
            out.parent.mkdir(parents=True, exist_ok=True)
            part.rename(out)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:  # a store says so, not this machine
            raise
        raise ValueError(f"cannot write {out}: {error.strerror or error}") from None
    return read_bundle(out)


def pull_to_cache(address: str, *, store: BundleStore, key: Path | None = None) -> Bundle:
    """Return a bundle from ``~/.cache/hnas/zoo``. The store is asked for its digest, and for the files if they are new.

    A bundle of the cache is verified again, with its signature if ``key`` is given. One that is damaged, or that the
    key does not verify, is fetched anew. It is replaced when the new one has been verified, and kept until then.
    Raises as `pull`.
    """
    wanted = parse_address(address)
    if key is not None:
        read_key(key)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hnas" / "zoo"
    with Scratch() as scratch:
        _, digest = take_manifest(wanted, scratch, store)
    place = cache / wanted.name / digest
    with suppress(ValueError, FileNotFoundError, Untrusted):
        if key is not None and place.is_dir():
            check_signature(place, key)
        found = read_bundle(place)
        if found.digest == digest:
            return found
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with Scratch(f".{digest}.", place.parent) as scratch:
            new = pull(f"{wanted.name}@{digest}", scratch / "new", store=store, key=key)
            with suppress(FileNotFoundError):
                place.rename(scratch / "old")
            try:
                new.path.rename(place)
            except OSError as error:  # another process was faster, with the same content
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:
            raise
        raise ValueError(f"cannot write {place}: {error.strerror or error}") from None
    return read_bundle(place)


def read_index(store: BundleStore) -> dict[str, tuple[Manifest, str] | str]:
    """Return name -> (manifest, digest) of every bundle of a store, or why it cannot be read. Signatures are not read.

    Raises:
        Unavailable: the store cannot be listed.
    """
    found: dict[str, tuple[Manifest, str] | str] = {}
    for name in store.names():
        with Scratch() as scratch:
            try:
                found[name] = take_manifest(Address(name), scratch, store)
            except (ValueError, FileNotFoundError, Untrusted, Unavailable) as error:
                found[name] = " ".join(str(error).replace(f"{scratch}/", "").split())
    return found


def take_manifest(wanted: Address, part: Path, store: BundleStore, patience: float = PATIENCE) -> tuple[Manifest, str]:
    """Receive and check the manifest (case 1). Return it with its digest."""
    stream = store.open(wanted.name, MANIFEST)
    receive(stream, part / MANIFEST, size=_LARGEST_MANIFEST, sha256=None, what=MANIFEST, patience=patience)
    try:
        manifest, digest = read_manifest(part)
    except ValueError as error:
        raise Untrusted(f"{wanted.name} has no valid manifest: {_without(error, part)}") from None
    if not digest.startswith(wanted.digest):
        raise Untrusted(f"{wanted.name} has the digest {digest[:12]}, and {wanted.digest[:12]} is asked for")
    if len(manifest.files) > _MOST_FILES:
        raise Untrusted(f"{wanted.name} lists {len(manifest.files)} files, at most {_MOST_FILES} are fetched")
    if not manifest.sizes:
        raise Untrusted(
            f"{wanted.name} does not state the sizes of its files; write it again with this version of hnas"
        )
    if MANIFEST in manifest.files or SIGNATURE in manifest.files:
        raise Untrusted(f"{wanted.name} lists {MANIFEST} or {SIGNATURE} among its files")
    return manifest, digest


def _take_files(name: str, part: Path, store: BundleStore, manifest: Manifest, patience: float) -> None:
    """Receive every file that the manifest lists (case 2)."""
    for file, sha256 in _shortest_first(manifest.sizes, manifest.files).items():
        place = part / file
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise Untrusted(f"{name} lists {file} below another file") from None
        try:
            stream = store.open(name, file)
        except FileNotFoundError:
            raise Untrusted(f"{name} lists {file}, and the store does not have it") from None
        receive(stream, place, size=manifest.sizes[file], sha256=sha256, what=f"{name}/{file}", patience=patience)


def take_signature(name: str, part: Path, store: BundleStore, patience: float = PATIENCE) -> None:
    """Receive the signature, if there is one. It is not checked."""
    with suppress(FileNotFoundError):
        stream = store.open(name, SIGNATURE)
        receive(stream, part / SIGNATURE, size=LARGEST_SIGNATURE, sha256=None, what=SIGNATURE, patience=patience)


def _shortest_first(sizes: Mapping[str, int], files: Mapping[str, str]) -> dict[str, str]:
    """Return the files by size: what is wrong is often seen before the weights are fetched."""
    return {file: files[file] for file in sorted(files, key=lambda file: (sizes[file], file))}


def _without(error: Exception, folder: Path) -> str:
    return " ".join(str(error).replace(f"{folder}/", "").split())
