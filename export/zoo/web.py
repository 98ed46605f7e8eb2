"""HTTP that stays with one host: every request of a store goes through `Session`.

Redirects, sizes and times are bounded here, so that a store can neither lead a request elsewhere nor let it hang.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from hnas.export.device.errors import Unavailable, one_line
from hnas.export.zoo.arrival import PATIENCE, Incoming, Untrusted

_CONNECT = 10.0  # seconds
_ATTEMPTS, _PAUSE = 3, 0.5
_HOPS = 5
_LARGEST_REPLY = 2**22  # bytes of a reply that is no file: a list, a token, a description


class _Body:
    """The bytes of a reply, as they arrive and as they are."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response

    def read(self, n: int, /) -> bytes:
        try:
            found: bytes = self._response.raw.read1(n, decode_content=False)
        except Exception as error:  # noqa: BLE001  # urllib3 and the socket have errors of many types
            raise Untrusted(f"{_shown(self._response.url)} broke off: {one_line(error)}") from None
        return found

    def close(self) -> None:
        self._response.close()


class Session(requests.Session):
    """A session whose requests go to the hosts it is given, and to no other.

    1. A request or redirect to another host, or from https to http: Untrusted.
    2. A connection takes more than 10 s, or no byte comes for 30 s: Unavailable.
    3. An answer of 5xx to GET or HEAD is asked for again, three times in all.
    4. A reply that is not streamed has at most 4 MiB.

    ``hosts``: names with their port, if it is in the address; ``.example.org`` admits every host below it.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        super().__init__()
        self._hosts = tuple(hosts)
        self.headers["Accept-Encoding"] = "identity"  # what is hashed is what is sent

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a request, follow its redirects on the same hosts, and return the answer."""
        stream = kwargs.pop("stream", False)
        kwargs |= {"allow_redirects": False, "stream": True, "timeout": (_CONNECT, PATIENCE)}
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
        """Send a request, up to three times while the server has an error (case 3)."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = super().send(request, **kwargs)
            except requests.RequestException as error:  # case 2
                raise Unavailable(f"{_shown(str(request.url))} does not answer: {one_line(error, 120)}") from None
            if response.status_code < 500 or request.method not in ("GET", "HEAD") or attempt == _ATTEMPTS:
                return response
            response.close()
            time.sleep(_PAUSE * attempt)
        raise AssertionError

    def _check(self, url: str) -> None:
        """Raise Untrusted for an address that the session may not go to (case 1)."""
        host = urlsplit(url).netloc.rpartition("@")[2].lower()
        if not any(host == each or (each.startswith(".") and host.endswith(each)) for each in self._hosts):
            known = ", ".join(self._hosts)
            raise Untrusted(f"the store leads to another host, {host[:100]}; known: {known}; --allow-host admits one")

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
    before, after = urlsplit(str(request.url)), urlsplit(target)
    if request.method not in ("GET", "HEAD"):
        raise Untrusted(f"{_shown(str(request.url))} redirects what is being uploaded")
    if (before.scheme, after.scheme) == ("https", "http"):
        raise Untrusted(f"{_shown(str(request.url))} redirects from https to http")
    found = request.copy()
    found.url = target
    if before.netloc != after.netloc:
        found.headers.pop("Authorization", None)
    return found


def _shown(url: str) -> str:
    """Return an address without its query, which may have credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]
