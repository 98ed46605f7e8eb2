"""Parts of a study: finished parts are kept and found again, failed ones leave the others, time is estimated."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hnas.benchmarks.papers import parts
from hnas.benchmarks.papers.parts import StudyPart, StudyParts, part
from tests.ending import wait_until_ended


@dataclass(frozen=True)
class Square:
    x: int


def square(images: Path | None, seed: int, setting: Square) -> dict[str, int]:
    if setting.x < 0:
        raise ValueError("x is below 0")
    return {"y": setting.x * setting.x + seed}


def test_a_finished_part_is_not_run_again_and_a_broken_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [part(square, seed, Square(3)) for seed in range(2)]
    StudyParts(tmp_path, None).complete(wanted)
    (tmp_path / f"{wanted[1].name}.json").write_text('{"result": {"y"')
    ran: list[StudyPart] = []
    real = parts.run_part
    monkeypatch.setattr(parts, "run_part", lambda each, *rest: (ran.append(each), real(each, *rest)))
    again = StudyParts(tmp_path, None)
    again.complete(wanted)
    assert ran == [wanted[1]]
    assert [again[each]["y"] for each in wanted] == [9, 10]


def test_another_setting_seed_or_version_is_another_part(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {part(square, 0, Square(3)).name, part(square, 0, Square(4)).name, part(square, 1, Square(3)).name}
    assert part(square, 0, Square(3), work=9.0).name in names
    monkeypatch.setattr(parts, "result_versions", lambda: {"hnas": "next"})
    assert len({*names, part(square, 0, Square(3)).name}) == 4


def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
    found = StudyParts(tmp_path, None)
    bad, good = part(square, 0, Square(-1)), part(square, 0, Square(2))
    with pytest.raises(RuntimeError, match="x is below 0; finished parts are kept"):
        found.complete([bad, good])
    assert good in found
    assert bad not in found


@pytest.mark.slow
def test_processes_give_the_results_of_one(tmp_path: Path) -> None:
    wanted = [part(square, seed, Square(3)) for seed in range(3)]
    found = StudyParts(tmp_path, None, workers=2)
    try:
        found.complete(wanted)
        with pytest.raises(RuntimeError, match="x is below 0"):
            found.complete([part(square, 0, Square(-1))])
    finally:
        found.close()
    assert [found[each]["y"] for each in wanted] == [9, 10, 11]


ENDLESS = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from hnas.benchmarks.papers.parts import end_with_parent
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_process_ends_with_the_one_that_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.kill()
    wait_until_ended(worker)


def test_the_estimate_follows_the_pace_of_the_quick_part(tmp_path: Path) -> None:
    found = StudyParts(tmp_path, None)
    quick, full = part(square, 0, Square(1), work=1.0), [part(square, seed, Square(9), work=50.0) for seed in range(4)]
    found.complete([quick])
    file = tmp_path / f"{quick.name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "seconds": 0.5}))
    found = StudyParts(tmp_path, None, workers=2)
    assert found.estimate(full, [quick]) == pytest.approx(4 * 50 * 0.5 / 2)
