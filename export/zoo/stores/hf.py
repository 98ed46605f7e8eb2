"""A store on the Hugging Face Hub: each bundle is the model ``OWNER/NAME``. ``connect("owner", ())``.

huggingface_hub finds the token and the address (HF_TOKEN, HF_ENDPOINT), lists and uploads. What is downloaded goes
through `Session`, whose sizes and times are bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hnas.export.device.errors import Unavailable, needing, one_line
from hnas.export.zoo.arrival import Incoming

_HUB = "huggingface.co"
_ITS_FILES = (".huggingface.co", ".hf.co")  # the Hub redirects to its own hosts for large files


class _Hub:
    def __init__(self, owner: str, hosts: Sequence[str]) -> None:
        with needing("zoo"):
            import huggingface_hub

            from hnas.export.zoo.web import Session
        self._hub: Any = huggingface_hub
        self._owner = owner
        self._api: Any = huggingface_hub.HfApi(library_name="hnas")
        host = urlsplit(self._api.endpoint).netloc.lower()
        self._session = Session((host, *(_ITS_FILES if host == _HUB else ()), *hosts))

    def names(self) -> list[str]:
        with _one_line(self._owner):
            found = list(self._api.list_models(author=self._owner, filter="hnas"))
        return sorted(str(each.id).rpartition("/")[2] for each in found)

    def open(self, name: str, file: str) -> Incoming:
        with _one_line(self._owner):
            headers = dict(self._hub.utils.build_hf_headers(library_name="hnas"))
        url = self._hub.hf_hub_url(f"{self._owner}/{name}", file, endpoint=self._api.endpoint)
        return self._session.open(str(url), headers)

    def put(self, name: str, folder: Path, files: Sequence[str]) -> None:
        """Publish in one commit. A new repository is private: its owner makes it public on its page."""
        repository = f"{self._owner}/{name}"
        with _one_line(self._owner):
            self._api.create_repo(repository, private=True, exist_ok=True)
            kept = {*files, ".gitattributes"}
            left = [each for each in self._api.list_repo_files(repository) if each not in kept]
            changes = [
                *(self._hub.CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in files),
                *(self._hub.CommitOperationDelete(path_in_repo=each) for each in left),
            ]
            self._api.create_commit(repository, changes, commit_message=f"Publish {name}")


@contextmanager
def _one_line(owner: str) -> Iterator[None]:
    """Turn an error of the client into Unavailable."""
    try:
        yield
    except Exception as error:  # the client has errors of many types
        raise Unavailable(f"hf://{owner} refuses or cannot be reached: {one_line(error)}") from error


def connect(place: str, hosts: Sequence[str]) -> _Hub:
    """Return the store of an owner. Raise ValueError unless ``place`` is one name."""
    if not place or "/" in place:
        raise ValueError(f"hf://{place} is no owner, expected hf://OWNER; each bundle is a repository of theirs")
    return _Hub(place, hosts)
