"""The half of `export` that runs on a device, as one file: a Python with numpy and a runtime is all that it needs."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

_HERE = Path(__file__).parent
_MODULES = (
    *("__init__", "artifact", "errors", "frames", "machine", "schema", "serving", "signals", "signature", "storing"),
    *("cudart", "trtexec"),  # of runtimes.tensorrt
)
_MAIN = """import runpy, sys
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@cache
def program() -> bytes:
    """A zip file that ``python3 FILE MODULE`` runs, as ``python3 -m MODULE`` would; equal sources give equal bytes."""
    sources = [_HERE / f"{name}.py" for name in _MODULES] + sorted((_HERE / "runtimes").glob("*.py"))
    texts = {"__main__.py": _MAIN} | {f"export/{file.relative_to(_HERE)}": file.read_text("utf-8") for file in sources}
    buffer = io.BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(ZipInfo(name), text, ZIP_DEFLATED)  # a bare ZipInfo is dated 1980
    return buffer.getvalue()
