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
# First version -> options. Sources: the command lines of trtexec in the documentation of TensorRT 8.5 and 8.6, and the
# migration pages from 8 to 10 and from 10 to 11: 11 has no flags for precisions, and --stronglyTyped does nothing.
_OPTIONS = (
    ((11, 0), (*_ALWAYS, "skipInference", "stronglyTyped")),
    ((10, 0), (*_ALWAYS, *_PRECISIONS, "skipInference", "stronglyTyped")),
    ((8, 6), (*_ALWAYS, *_PRECISIONS, "skipInference", "buildOnly")),
    ((8, 0), (*_ALWAYS, *_PRECISIONS, "buildOnly")),
)
_SCRIPT = """#!{python}
import json, os, sys
folder, known = {folder!r}, {known!r}
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
with open(os.path.join(folder, "calls"), "a") as file:
    file.write(" ".join(sorted(sys.argv[1:])) + "\\n")
banner = "TensorRT.trtexec [TensorRT v{version}]{build} # trtexec " + " ".join(sys.argv[1:])
print("&&&& RUNNING " + banner)

def fail(*lines):
    for line in lines:
        print("[11/22/2026-10:00:00] [E] " + line)
    print("&&&& FAILED " + banner)
    sys.exit(1)

for name in options:
    if name not in known:
        fail("Unknown option: --" + name + " " + options[name])
if "onnx" in options:
    if open(options["onnx"], "rb").read() == b"bad":
        fail("Error[4]: cannot build this", "more")
    open(options["saveEngine"], "w").write("engine of " + os.path.basename(options["onnx"]))
    open(options["timingCacheFile"], "w").write("tactics")
    open(options["exportLayerInfo"], "w").write({layers!r})
if "loadEngine" in options:
    import numpy
    name, _, path = options["loadInputs"].partition(":")
    x = numpy.fromfile(path, numpy.float32)
    if "exportOutput" in options:
        values = ", ".join(map(str, numpy.maximum(x, 0)))
        out = '[ {{ "name" : "y"\\n, "dimensions" : "1x3"\\n, "values" : [ %s ]\\n}} ]' % values
        open(options["exportOutput"], "w").write(out)
    if "exportTimes" in options:
        runs = [dict(startH2dMs=i, endH2dMs=i + .125, startComputeMs=i + .25, endComputeMs=i + .75, computeMs=.5,
                     startD2hMs=i + .75, endD2hMs=i + .8125)
                for i in range(int(options["iterations"]) + 5)]
        json.dump(runs, open(options["exportTimes"], "w"))
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
            folder=str(folder),
            known=known,
            version=version,
            build=" [b33]" if own >= (10, 0) else "",
            layers=json.dumps(layers),
        )
    )
    script.chmod(0o755)
    return folder / "calls"
