"""The bundle: one folder with an artifact, perhaps its baseline, a model card, and the manifest that explains both.

``manifest.json`` holds the hash of every other file and one of itself. They show that nothing was changed by accident
or on the way; they do not say who wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hnas.export.bundle.manifest import Accuracy, Data, Input, Latency, Manifest, Mixed, Prediction, Space, Speedup
from hnas.export.device.artifact import RECORD, Artifact, digest_file, verify_files
from hnas.export.device.machine import Machine
from hnas.export.device.records import JSON, check_version, decode, encode, read_json
from hnas.export.onnx.source import made_from

__all__ = [
    "Accuracy",
    "Bundle",
    "Data",
    "Input",
    "Latency",
    "Machine",
    "Manifest",
    "Mixed",
    "Prediction",
    "Space",
    "Speedup",
    "card",
    "read",
    "write",
]

SCHEMA = 1
MANIFEST, CARD = "manifest.json", "README.md"
_BLANK = "0" * 64  # stands where the manifest's own digest will be


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every byte was checked when it was read."""

    path: Path
    manifest: Manifest

    def artifact(self) -> Artifact:
        """The network itself."""
        return Artifact.read(self.path / self.manifest.artifact)

    def baseline(self) -> Artifact | None:
        """What the speedup is against, if the bundle carries it."""
        return None if self.manifest.baseline is None else Artifact.read(self.path / self.manifest.baseline)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the outputs."""
        return self.manifest.labels


def read(path: Path | str) -> Bundle:
    """The bundle in the folder ``path``; hostile until its types, names and hashes have been checked.

    FileNotFoundError if there is no folder. ValueError in one line for an unknown schema, a wrong type (with its place
    in the JSON), a changed, missing or additional file, a name or a link that leaves the folder, an artifact that is
    not what the manifest says.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no bundle at {path}; expected a folder with {MANIFEST}")
    where = path / MANIFEST
    if not where.exists() and (path / "bundle" / MANIFEST).exists():
        raise ValueError(f"{path} is the folder of a run; its bundle is {path / 'bundle'}")
    digest_file(path, MANIFEST)  # a plain file, and no link out of the folder
    value = read_json(where)
    check_version(value, str(where), SCHEMA)
    stated = value.pop("digest", None)
    manifest = decode(Manifest, value, str(where))
    if not isinstance(stated, str) or stated != hashlib.sha256(_seal(where.read_bytes(), stated, _BLANK)).hexdigest():
        raise ValueError(f"{where} was changed after it was written: it does not have the digest that it states")
    extra = sorted(_names(path) - manifest.files.keys() - {MANIFEST})
    if extra:
        raise ValueError(f"{path / extra[0]} is not in the manifest; move it out of the bundle")
    verify_files(path, manifest.files)
    bundle = Bundle(path, manifest)
    _check_artifacts(bundle)
    return bundle


def write(
    path: Path | str,
    manifest: Manifest,
    *,
    artifact: Artifact | Path | str,
    baseline: Artifact | Path | str | None = None,
) -> Bundle:
    """Make the folder ``path`` (absent or empty) a bundle of copies, with the model card; whole or not at all.

    ValueError if something is there already, if it cannot be written, or if the manifest contradicts the artifact.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not empty; choose another folder or remove it")
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        part.chmod(0o755)
        main = _copy(artifact, part / manifest.artifact)
        if baseline is not None:
            manifest = replace(manifest, baseline=manifest.baseline or "baseline")
            assert manifest.baseline is not None
            _copy(baseline, part / manifest.baseline)
        manifest = replace(manifest, size_bytes=main.size_bytes)
        manifest = replace(manifest, files=_digests(part) | {CARD: _BLANK})  # the card lists the files, itself included
        (part / CARD).write_text(card(manifest), "utf-8")
        manifest = replace(manifest, files=_digests(part))
        value = {"schema": SCHEMA, **encode(manifest), "digest": _BLANK}
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        (part / MANIFEST).write_bytes(_seal(text, _BLANK, hashlib.sha256(text).hexdigest()))
        read(part)
        part.rename(path)
    except OSError as error:
        raise ValueError(f"cannot write the bundle {path}: {error.strerror or error}") from None
    finally:
        if part is not None and part.exists():
            shutil.rmtree(part)
    return read(path)


def card(manifest: Manifest) -> str:
    """The model card, Markdown: every number with how it was come by."""
    sections = [f"# {manifest.name}", _what(manifest), "## Figures", _figures(manifest), "## Use", _use(manifest)]
    found = [each.line() for each in (manifest.slowdown, manifest.mixed) if each is not None]
    if found:
        sections += ["## Precision", "\n".join(f"- {' '.join(line.split())}" for line in found)]
    if manifest.build is not None:
        rows = "\n".join(f"- {key}: {_plain(value)}" for key, value in manifest.build.items())
        sections += ["## Build on the device", rows]
    if manifest.labels:
        sections += ["## Classes", ", ".join(f"{i} {label}" for i, label in enumerate(manifest.labels))]
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    seeds = ", ".join(f"{name} {seed}" for name, seed in manifest.seeds.items())
    data = [f"Data: {manifest.data.name}; the digests of its splits are in `{MANIFEST}`."] if manifest.data else []
    command = f"```bash\n{manifest.reproduce}\n```"
    made = f"Made {manifest.created} with {versions}; seeds: {seeds or 'none'}."
    files = "\n".join(f"- `{name}`" for name in sorted([*manifest.files, MANIFEST]))
    licence = manifest.licence or "None stated; it depends on the weights and the data. Ask whoever made this bundle."
    sections += ["## Reproduce", command, made, *data, "## Files", files, "## Licence", licence]
    return "\n\n".join(sections) + "\n"


def _what(manifest: Manifest) -> str:
    text = f"A network for {manifest.task}, in {manifest.precision}, run by {manifest.backend} on `{manifest.target}`."
    if manifest.input is not None:
        shape = " x ".join(map(str, manifest.input.shape))
        text += f" Input: {shape}, {manifest.input.dtype}, {manifest.input.layout}."
        if manifest.input.preprocessing is not None:
            text += f" Preprocessing: {_plain(manifest.input.preprocessing)}."
    if found := made_from(manifest.source):
        text += f" It was {' '.join(found.split())}."
    if manifest.space is not None:
        text += f" It was found in the space `{manifest.space.name}`; its choices are in `{MANIFEST}`."
    return text


def _figures(manifest: Manifest) -> str:
    rows = []
    if manifest.accuracy is not None:
        a = manifest.accuracy
        low, high = a.interval
        row = f"{a.artifact:.2%} (95 % interval {low:.2%} to {high:.2%}); the same network in fp32 {a.subnet_fp32:.2%}"
        row += "" if a.baseline is None else f"; the baseline {a.baseline:.2%}"
        rows.append((f"accuracy, {a.metric}, {a.split} split, n={a.n}, of the artifact itself", row))
    x = manifest.latency
    conditions = f"p{x.percentile}, batch {x.batch}, {x.threads} thread(s), {manifest.precision}"
    rows.append((f"latency, {x.kind}, {conditions}", _latency(manifest)))
    if x.predicted is not None and x.kind == "measured":
        p = x.predicted
        rows.append(("latency, predicted", f"{p.value:.3g} ms (band {p.low:.3g} to {p.high:.3g})"))
    if manifest.speedup is not None:
        s = manifest.speedup
        row = f"{s.value:.2f}x ({_trust(s.confidence)} {s.low:.2f} to {s.high:.2f})"
        row += f"; {s.processes} process(es)" if s.kind == "measured" else ""
        rows.append((f"speedup, {s.kind}, against {s.against}", row))
    rows.append(("size of the model files", f"{manifest.size_bytes / 1e6:.3f} MB"))
    rows.append(("faithful to the module", manifest.verification.line()))
    table = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)
    return f"| figure | value |\n|---|---|\n{table}"


def _latency(manifest: Manifest) -> str:
    x = manifest.latency
    text = f"{x.value:.3g} {x.unit} ({_trust(x.confidence)} {x.low:.3g} to {x.high:.3g})"
    if x.kind == "predicted":
        return f"{text}; a model of the device says so, nothing was run on it"
    tails = "".join(f", {name} {value:.3g}" for name, value in (("p90", x.p90), ("p99", x.p99)) if value is not None)
    return f"{text}{tails}, n={x.n}, on {manifest.machine.cpu} ({manifest.machine.cores} cores, {manifest.machine.os})"


def _trust(confidence: float | None) -> str:
    return "band" if confidence is None else f"{100 * confidence:g} % interval"


def _use(manifest: Manifest) -> str:
    lines = ["hnas-deploy show ."]
    if manifest.input is not None and manifest.input.preprocessing is not None:
        lines.append("hnas-deploy run . --image FILE")
    if manifest.latency.kind == "measured" and manifest.baseline is not None:
        lines.append("hnas-bench check .    # does the speedup hold on this machine?")
    python = f'import export\n\nrunner = export.load("{manifest.artifact}")\noutputs = runner(*inputs)  # numpy arrays'
    return "\n".join(["```bash", *lines, "```", "", "```python", python, "```"])


def _plain(value: JSON) -> str:
    """JSON for a person: strings bare, the rest compact."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _copy(source: Artifact | Path | str, folder: Path) -> Artifact:
    """A copy of an artifact's own files, and of nothing else that lies beside them."""
    artifact = source if isinstance(source, Artifact) else Artifact.read(source)
    for name in artifact.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, folder / name)
    copied = replace(artifact, path=folder)
    copied.write()
    return copied


def _check_artifacts(bundle: Bundle) -> None:
    """ValueError unless the artifacts are listed and are what the manifest says that they are."""
    manifest, where = bundle.manifest, bundle.path / MANIFEST
    for folder in filter(None, (manifest.artifact, manifest.baseline)):
        if f"{folder}/{RECORD}" not in manifest.files:
            raise ValueError(f"{where}: files has no {folder}/{RECORD}")
    artifact = bundle.artifact()
    bundle.baseline()
    stated = (manifest.backend, manifest.precision, manifest.size_bytes)
    found = (artifact.backend, artifact.precision, artifact.size_bytes)
    for name, a, b in zip(("backend", "precision", "size_bytes"), stated, found, strict=True):
        if a != b:
            raise ValueError(f"{where}: {name} is {a!r}, but the artifact's is {b!r}")


def _seal(text: bytes, old: str, new: str) -> bytes:
    """The bytes of a manifest with another digest of its own, which is the last thing in it."""
    head, key, tail = text.rpartition(b'"digest": "')
    return head + key + tail.replace(old.encode(), new.encode(), 1)


def _digests(folder: Path) -> dict[str, str]:
    return {name: digest_file(folder, name) for name in sorted(_names(folder))}


def _names(folder: Path) -> set[str]:
    """Everything in ``folder`` that is not itself a folder, by relative name; links are not followed."""
    return {
        (Path(root) / name).relative_to(folder).as_posix()
        for root, folders, files in os.walk(folder)
        for name in [*files, *(name for name in folders if (Path(root) / name).is_symlink())]
    }
