"""A store on the Hugging Face Hub: each bundle is the model ``OWNER/NAME``. ``connect("owner", ())``.

huggingface_hub finds the token and the address (HF_TOKEN, HF_ENDPOINT), and uploads. Lists and files come through
`Session`, whose sizes and times are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from hnas.export.device.errors import needing, one_line
from hnas.export.zoo.arrival import Incoming, Untrusted, reaching

_HUB = "huggingface.co"
_ITS_FILES = (".huggingface.co", ".hf.co")  # the Hub redirects to its own hosts for large files
_PAGE, _MOST_PAGES = 100, 100  # models that the Hub lists at once; lists that are asked for


class _Hub:
    def __init__(self, owner: str, hosts: Sequence[str]) -> None:
        with needing("zoo"):
            import huggingface_hub

            from hnas.export.zoo.web import Session, check_answer
        self._check: Callable[[Any], None] = check_answer
        self._hub: Any = huggingface_hub
        self._owner = owner
        self._api: Any = huggingface_hub.HfApi(library_name="hnas")
        self._place = urlsplit(self._api.endpoint)
        host = self._place.netloc.lower()
        known = (host, *(_ITS_FILES if host == _HUB else ()), *hosts)
        self._session = Session(known, secure=self._place.scheme == "https")

    def names(self) -> list[str]:
        found: list[str] = []
        query = urlencode({"author": self._owner, "filter": "hnas", "limit": _PAGE})
        url = f"{self._api.endpoint}/api/models?{query}"
        for _ in range(_MOST_PAGES):
            response = self._session.get(url, headers=self._headers())
            self._check(response)
            try:
                found += [str(each["id"]).rpartition("/")[2] for each in json.loads(response.content)]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise Untrusted(f"hf://{self._owner} does not answer as the Hub does: {one_line(error)}") from None
            url = response.links.get("next", {}).get("url", "")
            if not url:
                return sorted(set(found))
            if urlsplit(url)[:2] != self._place[:2]:  # the token goes with it
                raise Untrusted(f"hf://{self._owner} continues its list on another host, {urlsplit(url).netloc[:100]}")
        raise Untrusted(f"hf://{self._owner} lists more than {_MOST_PAGES} pages of models")

    def open(self, name: str, file: str) -> Incoming:
        url = self._hub.hf_hub_url(f"{self._owner}/{name}", file, endpoint=self._api.endpoint)
        return self._session.open(str(url), self._headers())

    def _headers(self) -> dict[str, str]:
        with reaching(f"hf://{self._owner}"):
            return dict(self._hub.utils.build_hf_headers(library_name="hnas"))

    def put(self, name: str, folder: Path, files: Sequence[str]) -> None:
        """Publish in one commit. A new repository is private: its owner makes it public on its page."""
        repository = f"{self._owner}/{name}"
        with reaching(f"hf://{self._owner}"):
            self._api.create_repo(repository, private=True, exist_ok=True)
            kept = {*files, ".gitattributes"}
            left = [each for each in self._api.list_repo_files(repository) if each not in kept]
            changes = [
                *(self._hub.CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in files),
                *(self._hub.CommitOperationDelete(path_in_repo=each) for each in left),
            ]
            self._api.create_commit(repository, changes, commit_message=f"Publish {name}")


def connect(place: str, hosts: Sequence[str]) -> _Hub:
    """Return the store of an owner. Raise ValueError unless ``place`` is one name."""
    if not place or "/" in place:
        raise ValueError(f"hf://{place} is no owner, expected hf://OWNER; each bundle is a repository of theirs")
    return _Hub(place, hosts)
