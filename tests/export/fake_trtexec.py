"""A fake trtexec of some version: the options that this version documents, its files, and max(x, 0) as the engine.

``install(folder, "100300", layers)`` returns the file that records the options of every call.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_ALWAYS = (
    *("help", "onnx", "saveEngine", "loadEngine", "timingCacheFile", "exportLayerInfo", "exportOutput", "exportTimes"),
    *("profilingVerbosity", "memPoolSize", "noTF32", "iterations", "duration", "warmUp", "loadInputs", "shapes"),
    *("minShapes", "optShapes", "maxShapes"),
)
_PRECISIONS = ("fp16", "int8", "precisionConstraints", "layerPrecisions")
# First version -> options. Sources: the command lines of trtexec in the documentation of TensorRT 8.5 and 8.6, the
# migration pages from 8 to 10 and from 10 to 11, and samples/common/sampleOptions.cpp of NVIDIA/TensorRT at 11.1: 11
# keeps --noTF32, has no flags for precisions, and --stronglyTyped does nothing.
_OPTIONS = (
    ((11, 0), (*_ALWAYS, "skipInference", "stronglyTyped", "includeDataTransfers")),
    ((10, 0), (*_ALWAYS, *_PRECISIONS, "skipInference", "stronglyTyped")),
    ((8, 6), (*_ALWAYS, *_PRECISIONS, "skipInference", "buildOnly")),
    ((8, 0), (*_ALWAYS, *_PRECISIONS, "buildOnly")),
)
_SCRIPT = """#!{python}
import json, os, sys
sys.path.insert(0, {root!r})
from tests.export import trtexec_logs as logs
folder, known, version = {folder!r}, {known!r}, {version!r}
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
with open(os.path.join(folder, "calls"), "a") as file:
    file.write(" ".join(sorted(sys.argv[1:])) + "\\n")
banner = logs.banner({digits!r}, ["trtexec", *sys.argv[1:]])
print("&&&& RUNNING " + banner, flush=True)

def fail(lines):
    print("\\n".join(lines), file=sys.stderr)
    print("&&&& FAILED " + banner)
    sys.exit(1)

unknown = [name for name in options if name not in known]
if unknown:
    fail(logs.error(*("Unknown option: --" + name + " " + options[name] for name in unknown)))
if "help" in options:
    sys.exit(0)
print("\\n".join(logs.options(version, options)), flush=True)
if "onnx" in options:
    content = open(options["onnx"], "rb").read()
    if content == b"refused":
        fail(logs.refused(version))
    print("\\n".join(logs.built(version, options)), flush=True)
    if content == b"bad":
        fail([*logs.error("Error[4]: cannot build this", "more"), *logs.failed()])
    open(options["saveEngine"], "w").write("engine of " + os.path.basename(options["onnx"]))
    open(options["timingCacheFile"], "w").write("tactics")
    open(options["exportLayerInfo"], "w").write({layers!r})
if "loadEngine" in options:
    import numpy
    name, _, path = options["loadInputs"].partition(":")
    y = numpy.maximum(numpy.fromfile(path, numpy.float32), 0)[None]
    print("\\n".join(logs.summary(version, int(options["iterations"]))), flush=True)
    if "exportOutput" in options:
        open(options["exportOutput"], "w").write(logs.outputs({{"total": y.sum(), "y": y}}))
    if "exportTimes" in options:
        moves = version < (11, 0) or "includeDataTransfers" in options
        open(options["exportTimes"], "w").write(logs.times(int(options["iterations"]), moves))
print("&&&& PASSED " + banner)
"""


def install(folder: Path, version: str, layers: Any) -> Path:
    """Write ``folder/bin/trtexec`` of a version such as "8602" or "110401"; return the file of its calls."""
    digits = (version[:-4], version[-4:-2]) if len(version) > 4 else (version[0], version[1])
    own = tuple(map(int, digits))
    known = next(options for first, options in _OPTIONS if own >= first)
    script = folder / "bin" / "trtexec"
    script.parent.mkdir(exist_ok=True)
    script.write_text(
        _SCRIPT.format(
            python=sys.executable,
            root=str(Path(__file__).parents[2]),
            folder=str(folder),
            known=known,
            version=own,
            digits=version,
            layers=json.dumps(layers),
        )
    )
    script.chmod(0o755)
    return folder / "calls"
