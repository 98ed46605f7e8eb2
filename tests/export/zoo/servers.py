"""Servers for the stores of the zoo: moto's S3, Debian's docker-registry, a stand-in of the Hub, and one that lies."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pytest

from tests.ending import wait_until_open
from tests.export.loopback import free_port

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Yield the address of a server that answers with ``handler`` until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield s3://zoo/models on a server of moto."""
    pytest.importorskip("s3fs", reason="s3fs is not installed; pip install 'hnas[zoo]'")
    moto = pytest.importorskip("moto.server", reason="moto is not installed; pip install 'moto[server]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            monkeypatch.setenv(name, value)
        import s3fs

        urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()  # its state is that of the process
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("zoo")
        yield "s3://zoo/models"
    finally:
        server.stop()


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Yield oci://HOST/team on a registry of its own."""
    pytest.importorskip("oras", reason="oras is not installed; pip install 'hnas[zoo]'")
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed; apt-get install docker-registry")
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([program, "serve", str(config)], **quiet)
    try:
        wait_until_open(port)
        yield f"oci://127.0.0.1:{port}/team"
    finally:
        process.terminate()
        process.wait()


class Quiet(BaseHTTPRequestHandler):
    """A handler that prints nothing and answers with bytes."""

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, content: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply_json(self, value: object, code: int = 200) -> None:
        self.reply(json.dumps(value).encode(), code, Content_Type="application/json")


# --- a server that lies -----------------------------------------------------------------------------------------------

Lie = Callable[[Quiet, bytes], None]


def truncated(handler: Quiet, content: bytes) -> None:
    """Announce every byte, send half of them, and hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def slow(handler: Quiet, content: bytes) -> None:
    """Send a byte now and then."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for at in range(len(content)):
        handler.wfile.write(content[at : at + 1])
        time.sleep(0.02)


def endless(handler: Quiet, _: bytes) -> None:
    """Send for ever."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(2**16))


LIES: dict[str, Lie] = {
    "wrong bytes": lambda handler, content: handler.reply(bytes(len(content))),
    "one bit": lambda handler, content: handler.reply(bytes([content[0] ^ 1]) + content[1:]),
    "shorter": lambda handler, content: handler.reply(content[:-1]),
    "longer": lambda handler, content: handler.reply(content + b"\n"),
    "truncated": truncated,
    "slow": slow,
    "endless": endless,
    "error 500": lambda handler, _: handler.reply(b"<html>broken</html>", 500),
    "error 403": lambda handler, _: handler.reply(b"no", 403),
    "a page": lambda handler, _: handler.reply(b"<html>sign in</html>"),
    "gone": lambda handler, _: handler.reply(b"", 404),
    "another host": lambda handler, _: handler.reply(b"", 302, Location="http://127.0.0.2:9/elsewhere"),
    "another host by name": lambda handler, _: handler.reply(b"", 307, Location="//evil.invalid/elsewhere"),
    "a file": lambda handler, _: handler.reply(b"", 302, Location="file:///etc/passwd"),
    "a circle": lambda handler, _: handler.reply(b"", 302, Location=handler.path),
}


@contextmanager
def lying(bundle: Path, about: str, lie: Lie) -> Iterator[str]:
    """Yield the address of a server with the files of a bundle below /X/NAME/ that lies about one of them."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            file = next((each for each in bundle.rglob("*") if path.endswith(f"/{each.relative_to(bundle)}")), None)
            with suppress(ConnectionError):
                if file is None or not file.is_file():
                    self.reply(b"", 404)
                elif path.endswith(f"/{about}"):
                    lie(self, file.read_bytes())
                else:
                    self.reply(file.read_bytes())

    with serving(Handler) as address:
        yield address
