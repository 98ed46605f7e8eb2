"""Training and search talk to nobody; several processes under torchrun talk only with each other."""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.privacy.tracing import ROOT, TRAIN, deploy, entry, left_in, require_strace, sends, traced

pytestmark = pytest.mark.slow

HOSTS = "127.0.0.1 localhost {name}\n::1 localhost ip6-localhost ip6-loopback\n"


DATA = ("--data", "photos")
SEARCHING = (
    deploy("--target", "openvino-cpu", "--dry-run"),
    entry("hnas.cli.train_main", *TRAIN, "--out", "net"),
    deploy("--target", "openvino-cpu", "--supernet", "net", *DATA, "--budget", "2evals", "--out", "run"),
    deploy("run", "run/bundle", "--image", "photos/cats/0.png"),
    deploy("verify", "run/bundle", "--supernet", "net", *DATA),
    deploy("score", "--supernet", "net", *DATA, "--subnets", "2"),
)
SERIES = ("--data", "a.csv", "--epochs", "1")
GROWING = (  # a text trains in the same process as a series
    entry("hnas.cli.train_main", "--recipe", "series", *SERIES, "--out", "series"),
    entry("hnas.cli.train_main", "grow", "--supernet", "series", *SERIES, "--max-weights", "6000", "--out", "grown"),
)


def test_training_and_search_send_nothing(folder: Path) -> None:
    require_strace()
    assert sends(folder, SEARCHING) == {}
    assert left_in(folder) == [], "something wrote into the user's home"


def test_series_and_growth_send_nothing(folder: Path) -> None:
    require_strace()
    (folder / "a.csv").write_text("a\n" + "".join(f"{math.sin(step / 3):.4f}\n" for step in range(1000)))
    assert sends(folder, GROWING, (0,)) == {}
    assert left_in(folder) == [], "something wrote into the user's home"


def usual_hosts(folder: Path) -> Sequence[str]:
    """Return words that run a command with an /etc/hosts that names 127.0.0.1, ::1 and this machine, as Debian's does.

    torch asks for the name of each address that it connects to. Where the file has it, the name server is not asked.
    """
    (folder / "hosts").write_text(HOSTS.format(name=os.uname().nodename))
    words = ("unshare", "-m", "sh", "-c", f'mount --bind {folder}/hosts /etc/hosts && exec "$@"', "sh")
    try:
        usable = subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        usable = False
    if not usable:
        pytest.skip("no right to mount a file over /etc/hosts")
    return words


def test_two_processes_under_torchrun_ask_nobody(folder: Path) -> None:
    require_strace()
    images = (ROOT / "hnas/recipes/images.toml").read_text()
    (folder / "even.toml").write_text(re.sub(r"(?m)^batch = .*", "batch = 16", images))  # it divides by two
    train = ("--recipe", "even.toml", "--data", "photos", "--epochs", "1")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "::1", "--nproc-per-node", "2")
    words = (*launcher, "-m", "hnas.cli.train", *train, "--out", "both", "--threads", "1")
    assert traced(folder, *words, before=usual_hosts(folder)) == []
