"""Write the metadata of a model card as the Hugging Face Hub reads it: YAML between two lines of three dashes.

``front_matter(manifest)``. Strings are quoted as in JSON, which YAML reads alike, so that no text of a manifest can add
a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from hnas.export.bundle.manifest import Manifest
from hnas.export.device.records import JSON

_PIPELINES = ("image-classification",)  # tasks of the Hub
# Licences that the Hub knows, of those that state-of-the-art weights and data sets have.
_LICENCES = (
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
)


def front_matter(manifest: Manifest) -> str:
    """Return licence, tags, task, base model and the accuracy of a bundle as YAML, with its lines of dashes.

    A licence that the Hub has no name for is "other": the section Licence of the card has its text.
    """
    found: dict[str, JSON] = {"library_name": "hnas", **_licence(manifest.licence)}
    if manifest.task in _PIPELINES:
        found["pipeline_tag"] = manifest.task
    tags = ("hnas", manifest.backend, manifest.precision, manifest.target)
    found["tags"] = list(dict.fromkeys(tags))
    if manifest.base_model:
        found["base_model"] = manifest.base_model
    if manifest.accuracy is not None:
        found["metrics"] = ["accuracy"]
        found["model-index"] = [_result(manifest)]
    return "\n".join(["---", *_lines(found), "---"])


def _licence(text: str) -> dict[str, JSON]:
    plain = text.strip().lower()
    if not plain:
        return {"license": "unknown"}
    return {"license": plain} if plain in _LICENCES else {"license": "other", "license_name": "see-the-section-licence"}


def _result(manifest: Manifest) -> dict[str, JSON]:
    """Return the accuracy of the artifact as an entry of ``model-index``."""
    assert manifest.accuracy is not None
    data = manifest.data.name if manifest.data else "unknown"
    metric = {"type": "accuracy", "name": f"{manifest.accuracy.metric} of the file itself"}
    result: dict[str, JSON] = {
        "task": {"type": manifest.task},
        "dataset": {"name": data, "type": data, "split": manifest.accuracy.split},
        "metrics": [{**metric, "value": manifest.accuracy.artifact}],
    }
    return {"name": manifest.name, "results": [result]}


def _quote(value: JSON) -> str:
    """Return a plain value as JSON that YAML reads alike: printable characters as they are, each other one escaped.

    JSON's own escape of an emoji is two surrogates, which YAML does not join.
    """
    shown = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in shown)


def _lines(value: JSON, indent: str = "") -> list[str]:
    """Return a mapping or a list as lines of YAML."""
    lines: list[str] = []
    pairs = value.items() if isinstance(value, Mapping) else ((None, item) for item in value)
    for key, item in pairs:
        start = f"{indent}- " if key is None else f"{indent}{key}:"
        if not isinstance(item, Mapping | list):
            lines.append(f"{start}{'' if key is None else ' '}{_quote(item)}")
        elif key is None:  # the first line of the item stands behind the dash
            first, *rest = _lines(item, f"{indent}  ")
            lines += [start + first.lstrip(), *rest]
        else:
            lines += [start, *_lines(item, f"{indent}  ")]
    return lines
