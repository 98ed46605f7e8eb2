"""A signature is checked before a bundle is read; a wrong key, a changed byte and a missing signature are refused."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hnas.cli.ending import describe_failure
from hnas.export.bundle.bundle import LARGEST_SIGNATURE, SIGNATURE, read_bundle
from hnas.export.zoo.arrival import Untrusted
from hnas.export.zoo.fetch import pull, pull_to_cache
from hnas.export.zoo.publish import push
from hnas.export.zoo.signing import check_signature, sign_bundle
from hnas.export.zoo.stores import BundleStore, open_store
from tests.hostile import builders as b


@pytest.fixture
def signed(bundle: Path, keys: Path, tmp_path: Path) -> Path:
    folder = b.copied(bundle, tmp_path / "signed")
    sign_bundle(folder, keys / "a.pem")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return open_store(str(tmp_path / "store"))


def line_of(work: Callable[[], object]) -> str:
    with pytest.raises(Untrusted) as caught:
        work()
    line, code = describe_failure(caught.value)
    assert (code, "\n" in line) == (1, False)
    return line


def test_a_signed_bundle_is_pulled_with_the_key(signed: Path, keys: Path, store: BundleStore, tmp_path: Path) -> None:
    assert read_bundle(signed).digest == read_bundle(tmp_path / "signed").digest
    push(signed, "x", store)
    found = pull("x", tmp_path / "out", store=store, key=keys / "a.pub")
    assert (found.path / SIGNATURE).read_bytes() == (signed / SIGNATURE).read_bytes()
    check_signature(found.path, keys / "a.pub")
    assert pull("x", tmp_path / "without", store=store).digest == found.digest


def test_the_digest_does_not_depend_on_the_signature(bundle: Path, signed: Path) -> None:
    assert read_bundle(bundle).digest == read_bundle(signed).digest


def test_other_programs_of_the_format_verify_it(signed: Path, keys: Path) -> None:
    """The command of model-signing itself, with its own way to hash the folder."""
    words = ["verify", "key", str(signed), "--signature", str(signed / SIGNATURE), "--public_key"]
    command = [sys.executable, "-m", "model_signing", *words]
    done = [
        subprocess.run([*command, str(keys / name)], capture_output=True, check=False) for name in ("a.pub", "b.pub")
    ]
    assert [each.returncode == 0 for each in done] == [True, False], done[0].stderr


@pytest.mark.parametrize("name", ["b.pub", "root.crt", "other.crt"])
def test_a_key_that_does_not_match_is_refused(
    signed: Path, keys: Path, store: BundleStore, tmp_path: Path, name: str
) -> None:
    push(signed, "x", store)
    line = line_of(lambda: pull("x", tmp_path / "out", store=store, key=keys / name))
    assert "the signature of x is not one of" in line
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_lost_its_signature_is_refused(
    signed: Path, keys: Path, store: BundleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    push(signed, "x", store)
    (tmp_path / "store/x" / SIGNATURE).unlink()
    assert "x is not signed" in line_of(lambda: pull("x", tmp_path / "out", store=store, key=keys / "a.pub"))
    assert not (tmp_path / "out").exists()
    pull_to_cache("x", store=store)  # without a policy it comes, and lies in the cache
    line_of(lambda: pull_to_cache("x", store=store, key=keys / "a.pub"))


def test_a_certificate_signs_and_its_root_verifies(bundle: Path, keys: Path, tmp_path: Path) -> None:
    folder = b.copied(bundle, tmp_path / "x")
    sign_bundle(folder, keys / "leaf.pem", keys / "leaf.crt", [keys / "mid.crt"])
    check_signature(folder, keys / "root.crt")
    line_of(lambda: check_signature(folder, keys / "other.crt"))
    with pytest.raises(ValueError, match="does not sign"):
        sign_bundle(folder, keys / "a.pem", keys / "leaf.crt")


def test_a_chain_without_its_middle_is_refused(bundle: Path, keys: Path, tmp_path: Path) -> None:
    folder = b.copied(bundle, tmp_path / "x")
    sign_bundle(folder, keys / "leaf.pem", keys / "leaf.crt")
    line_of(lambda: check_signature(folder, keys / "root.crt"))


def _another(folder: Path, keys: Path) -> None:
    """Sign other files with the trusted key: the statement is genuine, and not about this bundle."""
    other = b.copied(folder, folder.parent / "other")
    (other / SIGNATURE).unlink()
    b.reseal(other, lambda manifest: manifest.update(name="other"))
    sign_bundle(other, keys / "a.pem")
    (folder / SIGNATURE).write_bytes((other / SIGNATURE).read_bytes())


def _ignoring(folder: Path, keys: Path) -> None:
    """Sign with the trusted key, leaving everything but the card out. The bundle is then changed."""
    from model_signing import hashing, signing

    left = [*(each for each in folder.iterdir() if each.name != "README.md")]
    config = hashing.Config().set_ignored_paths(paths=[each.name for each in left], ignore_git_paths=False)
    signer = signing.Config().set_hashing_config(config)
    signer.use_elliptic_key_signer(private_key=keys / "a.pem").sign(folder, folder.parent / "sig")
    (folder.parent / "sig").replace(folder / SIGNATURE)
    b.reseal(folder, lambda manifest: manifest.update(name="forged"))


def _payload(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    def spoil(folder: Path, _: Path) -> None:
        def edit(value: dict[str, Any]) -> None:
            payload = json.loads(base64.b64decode(value["dsseEnvelope"]["payload"]))
            change(payload)
            value["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()

        b.edit_json(folder / SIGNATURE, edit)

    return spoil


def _written(content: bytes) -> Callable[[Path, Path], None]:
    return lambda folder, _: (folder / SIGNATURE).write_bytes(content) and None


FORGED: dict[str, Callable[[Path, Path], object]] = {
    "a changed byte": lambda folder, _: (folder / "artifact/model.onnx").write_bytes(b"x"),
    "a changed card": lambda folder, _: (folder / "README.md").write_text("x"),
    "a changed manifest": lambda folder, _: b.reseal(folder, lambda manifest: manifest.update(name="x")),
    "a file more": lambda folder, _: (folder / "more").write_text("x"),
    "a file of git more": lambda folder, _: (folder / ".gitattributes").write_text("x"),
    "a file less": lambda folder, _: (folder / "README.md").unlink(),
    "a link": lambda folder, _: ((folder / "README.md").rename(folder.parent / "r"),
                                 (folder / "README.md").symlink_to(folder.parent / "r")),
    "a statement on other files": _another,
    "a statement on some files": _ignoring,
    "a changed statement": _payload(lambda payload: payload["predicate"]["resources"].pop()),
    "an old statement": _payload(lambda payload: payload.update(predicateType="https://model_signing/Digests/v0.1")),
    "no statement": _payload(lambda payload: payload.clear()),
    "empty": _written(b""),
    "no JSON": _written(b"\x80\x04."),
    "deep": _written(b"[" * 100_000),
    "a list": _written(b"[]"),
    "too large": lambda folder, _: b.sparse(folder / SIGNATURE, LARGEST_SIGNATURE + 1),
    "a pipe": lambda folder, _: b.fifo(folder / SIGNATURE),
    "no signatures": lambda folder, _: b.edit_json(
        folder / SIGNATURE, lambda value: value["dsseEnvelope"].update(signatures=[])
    ),
    "another algorithm": _payload(
        lambda payload: [each.update(algorithm="md5") for each in payload["predicate"]["resources"]]
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGED)
def test_every_forgery_is_refused(signed: Path, keys: Path, forgery: str) -> None:
    check_signature(signed, keys / "a.pub")
    FORGED[forgery](signed, keys)
    line_of(lambda: check_signature(signed, keys / "a.pub"))


def test_a_password_opens_a_key(bundle: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = b.copied(bundle, tmp_path / "x")
    with pytest.raises(ValueError, match=r"locked\.pem does not sign"):
        sign_bundle(folder, keys / "locked.pem")
    monkeypatch.setenv("HNAS_KEY_PASSWORD", "secret")
    sign_bundle(folder, keys / "locked.pem")
    check_signature(folder, keys / "a.pub")
    with pytest.raises(ValueError, match=r"locked\.pem has a password, which works without --certificate only"):
        sign_bundle(folder, keys / "locked.pem", keys / "leaf.crt")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "no key"), (b"hello", "is no key"), (b"-----BEGIN PUBLIC KEY-----\nAAAA\n", "is no elliptic public key")],
)
def test_a_file_that_is_no_key_is_refused(signed: Path, tmp_path: Path, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        check_signature(signed, tmp_path / "key")


def test_a_changed_bundle_is_not_signed(signed: Path, keys: Path) -> None:
    (signed / "README.md").write_text("changed")
    with pytest.raises(ValueError, match="was changed"):
        sign_bundle(signed, keys / "a.pem")
    assert sorted(path.name for path in signed.parent.iterdir()) == ["signed"]


def test_signing_touches_no_network(signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    sign_bundle(signed, keys / "a.pem")
    check_signature(signed, keys / "a.pub")
