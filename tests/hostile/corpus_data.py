"""The corpus of data: folders of images, IDX files, and files of real inputs."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tests.hostile import builders as b
from tests.hostile.corpus import Case


def _images(spoil: Callable[[Path], object]) -> Case:
    """Return a case that trains on a spoilt folder of images."""

    def build(_: Path, work: Path) -> list[object]:
        (work / "data").mkdir()
        spoil(work / "data")
        return ["--recipe", "images", "--data", "data", "--out", work / "out"]

    return Case("train", build)


def _idx(content: bytes) -> Callable[[Path], object]:
    def spoil(data: Path) -> None:
        for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
            (data / name).write_bytes(content)
            (data / name.replace("images-idx3", "labels-idx1")).write_bytes(content)

    return spoil


def _folder(content: bytes, name: str = "0.png") -> Callable[[Path], object]:
    def spoil(data: Path) -> None:
        for kind in ("a", "b"):
            (data / kind).mkdir()
            for index in range(12):
                (data / kind / f"{index}{name}").write_bytes(content)

    return spoil


def _png(width: int, height: int) -> bytes:
    import zlib

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    found = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(found)


def _real(name: str, content: bytes | Callable[[Path], object]) -> Case:
    """Return a case that exports with a spoilt file of real inputs."""

    def build(good: Path, work: Path) -> list[object]:
        file = work / name
        _ = file.write_bytes(content) if isinstance(content, bytes) else content(file)
        flags = ("--target", "onnxruntime-cpu", "--precision", "int8", "--calibration", name)
        return ["export", good / "net.onnx", *flags, "--out", work / "out"]

    return Case("deploy", build)


def _saved(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def _zip_bomb(file: Path) -> None:
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999,)}".ljust(117)
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as part,
    ):
        part.write(header + b"\n")
        part.write(bytes(2**20))
    data = bytearray(file.read_bytes())
    at = data.rindex(b"PK\x01\x02")  # the directory claims more than there is
    data[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    file.write_bytes(data)


DATA: Mapping[str, Case] = {
    "idx empty": _images(_idx(b"")),
    "idx no gzip": _images(_idx(b"abc")),
    "idx bomb": _images(_idx(gzip.compress(bytes(2**26)))),
    "idx of petabytes": _images(_idx(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**30, 2**30, 2**20)))),
    "idx too short": _images(_idx(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 9, 9, 9)))),
    "idx cut": _images(_idx(gzip.compress(bytes(999))[:20])),
    "no image": _images(_folder(b"abc")),
    "images of billions of pixels": _images(_folder(_png(2**31 - 1, 2**31 - 1))),
    "images cut": _images(_folder(_png(9, 9)[:40])),
    "a folder of nothing": _images(lambda _: None),
    "real inputs: empty": _real("c.npz", b""),
    "real inputs: text": _real("c.npy", b"hello"),
    "real inputs: a pickle": _real("c.npy", _saved([{"a": 1}, None])),
    "real inputs: a pipe": _real("c.npy", os.mkfifo),
    "real inputs: a terabyte": _real("c.npy", lambda file: (file.write_bytes(b"\x93NUMPY"), b.sparse(file))),
    "real inputs: a bomb": _real("c.npz", _zip_bomb),
    "real inputs: NaN": _real("c.npy", _saved(np.full((8, 1, 28, 28), np.nan, np.float32))),
    "real inputs: another shape": _real("c.npy", _saved(np.zeros((8, 3), np.float32))),
}
