"""Ask git for this commit, and which runs are of a commit or older: ``runs_until("main", runs, folder)``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnas.benchmarks.gate.history import Recorded

_REVISIONS = ("GITHUB_SHA", "CI_COMMIT_SHA")
_SECONDS = 60.0


def revision_here(folder: Path) -> str:
    """Return the commit that a CI system names, or that git has in ``folder``.

    Empty: there is no git or no commit, or a file that git knows was changed since the commit.
    """
    named = next(filter(None, map(os.environ.get, _REVISIONS)), "")
    if named:
        return named
    changed = _git(folder, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return (_git(folder, "rev-parse", "--verify", "--quiet", "HEAD") or "") if changed == "" else ""


def runs_until(ref: str, recorded: Sequence[Recorded], folder: Path) -> list[Recorded]:
    """Return the runs of the commit ``ref`` and of the commits before it. Those of the nearest commit are last.

    ref: a branch, a tag or a commit.
    folder: a folder of the repository.

    Raises:
        ValueError: git has no such commit, or no run is of it or of one before it.
    """
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if not commit:
        raise ValueError(f"--baseline is {ref!r}, which is no file, and git knows no such commit in {folder}")
    listed = (_git(folder, "rev-list", "--topo-order", commit) or commit).split()
    distance = {each: place for place, each in enumerate(listed)}
    found = [run for run in recorded if run.revision in distance]
    if not found:
        told = "run the suite there with --history first; a clone for a job needs all commits (fetch-depth: 0)"
        raise ValueError(f"the history has no run of {ref} ({commit[:12]}) or of a commit before it; {told}")
    return sorted(found, key=lambda run: -distance[run.revision])


def _git(folder: Path, *words: str) -> str | None:
    """Return what git prints; None if it is missing or fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
