"""A store in an OCI registry: each bundle is the artifact ``HOST/PATH/NAME``, each file a layer of it.

oras finds credentials (those of docker login) and makes the requests, on a `Session` whose sizes and times are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from hnas.export.device.errors import ExportError, Unavailable, needing, one_line
from hnas.export.zoo.arrival import Incoming, Untrusted

_TYPE, _LAYER = "application/vnd.hnas.bundle.v1", "application/vnd.hnas.bundle.file.v1"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_TITLE = "org.opencontainers.image.title"
_EMPTY = b"{}"
_PAGE, _MOST_PAGES = 100, 100  # repositories that a registry lists at once; lists that are asked for
_LOCAL = ("localhost", "127.0.0.1", "[::1]")  # plain http, as docker does


class _Registry:
    def __init__(self, host: str, path: str, hosts: Sequence[str]) -> None:
        with needing("zoo"):
            import oras.oci
            import oras.provider

            from hnas.export.zoo.web import Session, body_of, check_answer
        self._oci: Any = oras.oci
        self._body_of: Callable[[Any], Incoming] = body_of
        self._check: Callable[[Any], None] = check_answer
        self._host, self._path = host, path
        insecure = host.rpartition(":")[0] in _LOCAL or host in _LOCAL

        class _Once(oras.provider.Registry):  # type: ignore[misc]
            # The original tries five times and waits two minutes in all; the session tries again by itself.
            do_request = oras.provider.Registry.do_request.__wrapped__

        self._registry: Any = _Once(hostname=host, insecure=insecure)
        self._registry.session = self._registry.auth.session = Session((host, *hosts), secure=not insecure)
        self._layers: dict[str, dict[str, str]] = {}

    def names(self) -> list[str]:
        found: list[str] = []
        with _one_line(self._host):
            for _ in range(_MOST_PAGES):
                last = f"&last={quote(found[-1])}" if found else ""
                reply = self._ask(f"{self._host}/v2/_catalog?n={_PAGE}{last}", "application/json")
                some = [str(each) for each in reply["repositories"]]
                found += some
                if len(some) < _PAGE:
                    break
        return sorted(each.rpartition("/")[2] for each in set(found) if each.rpartition("/")[0] == self._path)

    def open(self, name: str, file: str) -> Incoming:
        container = self._container(name)
        if name not in self._layers:
            with _one_line(self._host):
                self._layers[name] = _files_of(self._ask(container.manifest_url(), _MANIFEST))
        if file not in self._layers[name]:
            raise FileNotFoundError(f"oci://{self._host} has no {name}/{file}")
        with _one_line(self._host):
            url = f"{self._registry.prefix}://{container.get_blob_url(self._layers[name][file])}"
            return self._body_of(self._registry.do_request(url, stream=True))

    def put(self, name: str, folder: Path, files: Sequence[str]) -> None:
        container = self._container(name)
        with _one_line(self._host), TemporaryDirectory() as place:
            empty = Path(place, "empty")
            empty.write_bytes(_EMPTY)
            manifest = self._oci.NewManifest() | {"mediaType": _MANIFEST, "artifactType": _TYPE}
            manifest["config"] = self._upload(empty, container, "application/vnd.oci.empty.v1+json")
            for file in files:
                layer = self._upload(folder / file, container, _LAYER)
                manifest["layers"].append({**layer, "annotations": {_TITLE: file}})
            self._check(self._registry.upload_manifest(manifest, container))
        self._layers.pop(name, None)

    def _upload(self, path: Path, container: Any, kind: str) -> dict[str, Any]:
        layer = dict(self._oci.NewLayer(str(path), kind))
        self._check(self._registry.upload_blob(str(path), container, layer))
        return layer

    def _container(self, name: str) -> Any:
        found = self._registry.get_container("/".join(filter(None, (self._host, self._path, f"{name}:latest"))))
        self._registry.auth.load_configs(found)
        return found

    def _ask(self, url: str, kind: str) -> Any:
        response = self._registry.do_request(f"{self._registry.prefix}://{url}", headers={"Accept": kind})
        if response.status_code == 404:
            raise FileNotFoundError(f"{url} is not there")
        self._check(response)
        return json.loads(response.content)


def _files_of(manifest: Any) -> dict[str, str]:
    """Return file -> digest of its blob."""
    return {str(each["annotations"][_TITLE]): str(each["digest"]) for each in manifest["layers"]}


@contextmanager
def _one_line(host: str) -> Iterator[None]:
    """Turn an error of the client into Unavailable, and an answer that is no registry's into Untrusted."""
    try:
        yield
    except (ExportError, FileNotFoundError):
        raise
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise Untrusted(f"oci://{host} does not answer as a registry does: {one_line(error)}") from error
    except Exception as error:  # the client has errors of many types
        raise Unavailable(f"oci://{host} refuses or cannot be reached: {one_line(error)}") from error


def connect(place: str, hosts: Sequence[str]) -> _Registry:
    """Return the store below HOST/PATH. Raise ValueError without a host."""
    host, _, path = place.partition("/")
    if not host:
        raise ValueError("oci:// has no host, expected oci://HOST or oci://HOST/PATH")
    return _Registry(host.lower(), path, hosts)
