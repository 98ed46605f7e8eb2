"""The sub-commands ``sign``, ``pack``, ``push``, ``pull`` and ``zoo`` of ``hnas-deploy``: publish and fetch bundles."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas import report
from hnas.cli.arguments import Parser

if TYPE_CHECKING:
    from hnas.export.bundle.bundle import Bundle
    from hnas.export.zoo.stores import BundleStore

_JSON = "print the result as JSON on standard output"
_STORE = "a folder, s3://BUCKET/PREFIX, hf://OWNER or oci://HOST/PATH (default: $HNAS_ZOO)"


def make_sign_parser() -> Parser:
    """Return the parser of ``hnas-deploy sign``."""
    parser = Parser("hnas-deploy sign", description="Sign a bundle with a key of your own (OpenSSF model signing).")
    add: Any = parser.add_argument
    add("bundle", type=Path, metavar="DIR")
    add("--key", type=Path, required=True, metavar="FILE", help="elliptic private key, PEM")
    add("--certificate", type=Path, metavar="FILE", help="the certificate of the key, PEM")
    add("--chain", type=Path, action="append", default=[], metavar="FILE", help="a certificate between it and the root")
    return parser


def run_sign(arguments: Sequence[str]) -> int:
    """Run ``hnas-deploy sign``."""
    parsed = make_sign_parser().parse_args(arguments)
    from hnas.export.zoo.signing import sign_bundle

    if parsed.chain and parsed.certificate is None:
        raise ValueError("--chain needs --certificate")
    report.print_lines([f"signed: {sign_bundle(parsed.bundle, parsed.key, parsed.certificate, parsed.chain)}"])
    return 0


def make_pack_parser() -> Parser:
    """Return the parser of ``hnas-deploy pack``."""
    parser = Parser("hnas-deploy pack", description="Write a bundle into one file; equal bundles give equal files.")
    parser.add_argument("bundle", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.tar")
    return parser


def run_pack(arguments: Sequence[str]) -> int:
    """Run ``hnas-deploy pack``."""
    parser = make_pack_parser()
    parsed = parser.parse_args(arguments)
    from hnas.export.zoo.publish import pack
    from hnas.export.zoo.stores import PACKED_SUFFIX

    if parsed.out.suffix != PACKED_SUFFIX:
        parser.error(f"--out is {parsed.out}, expected a name that ends with {PACKED_SUFFIX}")
    report.print_lines([f"packed: {parsed.out}, digest {pack(parsed.bundle, parsed.out)}"])
    return 0


def make_push_parser() -> Parser:
    """Return the parser of ``hnas-deploy push``."""
    parser = Parser("hnas-deploy push", description="Publish a bundle in a store, with its signature if it has one.")
    parser.add_argument("bundle", type=Path, metavar="DIR")
    parser.add_argument("--name", required=True, metavar="NAME", help="the name that zoo://NAME will have")
    parser.add_argument("--replace", action="store_true", help="put it in place of another bundle of this name")
    _add_store(parser)
    return parser


def run_push(arguments: Sequence[str]) -> int:
    """Run ``hnas-deploy push``."""
    parsed = make_push_parser().parse_args(arguments)
    from hnas.export.zoo.publish import push

    digest = push(parsed.bundle, parsed.name, _store_of(parsed), replace=parsed.replace)
    report.print_lines([f"published: zoo://{parsed.name}@{digest}"])
    return 0


def make_pull_parser() -> Parser:
    """Return the parser of ``hnas-deploy pull``."""
    parser = Parser("hnas-deploy pull", description="Fetch a bundle; verify it before anything in it is opened.")
    parser.add_argument("name", metavar="NAME", help="NAME, NAME@DIGEST, zoo://NAME, or a packed FILE.tar")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    _add_store(parser)
    add_signature(parser, " (default: $HNAS_ZOO_KEY)")
    return parser


def run_pull(arguments: Sequence[str]) -> int:
    """Run ``hnas-deploy pull``."""
    parsed = make_pull_parser().parse_args(arguments)
    from hnas.export.zoo.fetch import pull
    from hnas.export.zoo.stores import PACKED_SUFFIX, open_store, packed

    key = _required_key(parsed)
    if parsed.name.endswith(PACKED_SUFFIX):
        found = pull(packed.NAME, parsed.out, store=open_store(parsed.name), key=key)
    else:
        found = pull(parsed.name, parsed.out, store=_store_of(parsed), key=key)
    signed = f"signed by the owner of {key}" if key else "whoever wrote it is not checked: no --require-signature"
    report.print_lines([f"{found.path}: {found.manifest.name}, digest {found.digest}", signed])
    return 0


def make_zoo_parser() -> Parser:
    """Return the parser of ``hnas-deploy zoo``."""
    parser = Parser("hnas-deploy zoo", description="List the bundles of a store with their figures.")
    _add_store(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="write the list as a page without scripts")
    parser.add_argument("--wide", action="store_true", help="print every column, however wide the screen is")
    parser.add_argument("--json", action="store_true", help=_JSON)
    return parser


def run_zoo(arguments: Sequence[str]) -> int:
    """Run ``hnas-deploy zoo``."""
    parsed = make_zoo_parser().parse_args(arguments)
    from hnas.export.zoo.fetch import read_index
    from hnas.pages.zoo import COLUMNS, cells_of, zoo_page
    from hnas.pages.zoo import summarise as summary_of

    rows = [summary_of(name, found) for name, found in read_index(_store_of(parsed)).items()]
    if parsed.out is not None:
        from hnas.files import write_text

        write_text(parsed.out, zoo_page(rows))
        report.print_lines([f"page: {parsed.out}, {len(rows)} bundle(s)"])
    elif parsed.json:
        report.print_json(rows)
    else:
        shown = [cells_of(row) for row in rows if "broken" not in row]
        report.print_table(COLUMNS, shown, least=("digest", "licence", "size", "grade"), wide=parsed.wide)
        report.print_lines([f"{row['name']} cannot be read: {row['broken']}" for row in rows if "broken" in row])
    return 0


def open_bundle(parsed: argparse.Namespace) -> Bundle:
    """Return the bundle that `add_source` named. A signature that is required is checked before the bundle is read.

    The key of the environment holds for bundles from a store, not for folders of this machine.
    """
    from hnas.export.bundle.bundle import read_bundle
    from hnas.export.zoo.address import SCHEME

    if parsed.bundle.startswith(SCHEME):
        from hnas.export.zoo.fetch import pull_to_cache

        return pull_to_cache(parsed.bundle, store=_store_of(parsed), key=_required_key(parsed))
    if parsed.require_signature is not None:
        from hnas.export.zoo.signing import check_signature

        if not Path(parsed.bundle).is_dir():
            raise FileNotFoundError(f"no bundle at {parsed.bundle}; give the folder that hnas-deploy wrote")
        check_signature(Path(parsed.bundle), parsed.require_signature)
    return read_bundle(Path(parsed.bundle))


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the bundle that a command reads, which may be in a store: the argument and its flags."""
    parser.add_argument("bundle", metavar="DIR", help="a folder, or zoo://NAME from a store")
    _add_store(parser)
    add_signature(parser, " (default for zoo://NAME: $HNAS_ZOO_KEY)")


def add_signature(parser: argparse.ArgumentParser, default: str = "") -> None:
    """Add the flag ``--require-signature``. ``default``: the end of its help."""
    told = "refuse a bundle that this public key or root certificate does not verify"
    parser.add_argument("--require-signature", type=Path, metavar="FILE", help=f"{told}{default}")


def _required_key(parsed: argparse.Namespace) -> Path | None:
    """Return the key that signatures need, if one is given or in the environment."""
    from hnas.export.zoo.address import KEY

    given: Path | None = parsed.require_signature
    return given or (Path(os.environ[KEY]) if os.environ.get(KEY) else None)


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="URL", help=_STORE)
    told = "another host that the store may lead to, such as that of its files; may be repeated"
    parser.add_argument("--allow-host", action="append", default=[], metavar="HOST", help=told)


def _store_of(parsed: argparse.Namespace) -> BundleStore:
    from hnas.export.zoo.address import chosen_store
    from hnas.export.zoo.stores import open_store

    return open_store(chosen_store(parsed.store), [host.lower() for host in parsed.allow_host])
