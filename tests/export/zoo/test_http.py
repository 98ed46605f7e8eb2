"""A server can neither let a request wait for ever, nor fill the memory, nor lead a token elsewhere."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from hnas.export.device.errors import Unavailable
from hnas.export.zoo.arrival import Untrusted, receive
from hnas.export.zoo.stores import BundleStore, open_store
from tests.export.zoo import hub, servers

pytest.importorskip("requests", reason="requests is not installed; pip install 'hnas[zoo]'")
from hnas.export.zoo.web import Session

Reply = Callable[[servers.Quiet], None]


def _handler(reply: Reply) -> type[servers.Quiet]:
    class Handler(servers.Quiet):
        def do_GET(self) -> None:  # noqa: N802  # the library calls it by this name
            with suppress(ConnectionError):
                reply(self)

    return Handler


def _dribble(handler: servers.Quiet, start: bytes, again: bytes) -> None:
    """Send ``again`` for ever, one part every 20 ms, so that no single read waits for long."""
    handler.wfile.write(start)
    while True:
        handler.wfile.write(again)
        time.sleep(0.02)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SLOW: dict[str, tuple[bytes, bytes, type[Exception], str]] = {
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", Unavailable, "does not answer"),
    "a status line": (b"HTTP/1.1 200 ", b"O", Unavailable, "does not answer"),
    "a header": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a", Unavailable, "does not answer"),
    "the size of a chunk": (CHUNKED, b"0", Untrusted, "answers too slowly"),
    "the trailer": (CHUNKED + b"0\r\nX-Long: ", b"a", Untrusted, "answers too slowly"),
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_sent_byte_by_byte_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, stream: bool
) -> None:
    monkeypatch.setattr("hnas.export.zoo.web.PATIENCE", 0.3)
    start, again, error, said = SLOW[name]
    with servers.serving(_handler(lambda handler: _dribble(handler, start, again))) as address:
        session, begun = Session((address.removeprefix("http://"),), secure=False), time.monotonic()

        def fetch() -> None:
            if stream:
                receive(session.open(address), tmp_path / "x", size=9, sha256=None, what="x")
            session.get(address)

        with pytest.raises(error, match=said):
            fetch()
    assert time.monotonic() - begun < 10


def test_the_rate_is_that_of_the_last_seconds(tmp_path: Path) -> None:
    class Fading:
        def __init__(self) -> None:
            self._left = 100  # reads of 256 KiB: on average the transfer stays fast for hours

        def read(self, n: int, /) -> bytes:
            self._left -= 1
            time.sleep(0.02 * (self._left < 0))
            return bytes(n if self._left >= 0 else 1)

        def close(self) -> None:
            pass

    with pytest.raises(Untrusted, match="arrives too slowly"):
        receive(Fading(), tmp_path / "x", size=2**30, sha256="0" * 64, what="x", patience=0.2)


def test_the_body_of_a_redirect_is_not_read() -> None:
    bomb = gzip.compress(bytes(2**26))

    def leads(handler: servers.Quiet) -> None:
        if handler.path == "/there":
            handler.reply(b"found")
        elif handler.path == "/bomb":
            handler.reply(bomb, 302, Location="/there", Content_Encoding="gzip")
        else:
            handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /there\r\n\r\n")
            while True:
                handler.wfile.write(bytes(2**16))

    with servers.serving(_handler(leads)) as address:
        session = Session((address.removeprefix("http://"),), secure=False)
        tracemalloc.start()
        try:
            assert [session.get(f"{address}/{path}").content for path in ("bomb", "endless")] == [b"found"] * 2
            assert tracemalloc.get_traced_memory()[1] < 2**24
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("https://evil.invalid\\@STORE/x", "without one clear host"), ("https://evil.invalid@STORE/x", "without one"),
        ("https://STORE /x", "without one clear host"), ("https://STORE\t/x", "without one clear host"),
        ("http://STORE/x", "from https to http"), ("https://STORE.evil.invalid/x", "another host, store.evil.invalid"),
        ("file:///etc/passwd", "another host"),
    ],
)  # fmt: skip
def test_an_address_of_two_readings_or_without_https_is_refused(target: str, said: str) -> None:
    from hnas.export.zoo.web import requests

    request = requests.PreparedRequest()
    request.method, request.url, request.headers = "GET", target.replace("STORE", "store"), {}  # as of a redirect
    with pytest.raises(Untrusted, match=said):
        Session(("store",), secure=True).send(request)


def test_a_registry_sends_credentials_by_https_only() -> None:
    pytest.importorskip("oras", reason="oras is not installed; pip install 'hnas[zoo]'")
    for host, secure in (("registry.invalid", True), ("127.0.0.1:9", False)):
        auth: Any = open_store(f"oci://{host}/team")._registry.auth
        with pytest.raises(Untrusted if secure else Unavailable, match="to http" if secure else "does not answer"):
            auth.session.get(f"http://{host}/token", headers={"Authorization": "Basic c2VjcmV0"})  # as a realm names it


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], BundleStore]:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed; pip install 'hnas[zoo]'")

    def connect(address: str) -> BundleStore:
        hub.use_hub(monkeypatch, address)
        return open_store("hf://team")

    return connect


def test_a_list_takes_its_token_to_no_other_host(listing: Callable[[str], BundleStore]) -> None:
    seen: list[str | None] = []

    def elsewhere(handler: servers.Quiet) -> None:
        seen.append(handler.headers.get("Authorization"))
        handler.reply_json([])

    with servers.serving(_handler(elsewhere)) as there:

        def lists(handler: servers.Quiet) -> None:
            handler.reply(b'[{"id": "team/x"}]', Link=f'<{there}/api/models>; rel="next"')

        with servers.serving(_handler(lists)) as address:
            store = listing(address)
            with pytest.raises(Untrusted, match="continues its list on another host"):
                store.names()
    assert not seen


def test_a_list_of_several_pages_is_read_and_one_without_end_is_not(
    listing: Callable[[str], BundleStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnas.export.zoo.stores.hf._MOST_PAGES", 5)
    for pages in (3, 10**9):
        number = count(1)

        def lists(handler: servers.Quiet, number: count[int] = number, pages: int = pages) -> None:
            here = next(number)
            more = {"Link": f'<{address}/api/models?p={here}>; rel="next"'} if here < pages else {}
            handler.reply(b'[{"id": "team/x%d"}]' % here, **more)

        with servers.serving(_handler(lists)) as address:
            store = listing(address)
            if pages == 3:
                assert store.names() == ["x1", "x2", "x3"]
            else:
                with pytest.raises(Untrusted, match="more than 5 pages"):
                    store.names()


@pytest.mark.parametrize("reply", [b"<html>", b"[{}]", b"[5]", b"7", b"[" * 100_000])
def test_a_list_of_another_form_is_refused(listing: Callable[[str], BundleStore], reply: bytes) -> None:
    with servers.serving(_handler(lambda handler: handler.reply(reply))) as address:
        store = listing(address)
        with pytest.raises(Untrusted, match="does not answer as the Hub does"):
            store.names()
