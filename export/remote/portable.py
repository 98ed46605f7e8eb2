"""Pack the folder `hnas.export.device` as one zip file that any Python 3.8 with numpy and a runtime can run."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

_HALF = Path(__file__).parents[1] / "device"
_MAIN = """import runpy, sys
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@cache
def build_zip() -> bytes:
    """Return the zip file, to be run as ``python3 FILE MODULE``. Equal sources give equal bytes."""
    texts = {"__main__.py": _MAIN, "hnas/__init__.py": "", "hnas/export/__init__.py": ""}
    for file in sorted(_HALF.rglob("*.py")):
        texts[f"hnas/export/device/{file.relative_to(_HALF).as_posix()}"] = file.read_text("utf-8")
    buffer = io.BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(ZipInfo(name), text, ZIP_DEFLATED)  # a bare ZipInfo is dated 1980
    return buffer.getvalue()
