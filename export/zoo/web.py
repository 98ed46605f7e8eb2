"""HTTP that stays with one host: every request of a store goes through `Session`.

Redirects, sizes and times are bounded here, so that a store can neither lead a request elsewhere nor let it hang.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3.connection
from requests.adapters import HTTPAdapter

from hnas.export.device.errors import Unavailable, one_line
from hnas.export.zoo.arrival import PATIENCE, Incoming, Untrusted
from hnas.export.zoo.watchdog import Watchdog

_CONNECT = 10.0  # seconds
_ATTEMPTS, _PAUSE = 3, 0.5
_HOPS = 5
_LARGEST_REPLY = 2**22  # bytes of a reply that is no file: a list, a token, a description
_UNSURE = re.compile(r"[\\\s\x00-\x20\x7f]")  # programs differ in where the host ends when an address has these


class _Watched:
    """A connection that is shut down unless the whole head of an answer arrives in time.

    The timeout of a socket starts again with every byte, and http.client reads any number of "100 Continue".
    """

    sock: socket.socket | None

    def getresponse(self) -> Any:
        connection = self.sock
        assert connection is not None
        with Watchdog(lambda: connection.shutdown(socket.SHUT_RDWR), PATIENCE) as watchdog:
            found = super().getresponse()  # type: ignore[misc]
        if watchdog.fired:  # half a head, which ends where the connection was shut down
            found.close()
            raise TimeoutError(f"no whole answer in {PATIENCE:g} s")
        return found


class _Http(_Watched, urllib3.connection.HTTPConnection):
    pass


class _Https(_Watched, urllib3.connection.HTTPSConnection):
    pass


class _Adapter(HTTPAdapter):
    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _Https if pool.scheme == "https" else _Http
        return pool


class _Body:
    """The bytes of a reply, as they arrive and as they are. A read that takes too long is ended from outside."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._watchdog = Watchdog(response.raw.shutdown, PATIENCE)

    def read(self, n: int, /) -> bytes:
        self._watchdog.feed()
        try:
            found: bytes = self._response.raw.read1(n, decode_content=False)
        except Exception as error:  # noqa: BLE001  # urllib3 and the socket have errors of many types
            reason = "answers too slowly" if self._watchdog.fired else f"broke off: {one_line(error)}"
            raise Untrusted(f"{_shown(self._response.url)} {reason}") from None
        if not found and self._watchdog.fired:
            raise Untrusted(f"{_shown(self._response.url)} answers too slowly")
        return found

    def close(self) -> None:
        self._watchdog.stop()
        self._response.close()


class Session(requests.Session):
    """A session whose requests go to the hosts it is given, and to no other.

    1. A request or redirect to another host, or to http where ``secure``: Untrusted.
    2. A connection takes more than 10 s, or the head of an answer more than 30 s: Unavailable.
    3. An answer of 5xx to GET or HEAD is asked for again, three times in all.
    4. A reply that is not streamed has at most 4 MiB. The body of a redirect is not read.

    ``hosts``: names with their port, if it is in the address; ``.example.org`` admits every host below it.
    ``secure``: only https is spoken.
    """

    def __init__(self, hosts: Sequence[str], *, secure: bool) -> None:
        super().__init__()
        self._hosts, self._secure = tuple(hosts), secure
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())
        self.headers["Accept-Encoding"] = "identity"  # what is hashed is what is sent

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a request, follow its redirects on the same hosts, and return the answer."""
        stream = kwargs.pop("stream", False)
        kwargs.pop("allow_redirects", None)
        kwargs |= {"stream": True, "timeout": (_CONNECT, PATIENCE)}
        for _ in range(_HOPS):
            self._check(str(request.url))
            response = self._send_again(request, kwargs)
            target = self.get_redirect_target(response)
            if target is None:
                if not stream:
                    response._content = _read_reply(_Body(response), str(request.url))
                return response
            response.close()
            request = _redirected(request, urljoin(response.url, target))
        raise Untrusted(f"{_shown(str(request.url))} redirects without end")

    def _send_again(self, request: requests.PreparedRequest, kwargs: dict[str, Any]) -> requests.Response:
        """Send a request, up to three times while the server has an error (case 3).

        The adapter is called, because `requests.Session.send` reads the body of every redirect (case 4).
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response: requests.Response = self.get_adapter(str(request.url)).send(request, **kwargs)
            except requests.RequestException as error:  # case 2
                raise Unavailable(f"{_shown(str(request.url))} does not answer: {one_line(error, 120)}") from None
            if response.status_code < 500 or request.method not in ("GET", "HEAD") or attempt == _ATTEMPTS:
                return response
            response.close()
            time.sleep(_PAUSE * attempt)
        raise AssertionError

    def _check(self, url: str) -> None:
        """Raise Untrusted for an address that the session may not go to (case 1)."""
        parts = urlsplit(url)
        host = parts.netloc.lower()
        if _UNSURE.search(url) or "@" in host:
            raise Untrusted(f"the store leads to an address without one clear host: {ascii(url)[1:101]}")
        if not any(host == each or (each.startswith(".") and host.endswith(each)) for each in self._hosts):
            known = ", ".join(self._hosts)
            raise Untrusted(f"the store leads to another host, {host[:100]}; known: {known}; --allow-host admits one")
        if self._secure and parts.scheme != "https":
            raise Untrusted(f"the store leads from https to {parts.scheme[:20]}, at {host[:100]}")

    def open(self, url: str, headers: dict[str, str] | None = None) -> Incoming:
        """Return the body of a file.

        Raises:
            FileNotFoundError: the server does not have it.
            Unavailable: it does not hand it out.
        """
        return body_of(self.get(url, headers=headers, stream=True))


def body_of(response: requests.Response) -> Incoming:
    """Return the body of a streamed answer. Raise FileNotFoundError for 404, and Unavailable for other failures."""
    if response.status_code == requests.codes.not_found:
        response.close()
        raise FileNotFoundError(f"{_shown(response.url)} is not there")
    check_answer(response)
    return _Body(response)


def check_answer(response: requests.Response) -> None:
    """Raise Unavailable unless the answer is a success."""
    if not 200 <= response.status_code < 300:
        response.close()
        raise Unavailable(f"{_shown(response.url)} answers {response.status_code} {str(response.reason)[:60]}")


def _read_reply(body: Incoming, url: str) -> bytes:
    found, begun = b"", time.monotonic()
    try:
        while chunk := body.read(_LARGEST_REPLY - len(found) + 1):
            found += chunk
            if len(found) > _LARGEST_REPLY:
                raise Untrusted(f"{_shown(url)} answers with more than {_LARGEST_REPLY} bytes")
            if time.monotonic() - begun > PATIENCE:
                raise Untrusted(f"{_shown(url)} answers too slowly")
    finally:
        body.close()
    return found


def _redirected(request: requests.PreparedRequest, target: str) -> requests.PreparedRequest:
    """Return the request for the target of a redirect, without credentials where the host is another one."""
    if request.method not in ("GET", "HEAD"):
        raise Untrusted(f"{_shown(str(request.url))} redirects what is being uploaded")
    found = request.copy()
    found.url = target
    if urlsplit(str(request.url)).netloc != urlsplit(target).netloc:
        for name in ("Authorization", "Cookie"):
            found.headers.pop(name, None)
    return found


def _shown(url: str) -> str:
    """Return an address without its query, which may have credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]
