"""A dry run refuses what the run would refuse, and builds, measures and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hnas import photos


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--out", "/proc/x"), "cannot write to /proc/x: "),
        (("--out", "file/below"), "cannot write to file/below: "),
        (("--out", "full"), "full is in use and holds no run; choose another --out"),
        (("--resume",), "run holds no run to continue; leave out --resume"),
        (("--data", "nowhere"), "no folder nowhere; --data takes "),
        (("--supernet", "nowhere"), "no folder nowhere; --supernet takes "),
        (("--target", "toaster"), "no device 'toaster'"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_dry_run_refuses_what_the_run_refuses(refused, deploy, quick, wrong: tuple[str, ...], says: str, dry: bool):
    Path("file").write_text("")
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("")
    assert says in refused(*deploy, *wrong, *(["--dry-run"] if dry else []))


def test_a_dry_run_builds_and_measures_nothing(call, deploy, quick, monkeypatch):
    from hnas.deployment import search

    for name in ("limited_compiler", "MeasuredLatency"):
        monkeypatch.setattr(search, name, pytest.fail)
    code, out, _ = call(*deploy, "--out", "deep/er/run", "--dry-run")
    assert code == 0
    assert "roughly " in out
    assert photos.tree(quick) == set()
