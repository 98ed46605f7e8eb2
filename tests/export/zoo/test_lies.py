"""A store that lies is found out in one line, and nothing that it sent is kept."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hnas.cli.ending import describe_failure
from hnas.export.bundle.bundle import read_bundle
from hnas.export.device.errors import Unavailable
from hnas.export.zoo.arrival import Untrusted, receive, refuse_pickles
from hnas.export.zoo.fetch import pull, read_index
from hnas.export.zoo.publish import pack, push
from hnas.export.zoo.stores import BundleStore, open_store, packed
from tests.export.zoo import hub, servers

requests = pytest.importorskip("requests", reason="requests is not installed; pip install 'hnas[zoo]'")


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], BundleStore]:
    """Return a function that opens a store of a kind at the address of a server of files."""

    def connect(kind: str, address: str) -> BundleStore:
        if kind == "hf":
            pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed; pip install 'hnas[zoo]'")
            hub.use_hub(monkeypatch, address)
            return open_store("hf://team")
        pytest.importorskip("s3fs", reason="s3fs is not installed; pip install 'hnas[zoo]'")
        for name, value in {**servers.KEYS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        return open_store("s3://team")

    return connect


def refused(store: BundleStore, out: Path, name: str = "x") -> str:
    """Return the line of a pull that is refused; nothing is left."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(Exception) as caught:  # a program error has another code than those below
        pull(name, out / "of/folders", store=store, patience=1.5)
    line, code = describe_failure(caught.value)
    assert code in (1, 2, 3)
    assert "\n" not in line
    assert len(line) < 500
    assert sorted(out.parent.iterdir()) == before, "something was left behind"
    return line


# What is said when the lie is about a file that the manifest lists, and when it is about the manifest.
WORDS = {
    "wrong bytes": ("is not what was published", "has no valid manifest"),
    "one bit": ("is not what was published", "has no valid manifest"),
    "shorter": ("is cut off", "has no valid manifest"),
    "longer": ("has more than the", "was changed after it was written"),
    "truncated": ("broke off", "broke off"),
    "slow": ("too slowly", "too slowly"),
    "endless": ("has more than the", "has more than the"),
    "error 500": ("answers 500", "answers 500"),
    "error 403": ("answers 403", "answers 403"),
    "a page": ("is cut off", "has no valid manifest"),
    "gone": ("the store does not have it", "is not there"),
    "another host": ("another host, 127.0.0.2", "another host, 127.0.0.2"),
    "another host by name": ("another host, evil.invalid", "another host, evil.invalid"),
    "a file": ("another host", "another host"),
    "a circle": ("redirects without end", "redirects without end"),
}


@pytest.mark.parametrize("about", ["manifest.json", "artifact/model.onnx"])
@pytest.mark.parametrize("lie", servers.LIES)
@pytest.mark.parametrize("kind", ["s3", "hf"])
def test_every_lie_is_refused(
    at: Callable[[str, str], BundleStore],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    lie: str,
    about: str,
) -> None:
    monkeypatch.setattr("hnas.export.zoo.web._PAUSE", 0.0)
    with servers.lying(bundle, about, servers.LIES[lie]) as address:
        line = refused(at(kind, address), tmp_path / "out")
    assert "Signature=" not in line, "a signed address was printed"
    assert WORDS[lie][about == "manifest.json"] in line


@pytest.mark.parametrize("kind", ["s3", "hf"])
def test_the_same_server_is_trusted_when_it_does_not_lie(
    at: Callable[[str, str], BundleStore], bundle: Path, tmp_path: Path, kind: str
) -> None:
    with servers.lying(bundle, "nothing", servers.LIES["wrong bytes"]) as address:
        assert pull("x", tmp_path / "out", store=at(kind, address)).digest == read_bundle(bundle).digest


def test_a_failure_that_passes_is_asked_again(
    at: Callable[[str, str], BundleStore], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnas.export.zoo.web._PAUSE", 0.0)
    left = [2]

    def fails_twice(handler: servers.Quiet, content: bytes) -> None:
        left[0] -= 1
        handler.reply(b"" if left[0] >= 0 else content, 503 if left[0] >= 0 else 200)

    with servers.lying(bundle, "README.md", fails_twice) as address:
        pull("x", tmp_path / "out", store=at("s3", address))
    assert left == [-1]


def test_a_host_that_is_named_may_be_led_to(
    at: Callable[[str, str], BundleStore], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnas.export.zoo.web._PAUSE", 0.0)
    seen: list[str | None] = []

    class Elsewhere(servers.Quiet):
        def do_GET(self) -> None:  # noqa: N802  # the library calls it by this name
            seen.append(self.headers.get("Authorization"))
            self.reply((bundle / "README.md").read_bytes())

    with servers.serving(Elsewhere) as there:

        def leads(handler: servers.Quiet, _: bytes) -> None:
            handler.reply(b"", 302, Location=f"{there}/README.md")

        with servers.lying(bundle, "README.md", leads) as address:
            line = refused(at("hf", address), tmp_path / "out")
            assert there.removeprefix("http://") in line
            assert not seen
            store = open_store("hf://team", [there.removeprefix("http://")])
            pull("x", tmp_path / "out", store=store)
    assert seen == [None], "the token went to another host"


def test_a_registry_that_answers_with_a_page_or_leads_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("oras", reason="oras is not installed; pip install 'hnas[zoo]'")
    replies: list[tuple[Callable[[servers.Quiet], None], str]] = [
        (lambda handler: handler.reply(b"<html></html>"), "as a registry does"),
        (lambda handler: handler.reply_json({"layers": [{"digest": 5}]}), "as a registry does"),
        (lambda handler: handler.reply_json([]), "as a registry does"),
        (lambda handler: handler.reply(b"[" * 100_000), "as a registry does"),
        (lambda handler: handler.reply(b" " * (2**22 + 1)), "answers with more than"),
        (lambda handler: handler.reply(b"", 302, Location="http://127.0.0.2:9/"), "another host, 127.0.0.2"),
        (
            lambda handler: handler.reply(b"", 401, WWW_Authenticate='Bearer realm="http://127.0.0.2:9/token"'),
            "another host, 127.0.0.2",
        ),
        (lambda handler: handler.reply(b"", 401), "request for authentication"),
    ]
    for reply, words in replies:

        class Handler(servers.Quiet):
            def do_GET(self, reply: Callable[[servers.Quiet], None] = reply) -> None:  # noqa: N802  # the library calls it by this name
                reply(self)

        with servers.serving(Handler) as address:
            store = open_store(f"oci://{address.removeprefix('http://')}/team")
            assert words in refused(store, tmp_path / "out")
            with pytest.raises((Untrusted, Unavailable)):
                read_index(store)


def test_a_server_that_is_not_there(at: Callable[[str, str], BundleStore], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        assert "does not answer" in refused(at("s3", f"http://127.0.0.1:{taken.getsockname()[1]}"), tmp_path / "out")


# --- links, pickles, packed files -------------------------------------------------------------------------------------


def test_a_link_in_a_folder_store_is_refused(bundle: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    push(bundle, "x", store)
    model = tmp_path / "store/x/artifact/model.onnx"
    model.rename(tmp_path / "store/model.onnx")
    model.symlink_to(tmp_path / "store/model.onnx")  # its bytes are right
    assert "is a link" in refused(store, tmp_path / "out")
    (tmp_path / "store/y").symlink_to(tmp_path / "store/x")
    assert "is a link" in refused(store, tmp_path / "out", "y")


@pytest.mark.parametrize(
    ("name", "content", "pickled"),
    [
        ("weights.bin", b"\x80\x02}q\x00.", True),
        ("weights.bin", b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.", True),
        ("weights.bin", b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94." + bytes(99), True),
        ("weights.bin", b"\x80\x02" + bytes(999), False),
        ("weights.bin", b"\x80\x04B" + (2**24).to_bytes(4, "little") + bytes(2**24) + b".", True),
        ("weights.bin", b"\x80\x04B" + (2**24).to_bytes(4, "little") + bytes(9), False),
        ("weights.bin", b"\x80\x04\x8e" + b"\xff" * 8, False),
        ("weights.bin", b"\x80\x02" + b"N0" * 100_001, True),
        ("weights.bin", b"\x80\x09N.", False),
        ("text.txt", b"N.", False),
        ("weights.bin", b"", False),
        ("model.PKL", b"text", True),
        ("model.pt", b"text", True),
        ("model.onnx", b"PK\x03\x04damaged", True),
    ],
)
def test_a_pickle_is_found_and_not_opened(tmp_path: Path, name: str, content: bytes, pickled: bool) -> None:
    (tmp_path / name).write_bytes(content)
    found = None
    try:
        refuse_pickles(tmp_path, [name])
    except Untrusted as error:
        found = error
    assert (found is not None) == pickled


def test_the_signature_is_checked_before_a_file_is_looked_into(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, calls = open_store(str(tmp_path / "store")), []
    push(bundle, "x", store)
    monkeypatch.setattr("hnas.export.zoo.fetch.read_key", lambda _: calls.append("key"))
    monkeypatch.setattr("hnas.export.zoo.fetch.check_signature", lambda *_: calls.append("signature"))
    monkeypatch.setattr("hnas.export.zoo.fetch.refuse_pickles", lambda *_: calls.append("pickles"))
    pull("x", tmp_path / "out", store=store, key=tmp_path / "key")
    assert calls == ["key", "signature", "pickles"]


def test_a_bundle_that_is_refused_stops_no_list(
    at: Callable[[str, str], BundleStore], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.lying(bundle, "bad/manifest.json", servers.LIES["error 403"]) as address:
        store = at("s3", address)
        monkeypatch.setattr(type(store), "names", lambda _: ["bad", "good"])
        found = read_index(store)
    assert "answers 403" in found["bad"]
    assert not isinstance(found["good"], str)


def test_a_packed_bundle_depends_on_the_bundle_alone(bundle: Path, tmp_path: Path) -> None:
    from tests.hostile.builders import copied

    again = copied(bundle, tmp_path / "again")
    (again / "README.md").touch()
    (again / "README.md").chmod(0o600)
    assert pack(bundle, tmp_path / "one.tar") == pack(again, tmp_path / "two.tar") == read_bundle(bundle).digest
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    found = pull(packed.NAME, tmp_path / "out", store=open_store(str(tmp_path / "one.tar")))
    assert found.digest == read_bundle(bundle).digest
    with pytest.raises(ValueError, match="exists"):
        pack(bundle, tmp_path / "one.tar")


def _tar(path: Path, bundle: Path, **member: object) -> None:
    """Write a packed bundle with one member more."""
    import io
    import tarfile

    pack(bundle, path)
    with tarfile.open(path, "a") as archive:
        found = tarfile.TarInfo("more")
        for name, value in member.items():
            setattr(found, name, value)
        archive.addfile(found, io.BytesIO(bytes(found.size)) if found.size else None)


@pytest.mark.parametrize(
    "member",
    [
        {"type": b"2", "linkname": "/etc/passwd"}, {"type": b"1", "linkname": "manifest.json"}, {"type": b"5"},
        {"type": b"3"}, {"type": b"6"}, {"name": "manifest.json", "size": 4}, {"name": "README.md"},
    ],
)  # fmt: skip
def test_a_packed_bundle_of_anything_but_plain_files_is_refused(
    bundle: Path, tmp_path: Path, member: dict[str, object]
) -> None:
    _tar(tmp_path / "x.tar", bundle, **member)
    with pytest.raises(Untrusted, match=r"is no plain file|is there twice|not in the format USTAR"):
        open_store(str(tmp_path / "x.tar"))


def test_a_packed_bundle_writes_nowhere_else(bundle: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("../escaped", "/tmp/hnas-escaped")):
        _tar(tmp_path / f"{number}.tar", bundle, name=name, size=3)
        pull(packed.NAME, tmp_path / f"out{number}", store=open_store(str(tmp_path / f"{number}.tar")))
        assert not (tmp_path / "escaped").exists()
        assert not Path("/tmp/hnas-escaped").exists()


def _header(size: bytes = b"00000000000", kind: bytes = b"0") -> bytes:
    return b"x".ljust(124, b"\0") + size + b"\0" + bytes(20) + kind + bytes(100) + b"ustar\x0000" + bytes(247)


@pytest.mark.parametrize(
    "header",
    [
        _header(b"-0000000001"), _header(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff"), _header(b"77777777777"),
        _header(b"           "), _header(kind=b"L") * 3000, _header(kind=b"x") * 3000, _header() * 2,
        _header(kind=b"S"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(bundle: Path, tmp_path: Path, header: bytes) -> None:
    pack(bundle, tmp_path / "x.tar")
    whole = (tmp_path / "x.tar").read_bytes()
    assert len(_header()) == 512
    (tmp_path / "x.tar").write_bytes(header + whole)
    with pytest.raises(Untrusted, match="is no packed bundle: ") as caught:
        open_store(str(tmp_path / "x.tar"))
    assert len(str(caught.value)) < 500
    (tmp_path / "x.tar").write_bytes(_header() + whole)  # the same header without a lie
    open_store(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6])
def test_a_cut_packed_bundle_is_refused(bundle: Path, tmp_path: Path, share: float) -> None:
    pack(bundle, tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[: int(share * len(data))])
    with pytest.raises((Untrusted, ValueError)):
        pull(packed.NAME, tmp_path / "out", store=open_store(str(tmp_path / "x.tar")))
    assert not (tmp_path / "out").exists()


class _Counted:
    def __init__(self) -> None:
        self.read_bytes, self.closed = 0, False

    def read(self, n: int) -> bytes:
        self.read_bytes += n
        return bytes(n)

    def close(self) -> None:
        self.closed = True


def test_no_more_is_read_than_is_stated(tmp_path: Path) -> None:
    stream = _Counted()
    with suppress(Untrusted):
        receive(stream, tmp_path / "x", size=1000, sha256="0" * 64, what="x")
    assert stream.read_bytes == 1001
    assert stream.closed
