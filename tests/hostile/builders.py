"""Change good files into hostile ones: small functions that the corpus is made of."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

TERABYTE = 2**40


def fifo(path: Path) -> None:
    """Replace ``path`` by a pipe."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    """Replace ``path`` by a socket."""
    path.unlink(missing_ok=True)
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is at most 107 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path) -> None:
    """Replace ``path`` by a link to a device that never ends."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path: Path, size: int = TERABYTE) -> None:
    """Make ``path`` ``size`` bytes long without using the disk."""
    os.truncate(path, size)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply ``change`` to the object in a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, ensure_ascii=False))


def reseal(bundle: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, renew: bool = True) -> None:
    """Change the manifest of a bundle and give it a valid digest, as its author can. ``renew`` also lists the files."""
    path = bundle / "manifest.json"
    value = json.loads(path.read_text())
    if renew:
        for name in list(value["files"]):
            content = (bundle / name).read_bytes()
            value["files"][name] = hashlib.sha256(content).hexdigest()
            value["sizes"][name] = len(content)
    change(value)
    value.pop("digest")
    text = json.dumps({**value, "digest": "0" * 64}, indent=2, ensure_ascii=False)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    head, _, tail = text.rpartition("0" * 64)
    path.write_bytes((head + digest + tail).encode("utf-8", "surrogatepass"))


def seal_file(folder: Path, name: str) -> None:
    """State the size and hash of a changed file in the record of an artifact."""
    content = (folder / name).read_bytes()

    def change(record: dict[str, Any]) -> None:
        record["files"][name] = hashlib.sha256(content).hexdigest()
        record["sizes"][name] = len(content)

    edit_json(folder / "artifact.json", change)


def flip(path: Path, seed: int) -> None:
    """Flip some bits."""
    rng, data = random.Random(seed), bytearray(path.read_bytes())
    for _ in range(rng.choice((3, 10, 40))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, seed: int) -> None:
    """Cut the file somewhere."""
    data = path.read_bytes()
    path.write_bytes(data[: random.Random(seed).randrange(len(data))])


def copied(source: Path, target: Path) -> Path:
    """Return a copy of a file or folder."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copyfile(source, target)
    return target


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it."""
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def part(number: int, content: bytes) -> bytes:
    """Return a field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def onnx_with_external(location: str, *, value_first: bool = False) -> bytes:
    """Return an ONNX file whose only weight is in another file."""
    key, value = part(1, b"location"), part(2, location.encode())
    entry = value + key if value_first else key + value
    dims, kind, outside = b"\x08\x04", b"\x10\x01", b"\x70\x01"  # 4 floats, stored elsewhere
    tensor = dims + kind + part(8, b"w") + part(13, entry) + outside
    shape = part(2, part(1, part(2, part(1, b"\x08\x04")) and b"\x08\x01" + part(2, part(1, b"\x08\x04"))))
    value_info = [part(1, name) + shape for name in (b"x", b"y")]
    node = part(1, b"x") + part(1, b"w") + part(2, b"y") + part(4, b"Add")
    graph = part(1, node) + part(2, b"g") + part(5, tensor) + part(11, value_info[0]) + part(12, value_info[1])
    return b"\x08\x0a" + part(7, graph) + part(8, b"\x10\x14")


def safetensors(header: object, body: bytes = b"", size: int | None = None) -> bytes:
    """Return a safetensors file with any header; ``size``: the length that it states."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body
