"""A bundle goes through every kind of store and comes back byte for byte; a name is not taken over by accident."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from hnas.export.bundle.bundle import read_bundle
from hnas.export.device.errors import Unavailable
from hnas.export.zoo.address import Address, chosen_store, parse_address
from hnas.export.zoo.arrival import Untrusted
from hnas.export.zoo.fetch import pull, pull_to_cache, read_index
from hnas.export.zoo.publish import push
from hnas.export.zoo.stores import BundleStore, open_store, schemes
from tests.benchmarks import bundles
from tests.export.zoo import hub, servers
from tests.hostile.builders import copied


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def open_address(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> str:
    if kind == "folder":
        return str(tmp_path / "store")
    starters = {
        "s3": lambda: servers.bucket(monkeypatch),
        "hf": lambda: hub.hub(monkeypatch),
        "oci": lambda: servers.registry(tmp_path),
    }
    return stack.enter_context(starters[kind]())


@pytest.fixture(params=["folder", "s3", "hf", "oci"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BundleStore]:
    with ExitStack() as stack:
        yield open_store(open_address(request.param, tmp_path, monkeypatch, stack))


def test_every_scheme_is_tested() -> None:
    assert schemes() == ["hf", "oci", "s3"]


def test_a_bundle_comes_back_as_it_was(store: BundleStore, bundle: Path, tmp_path: Path) -> None:
    digest = push(bundle, "team-tiny", store)
    found = pull(f"zoo://team-tiny@{digest}", tmp_path / "out", store=store)
    assert contents(found.path) == contents(bundle)
    assert digest == found.digest == read_bundle(bundle).digest
    assert store.names() == ["team-tiny"]
    assert read_index(store) == {"team-tiny": (found.manifest, digest)}
    assert {each.name for each in tmp_path.iterdir()} <= {"out", "store", "blobs", "registry.yml"}, "something was left"


def test_a_name_is_replaced_only_on_request(store: BundleStore, bundle: Path, tmp_path: Path) -> None:
    other = bundles.bundle(tmp_path, "other", light=2, heavy=None)
    push(bundle, "x", store)
    push(bundle, "x", store)  # the very same
    with pytest.raises(ValueError, match="x holds another bundle"):
        push(other, "x", store)
    assert pull("x", tmp_path / "first", store=store).digest == read_bundle(bundle).digest
    digest = push(other, "x", store, replace=True)
    assert contents(pull("x", tmp_path / "second", store=store).path) == contents(other)
    with pytest.raises(Untrusted, match="has the digest"):
        pull(f"x@{read_bundle(bundle).digest[:32]}", tmp_path / "third", store=store)
    assert not (tmp_path / "third").exists()
    assert read_index(store)["x"][1] == digest
    assert not [path for path in tmp_path.rglob("*baseline*") if path.is_relative_to(tmp_path / "store")]


def test_what_is_not_there_is_said(store: BundleStore, bundle: Path, tmp_path: Path) -> None:
    push(bundle, "x", store)
    with pytest.raises((FileNotFoundError, Unavailable), match=r"(?i)y/manifest\.json|y.*not there|has no y"):
        pull("y", tmp_path / "out", store=store)
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_the_cache_is_verified_and_fetched_once(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(str(tmp_path / "store"))
    push(bundle, "x", store)
    asked: list[str] = []
    opened = type(store).open
    monkeypatch.setattr(type(store), "open", lambda self, name, file: asked.append(file) or opened(self, name, file))
    first = pull_to_cache("zoo://x", store=store)
    assert "artifact/model.onnx" in asked
    asked.clear()
    assert pull_to_cache("zoo://x", store=store) == first
    assert asked == ["manifest.json"]
    model = first.path / "artifact/model.onnx"
    model.write_bytes(bytes(model.stat().st_size))  # damaged where it lies
    assert pull_to_cache("zoo://x", store=store) == first
    assert model.read_bytes() == (bundle / "artifact/model.onnx").read_bytes()
    assert "artifact/model.onnx" in asked


def test_a_slip_in_the_key_and_a_store_that_fails_keep_the_cache(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(str(tmp_path / "store"))
    push(bundle, "x", store)
    found = pull_to_cache("x", store=store)
    with pytest.raises(ValueError, match="no key"):
        pull_to_cache("x", store=store, key=tmp_path / "slip.pem")
    assert read_bundle(found.path) == found
    monkeypatch.setattr("hnas.export.zoo.fetch.read_key", lambda _: "public")

    def refuse(*_: object) -> None:
        raise Untrusted("is not signed")

    monkeypatch.setattr("hnas.export.zoo.fetch.check_signature", refuse)
    with pytest.raises(Untrusted, match="is not signed"):
        pull_to_cache("x", store=store, key=tmp_path / "key.pem")
    assert read_bundle(found.path) == found
    assert [path.name for path in found.path.parent.iterdir()] == [found.digest]


def test_two_processes_fill_the_cache(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(str(tmp_path / "store"))
    push(bundle, "x", store)
    place = tmp_path / "cache/hnas/zoo/x" / read_bundle(bundle).digest
    rename = Path.rename

    def slower(self: Path, target: Path) -> Path:
        if Path(target) == place and not place.exists():  # the other process is done just before
            copied(bundle, place)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slower)
    assert pull_to_cache("x", store=store) == read_bundle(place)
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_put_that_was_killed_loses_no_bundle(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = bundles.bundle(tmp_path, "other", light=2, heavy=None)
    store = open_store(str(tmp_path / "store"))
    push(bundle, "x", store)
    left = tmp_path / "store/.x.killed"
    left.mkdir()
    (left / ".lock").write_bytes(b"")
    (tmp_path / "store/x").rename(left / "old")  # killed here, before the new one took its place

    def fail(*_: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(Unavailable, match="disk is full"):
        push(other, "x", store)
    assert pull("x", tmp_path / "out", store=store).digest == read_bundle(bundle).digest


def test_a_signature_is_not_removed_or_replaced_by_accident(store: BundleStore, bundle: Path, tmp_path: Path) -> None:
    signed = copied(bundle, tmp_path / "signed")
    (signed / "model.sig").write_bytes(b"{}")
    push(bundle, "x", store)
    push(signed, "x", store)  # a signature is added
    push(signed, "x", store)
    with pytest.raises(ValueError, match="x holds a signature, and this bundle has none"):
        push(bundle, "x", store)
    (signed / "model.sig").write_bytes(b"[]")
    with pytest.raises(ValueError, match="x holds another signature"):
        push(signed, "x", store)
    assert (pull("x", tmp_path / "out", store=store).path / "model.sig").read_bytes() == b"{}"
    push(bundle, "x", store, replace=True)
    assert not (pull("x", tmp_path / "again", store=store).path / "model.sig").exists()


def test_a_folder_that_is_not_empty_is_kept(bundle: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    push(bundle, "x", store)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        pull("x", tmp_path / "mine", store=store)
    (tmp_path / "empty").mkdir()
    pull("x", tmp_path / "empty", store=store)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_broken_bundle_is_not_published(bundle: Path, tmp_path: Path) -> None:
    broken = copied(bundle, tmp_path / "broken")
    (broken / "README.md").write_text("changed")
    with pytest.raises(ValueError, match="was changed"):
        push(broken, "x", open_store(str(tmp_path / "store")))
    assert not (tmp_path / "store").exists()


def test_the_index_names_what_it_cannot_read(bundle: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    push(bundle, "good", store)
    push(bundle, "bad", store)
    (tmp_path / "store/bad/manifest.json").write_text("{}")
    found = read_index(store)
    assert "no valid manifest" in found["bad"]
    assert str(tmp_path) not in found["bad"]
    assert not isinstance(found["good"], str)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "name of a bundle"), ("zoo://", "name of a bundle"), ("../x", "name of a bundle"),
        ("Upper", "name of a bundle"), ("a--b", "name of a bundle"), ("a" * 91, "name of a bundle"),
        ("a/b", "name of a bundle"), ("a@b", "the digest"), ("a@" + "0" * 31, "the digest"),
        ("a\n", "name of a bundle"),
    ],
)  # fmt: skip
def test_an_address_of_another_form_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_address(text)


def test_addresses_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_address("zoo://a.b-c_1@" + "0" * 64) == replace(Address("a.b-c_1"), digest="0" * 64)
    assert parse_address("a") == Address("a")
    monkeypatch.delenv("HNAS_ZOO", raising=False)
    with pytest.raises(ValueError, match="no store; give --store or set HNAS_ZOO"):
        chosen_store(None)
    monkeypatch.setenv("HNAS_ZOO", "s3://b")
    assert (chosen_store(None), chosen_store("x")) == ("s3://b", "x")


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("ftp://x", "no store of the kind ftp://; known: a folder, hf://, oci://, s3://"), ("s3://", "has no bucket"),
        ("folder://x", "no store of the kind"), ("S3://b", "no store of the kind S3://"),
        ("git+https://x", "no store of the kind git"), ("a.b-c://x", "no store of the kind"),
        ("hf://a/b", "is no owner"), ("oci://", "has no host"),
    ],
)  # fmt: skip
def test_a_store_of_another_kind_is_refused(address: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        open_store(address)
