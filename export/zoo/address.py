"""Read the addresses of bundles: ``parse_address("zoo://fashion-cpu@4f2a...")``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

SCHEME = "zoo://"
STORE, KEY = "HNAS_ZOO", "HNAS_ZOO_KEY"  # variables: the address of the store, the key that signatures need
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_LONGEST = 90  # Hugging Face admits 96 characters
_DIGEST = re.compile("[0-9a-f]{32,64}")


@dataclass(frozen=True)
class Address:
    """Name a bundle of a store.

    ``digest``: the digest that the bundle must have, or its first 32 digits or more; empty: any.

    Raises:
        ValueError: the name or the digest has another form.
    """

    name: str
    digest: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > _LONGEST:
            said = f"lower-case letters and digits, with single . _ - between them, at most {_LONGEST}"
            raise ValueError(f"the name of a bundle is {self.name[:100]!r}, expected {said}")
        if self.digest and not _DIGEST.fullmatch(self.digest):
            raise ValueError(f"the digest is {self.digest[:80]!r}, expected 32 to 64 hexadecimal digits")


def parse_address(text: str) -> Address:
    """Return the address ``zoo://NAME`` or ``zoo://NAME@DIGEST``; ``zoo://`` may be left out. Raise ValueError."""
    name, _, digest = text.removeprefix(SCHEME).partition("@")
    return Address(name, digest)


def chosen_store(given: str | None) -> str:
    """Return the address of the store: the given one, else that of HNAS_ZOO. Raise ValueError without either."""
    found = given or os.environ.get(STORE, "")
    if not found:
        raise ValueError(f"no store; give --store or set {STORE}: a folder, s3://BUCKET, hf://OWNER or oci://HOST/PATH")
    return found
