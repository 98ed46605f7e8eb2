"""Write the model card of a bundle, in Markdown. ``model_card(manifest)``."""

from __future__ import annotations

import json

from hnas.export.bundle.front_matter import front_matter
from hnas.export.bundle.manifest import Manifest
from hnas.export.bundle.snippets import CPP_BUILD, cpp_snippet, model_server_config, runtime_snippet, triton_config
from hnas.export.device.artifact import Artifact
from hnas.export.device.records import JSON
from hnas.export.onnx.source import describe_origin

MANIFEST, CARD = "manifest.json", "README.md"


def model_card(manifest: Manifest, artifact: Artifact | None = None) -> str:
    """Return the model card: metadata for the Hugging Face Hub, then the text that `describe` returns."""
    return f"{front_matter(manifest)}\n\n{describe(manifest, artifact)}"


def describe(manifest: Manifest, artifact: Artifact | None = None) -> str:
    """Return what a bundle holds, in Markdown. It states how each figure was determined.

    artifact: the artifact of the bundle, for the program that runs it without hnas; None: no such program.
    """
    sections = [f"# {manifest.name}", _what(manifest), "## Figures", _figures(manifest), "## Use", _use(manifest)]
    sections += [] if artifact is None else _without_hnas(manifest, artifact)
    found = [each.line() for each in (manifest.slowdown, manifest.mixed) if each is not None]
    if found:
        sections += ["## Precision", "\n".join(f"- {' '.join(line.split())}" for line in found)]
    if manifest.build is not None:
        rows = "\n".join(f"- {key}: {_plain(value)}" for key, value in manifest.build.items())
        sections += ["## Build on the device", rows]
    if manifest.labels:
        sections += ["## Classes", ", ".join(f"{i} {label}" for i, label in enumerate(manifest.labels))]
    files = "\n".join(f"- `{name}`" for name in sorted([*manifest.files, MANIFEST]))
    licence = manifest.licence or "None stated; it depends on the weights and the data. Ask whoever made this bundle."
    sections += ["## Reproduce", *_reproduce(manifest), "## Files", files, "## Licence", licence]
    return "\n\n".join(sections) + "\n"


def _reproduce(manifest: Manifest) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    seeds = ", ".join(f"{name} {seed}" for name, seed in manifest.seeds.items())
    command = f"```bash\n{manifest.reproduce}\n```"
    made = f"Made {manifest.created} with {versions}; seeds: {seeds or 'none'}."
    data = [f"Data: {manifest.data.name}; the digests of its splits are in `{MANIFEST}`."] if manifest.data else []
    return [command, made, *data]


def _what(manifest: Manifest) -> str:
    text = f"A network for {manifest.task}, in {manifest.precision}, run by {manifest.backend} on `{manifest.target}`."
    if manifest.input is not None:
        shape = " x ".join(map(str, manifest.input.shape))
        text += f" Input: {shape}, {manifest.input.dtype}, {manifest.input.layout}."
        if manifest.input.preprocessing is not None:
            text += f" Preprocessing: {_plain(manifest.input.preprocessing)}."
    if found := describe_origin(manifest.source):
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
    if manifest.load is not None:
        rows.append(("load while it was measured", manifest.load.line()))
    rows.append(("size of the model files", f"{manifest.size_bytes / 1e6:.3f} MB"))
    rows.append(("grade: as float, close, or degraded", manifest.verification.grade))
    rows.append(("verified against the module", manifest.verification.line()))
    table = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)
    return f"| figure | value |\n|---|---|\n{table}"


def _latency(manifest: Manifest) -> str:
    x = manifest.latency
    text = f"{x.value:.3g} {x.unit} ({_trust(x.confidence)} {x.low:.3g} to {x.high:.3g})"
    if x.kind == "predicted":
        known = x.predicted
        basis = "" if known is None or not known.basis else f"; {known.basis}"
        mode = "" if known is None or not known.power else f" in power mode {known.power}"
        return f"{text}; predicted by a model of the device{mode}; nothing was run on it{basis}"
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
    load = f'runner = export.load("{manifest.artifact}")\noutputs = runner(*inputs)  # numpy arrays'
    python = f"from hnas import export\n\n{load}"
    return "\n".join(["```bash", *lines, "```", "", "```python", python, "```"])


def _without_hnas(manifest: Manifest, artifact: Artifact) -> list[str]:
    """Return the sections on other programs that open the folder: Python with the runtime alone, and servers."""
    sections = []
    if program := runtime_snippet(manifest, artifact):
        told = "In this folder, with numpy and the runtime alone."
        sections += [f"## Use without hnas, with {artifact.backend}", told, f"```python\n{program}\n```"]
    if program := cpp_snippet(manifest, artifact):
        told = "As `run.cpp` in another folder: hnas refuses a bundle that has more files than its manifest."
        built = "OpenVINO's Python package has the headers and the library:"
        code = f"```cpp\n{program}\n```\n\n{built}\n\n```bash\n{CPP_BUILD}\n```"
        files = (
            "`./run BUNDLE x.bin` takes a file for each input, with raw values as `tofile` of a numpy array writes "
            "them. It writes `output0.bin` and so on likewise."
        )
        sections += [f"## Use without hnas, in C++ with {artifact.backend}", told, code, files]
    if config := triton_config(manifest, artifact):
        name = artifact.model.name
        told = f"`config.pbtxt` of a model repository, with `{manifest.artifact}/{name}` as `1/{name}`:"
        sections += ["## Triton", told, f"```protobuf\n{config}\n```"]
    if config := model_server_config(manifest, artifact):
        told = f"`config.json`, with `{manifest.artifact}/{artifact.model.name}` and its `.bin` in `/models/net/1`:"
        sections += ["## OpenVINO Model Server", told, f"```json\n{config}\n```"]
    return sections


def _plain(value: JSON) -> str:
    """Return a string as it is, and any other value as compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
