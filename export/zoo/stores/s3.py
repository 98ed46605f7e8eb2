"""A store in a bucket of S3, or of a server that speaks its protocol: ``connect("bucket/prefix", ())``.

s3fs finds credentials, region and address as every client of AWS does: AWS_PROFILE, AWS_ENDPOINT_URL and so on.
It lists, uploads and signs addresses. What is downloaded goes through `Session`, whose sizes and times are bounded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hnas.export.bundle.card import MANIFEST
from hnas.export.device.errors import needing
from hnas.export.zoo.arrival import Incoming, reaching

_VALID = 600  # seconds that a signed address works


class _Bucket:
    def __init__(self, place: str, hosts: Sequence[str]) -> None:
        with needing("zoo"):
            os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")  # else 169.254.169.254 is asked for credentials
            import s3fs
        self._place, self._hosts = place, tuple(hosts)
        with reaching(f"s3://{place}"):
            self._files: Any = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)

    def names(self) -> list[str]:
        with reaching(f"s3://{self._place}"):
            found = self._files.glob(f"{self._place}/*/{MANIFEST}")
        return sorted(str(each).split("/")[-2] for each in found)

    def open(self, name: str, file: str) -> Incoming:
        with needing("zoo"):
            from hnas.export.zoo.web import Session
        with reaching(f"s3://{self._place}"):
            url = str(self._files.sign(f"{self._place}/{name}/{file}", expiration=_VALID))
        parts = urlsplit(url)
        return Session((parts.netloc.lower(), *self._hosts), secure=parts.scheme == "https").open(url)

    def put(self, name: str, folder: Path, files: Sequence[str]) -> None:
        where = f"{self._place}/{name}"
        with reaching(f"s3://{self._place}"):
            old = set(self._files.find(where)) if self._files.exists(f"{where}/{MANIFEST}") else set()
            for file in files:
                self._files.put_file(str(folder / file), f"{where}/{file}")
            if left := sorted(old - {f"{where}/{file}" for file in files}):
                self._files.rm(left)


def connect(place: str, hosts: Sequence[str]) -> _Bucket:
    """Return the store below BUCKET/PREFIX. Raise ValueError without a bucket."""
    if not place.partition("/")[0]:
        raise ValueError("s3:// has no bucket, expected s3://BUCKET or s3://BUCKET/PREFIX")
    return _Bucket(place, hosts)
