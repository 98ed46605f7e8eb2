"""A stand-in for the HTTP interface of the Hugging Face Hub: the calls that its client makes, and no others.

It is no Hub: it has neither accounts nor LFS nor Xet, and keeps files in memory.
"""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.export.zoo.servers import Quiet, serving

TOKEN = "hf_test"


class Hub(Quiet):
    """Models by their names, each a mapping from file to content."""

    models: dict[str, dict[str, bytes]]

    def do_GET(self) -> None:  # noqa: N802  # http.server calls it
        words = self.path.partition("?")[0].strip("/").split("/")
        if words == ["api", "models"]:
            self.reply_json([{"id": name, "modelId": name, "tags": ["hnas"]} for name in self.models])
        elif words[:2] == ["api", "models"]:
            self._describe("/".join(words[2:4]), tree="tree" in words)
        elif "resolve" in words and "/".join(words[4:]) in self.models.get("/".join(words[:2]), {}):
            self.reply(self.models["/".join(words[:2])]["/".join(words[4:])])
        else:
            self.reply_json({"error": "Entry not found"}, 404)

    def _describe(self, name: str, *, tree: bool) -> None:
        files = self.models.get(name)
        if files is None:
            self.reply_json({"error": "Repository not found"}, 404)
        elif tree:
            self.reply_json([{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files.items()])
        else:
            self.reply_json({"id": name, "sha": "0" * 40, "siblings": [{"rfilename": path} for path in files]})

    def do_POST(self) -> None:  # noqa: N802
        content = self._content()
        words = self.path.partition("?")[0].strip("/").split("/")
        calls = {
            "validate-yaml": self._validate,
            "create": self._create,
            "preupload": self._ask,
            "commit": self._commit,
        }
        call = next((calls[word] for word in words if word in calls), None)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply_json({"error": "Invalid credentials"}, 401)
        elif call is None:
            self.reply_json({"error": f"the stand-in does not know {self.path}"}, 501)
        else:
            call(content, "/".join(words[2:4]))

    def _validate(self, content: bytes, _: str) -> None:
        assert json.loads(content)["content"].startswith("---\n")
        self.reply_json({"errors": [], "warnings": []})

    def _create(self, content: bytes, _: str) -> None:
        wanted = json.loads(content)
        assert wanted.get("visibility") == "private" or wanted.get("private") is True
        self.models.setdefault(f"{wanted['organization']}/{wanted['name']}", {})
        self.reply_json({"url": f"https://huggingface.co/team/{wanted['name']}", "id": "0"})

    def _ask(self, content: bytes, _: str) -> None:
        asked = json.loads(content)["files"]
        plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
        self.reply_json({"files": [{"path": each["path"], **plain} for each in asked]})

    def _commit(self, content: bytes, name: str) -> None:
        for change in map(json.loads, content.splitlines()):
            value = change["value"]
            if change["key"] == "file":
                self.models[name][value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "deletedFile":
                del self.models[name][value["path"]]
        self.reply_json(
            {"commitUrl": "https://huggingface.co/team/x/commit/0", "commitOid": "0" * 40, "hookOutput": ""}
        )

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return b"".join(iter(self._chunk, b""))

    def _chunk(self) -> bytes:
        found = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return found


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield hf://team on a stand-in of the Hub."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed; pip install 'hnas[zoo]'")
    with serving(type("Handler", (Hub,), {"models": {}})) as address:
        use_hub(monkeypatch, address)
        yield "hf://team"


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let the client talk to another address. It reads its variables when it is imported, so its constants are set."""
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", address)
