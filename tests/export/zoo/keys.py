"""Keys and certificates that openssl writes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def make_keys(folder: Path) -> Path:
    """Fill a folder with two key pairs (a, b), and a root, a middle and a signing certificate (root, mid, leaf)."""
    pytest.importorskip("model_signing", reason="model_signing is not installed; pip install 'hnas[sign]'")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    for name in ("a", "b", "root", "mid", "leaf"):
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.pem")
        openssl("ec", "-in", f"{name}.pem", "-pubout", "-out", f"{name}.pub")
    openssl("ec", "-in", "a.pem", "-aes256", "-passout", "pass:secret", "-out", "locked.pem")
    openssl("req", "-x509", "-new", "-key", "root.pem", "-subj", "/CN=root", "-days", "30", "-out", "root.crt")
    openssl("req", "-x509", "-new", "-key", "b.pem", "-subj", "/CN=root", "-days", "30", "-out", "other.crt")
    for name, issuer, says in (
        ("mid", "root", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign"),
        ("leaf", "mid", "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature"),
    ):
        (folder / f"{name}.ext").write_text(says)
        openssl("req", "-new", "-key", f"{name}.pem", "-subj", f"/CN={name}", "-out", f"{name}.csr")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{issuer}.crt", "-CAkey", f"{issuer}.pem",
                "-CAcreateserial", "-days", "30", "-extfile", f"{name}.ext", "-out", f"{name}.crt")  # fmt: skip
    return folder
