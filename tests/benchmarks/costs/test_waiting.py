"""``python -m hnas.benchmarks.costs.waiting``: both numbers of turns are timed in turn, beside busy programs."""

from __future__ import annotations

import subprocess
import sys

from hnas.benchmarks.costs import waiting


def test_both_are_timed_in_turn_beside_busy_programs(monkeypatch, capsys):
    seen, started = [], []
    seconds = iter([9.0, 1.0, 7.0, 2.0, 8.0, 3.0])
    run = subprocess.Popen

    def start(command, **options):
        started.append(run([sys.executable, "-c", "import time; time.sleep(600)"], **options))
        return started[-1]

    def timed(turns, steps):
        assert [each.poll() for each in started] == [None, None], "two programs run beside it"
        seen.append((turns, steps))
        return next(seconds)

    monkeypatch.setattr(waiting.subprocess, "Popen", start)
    monkeypatch.setattr(waiting, "_seconds", timed)
    assert waiting.main(["--busy", "2", "--steps", "4", "--repeats", "3"]) == 0
    assert seen == [({"GOMP_SPINCOUNT": "300000"}, 4), ({}, 4)] * 3
    assert capsys.readouterr().out.splitlines() == [
        "default of OpenMP: 8.00 s [7.00, 9.00] for 4 steps, 2 busy",
        "hnas: 2.00 s [1.00, 3.00] for 4 steps, 2 busy",
    ]
    assert all(each.poll() is not None for each in started), "the programs beside it have ended"


def test_a_process_says_how_long_its_steps_took():
    assert waiting._seconds({}, 1) > 0
