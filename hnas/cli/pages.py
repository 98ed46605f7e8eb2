"""The report and the picture that every deployment writes, and the flag ``--png``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnas.deployment.bundle import Deployment


def add_picture(parser: argparse.ArgumentParser) -> None:
    """Add the flag ``--png FILE``."""
    told = "also draw the front into this file: .png, .svg or .pdf (needs matplotlib)"
    parser.add_argument("--png", metavar="FILE.png", help=told)


def check_picture(file: str | None) -> Path | None:
    """Return the file of the picture. Refuse, before anything runs, what cannot be drawn or written.

    Raises:
        ValueError: the folder is missing, or the suffix is another one.
        Unavailable: matplotlib is not installed.
    """
    if file is None:
        return None
    path = Path(file)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--png is {file}, expected a name that ends with .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise ValueError(f"--png is {file}, and there is no folder {path.parent}")
    from hnas.export.device.errors import needing

    with needing("plot"):
        import matplotlib  # noqa: F401
    return path


def show_deployment(found: Deployment, picture: Path | None, *, as_json: bool, wide: bool) -> None:
    """Print the result of a deployment, then write its report, and its picture if one is asked for.

    The result is printed first, because a report may take seconds and may fail.
    """
    from hnas import report
    from hnas.deployment.reporting import write_picture, write_report

    if as_json:
        report.print_json(found.to_json())
    else:
        report.print_deployment(found.to_json(), wide=wide)
    said = [f"report: {write_report(found)}"]
    if picture is not None:
        write_picture(found, picture)
        said.append(f"picture: {picture}")
    if not as_json:
        report.print_lines(said)
