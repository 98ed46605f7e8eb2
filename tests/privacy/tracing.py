"""Run a command under strace, and list the addresses outside this machine that it or its children talk to.

The processes run outside pytest with an empty home, because NNCF switches its telemetry off under pytest or in CI.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hnas.export.device.privacy import SWITCHES
from tests.conftest import NO_WEIGHTS, need

ROOT = Path(__file__).resolve().parents[2]
STRACE = ("strace", "-f", "--seccomp-bpf", "-s", "256", "-e", "trace=network", "-o")
TRAIN = ("--recipe", "images", "--data", "photos", "--epochs", "1")
_CONNECTION = re.compile(
    r"(?:connect|sendto|sendmsg|sendmmsg|bind)\(.*?(?:inet_addr|inet_pton\(AF_INET6, )\(?\"([^\"]+)\""
)
_LOCAL = re.compile(r"(?:::ffff:)?127\.|::1$|0\.0\.0\.0$|::$|::ffff:0\.0\.0\.0$")


def _strace_works() -> bool:
    command = ("strace", "-f", "-e", "trace=network", "true")
    return (
        shutil.which("strace") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


# With one of these MLflow and others send nothing by themselves.
_SIGNS_OF_CI = (
    *("CI", "GITHUB_ACTIONS", "CIRCLECI", "GITLAB_CI", "JENKINS_URL", "TRAVIS", "TF_BUILD", "BITBUCKET_BUILD_NUMBER"),
    *("CODEBUILD_BUILD_ARN", "BUILDKITE", "TEAMCITY_VERSION", "CLOUD_RUN_EXECUTION"),
    *("RUNBOT_HOST_URL", "RUNBOT_BUILD_NAME", "RUNBOT_WORKER_ID"),
)


def require_strace() -> None:
    """Skip the test where strace does not work; fail it where HNAS_REQUIRE lists strace, as .ci/run does."""
    if not _strace_works():
        need("strace", "strace is missing or may not trace here; apt-get install strace")


def outside(folder: Path, home: str = "home", **more: str) -> dict[str, str]:
    """Return an environment without our switches and without signs of pytest or CI, with an empty home."""
    hidden = (*SWITCHES, *_SIGNS_OF_CI, "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "XDG_CACHE_HOME")
    environment = {name: value for name, value in {**os.environ, **more}.items() if name not in hidden}
    path = os.pathsep.join(map(str, (ROOT / "src", folder, NO_WEIGHTS)))
    return environment | {"HOME": str(folder / home), "PYTHONPATH": path}


def traced(
    folder: Path,
    *command: str,
    home: str = "home",
    codes: Sequence[int] = (0,),
    before: Sequence[str] = (),
    **more: str,
) -> list[str]:
    """Return the addresses outside this machine that ``python command`` and its children talk to.

    ``home``: the folder below ``folder`` that is the home.
    ``codes``: the exit codes that are allowed.
    ``before``: words before strace. ``more``: variables of the environment.
    """
    trace = folder / "trace"
    words = [*before, *STRACE, str(trace), sys.executable, *command]
    done = subprocess.run(
        words, cwd=folder, env=outside(folder, home, **more), capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode in codes, done.stderr[-2000:]
    return addresses(trace)


def addresses(trace: Path) -> list[str]:
    """Return the addresses outside this machine in a file that strace wrote; that of a name server is one."""
    found = _CONNECTION.findall(trace.read_text(errors="replace"))
    return [address for address in found if not _LOCAL.match(address)]


def entry(function: str, *arguments: str) -> Sequence[str]:
    """Return the words after ``python`` that run a command as its entry point does."""
    module, _, name = function.rpartition(".")
    return ("-c", f"import sys; from {module} import {name}; sys.exit({name}(sys.argv[1:]))", *arguments)


def deploy(*arguments: str) -> Sequence[str]:
    """Return the words after ``python`` that run hnas-deploy."""
    return entry("hnas.cli.deploy_main", *arguments)


def sends(folder: Path, commands: Sequence[Sequence[str]], codes: Sequence[int] = (0, 1, 4)) -> dict[str, list[str]]:
    """Run commands one after another, and return the addresses of each that is not silent.

    ``codes``: the exit codes that are allowed. A command may fail a check (1) or decide nothing (4).
    """
    found = {" ".join(command): traced(folder, *command, codes=codes) for command in commands}
    return {command: seen for command, seen in found.items() if seen}


def left_in(folder: Path) -> list[str]:
    """Return the files in the home that are not in the cache of hnas."""
    home = folder / "home"
    files = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    return [path for path in files if not path.startswith(".cache/hnas/")]
