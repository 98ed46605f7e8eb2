"""Journals that survive a kill, complete Pareto fronts, and studies that compute each answer once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnas.cost import Price
from hnas.files import read_json, write_json, write_text
from hnas.journal import Journal, digest
from hnas.pareto import Candidate, dominates, front
from hnas.space import Arch
from hnas.strategies import sandwich
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training.loop import Schedule
from tests.hnas import tiny


@pytest.fixture(autouse=True)
def closing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close every journal that a test opens."""
    opened, start = [], Journal.__init__
    monkeypatch.setattr(Journal, "__init__", lambda self, *given: (opened.append(self), start(self, *given))[1])
    yield
    for journal in opened:
        journal.close()


def refuse() -> None:
    raise AssertionError("the journal has the answer")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file)
    journal.call("a", lambda: 1)
    journal.call("b", lambda: {"x": [1.5, None]})
    return file


def test_a_journal_answers_what_it_has_seen(file):
    journal = Journal(file)
    assert journal.call("a", refuse) == 1
    assert journal.call("b", refuse) == {"x": [1.5, None]}
    assert "a" in journal
    assert "c" not in journal
    assert journal.call("c", lambda: 3) == 3
    assert Journal(file).entries == {"a": 1, "b": {"x": [1.5, None]}, "c": 3}


def test_a_journal_sums_the_time_of_this_run_and_those_before(tmp_path, monkeypatch):
    clock = iter([10.0, 12.5, 20.0, 20.25])
    monkeypatch.setattr("hnas.journal.time.monotonic", lambda: next(clock))
    Journal(tmp_path / "j").call("a", lambda: 1)
    journal = Journal(tmp_path / "j")
    journal.call("a", refuse)
    journal.call("b", lambda: 2)
    assert journal.spent == Journal(tmp_path / "j").spent == 2.75


def test_a_call_within_a_call_is_counted_once(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 6.0])
    monkeypatch.setattr("hnas.journal.time.monotonic", lambda: next(clock))
    journal = Journal()
    journal.call("outer", lambda: journal.call("inner", lambda: 1))
    assert journal.spent == 6.0


def test_a_journal_without_a_file_lives_in_memory():
    journal = Journal()
    assert journal.call("a", lambda: 1) == journal.call("a", refuse) == 1


def test_a_digest_is_that_of_canonical_json_and_no_repr():
    record = {"b": (1, 2.5), "a": Price(1.0, "ms", 1.0, 1.0, "predicted")}
    fields = {"kind": "predicted", "value": 1.0, "unit": "ms", "low": 1.0, "high": 1.0, "basis": ""}
    assert digest(record) == digest({"a": fields, "b": [1, 2.5]}) == "35b1da0524c62840"
    assert digest({"b": [2.5, 1], "a": fields}) != digest(record)
    with pytest.raises(TypeError, match="is no JSON value; a journal key is made of JSON values and records"):
        digest({"a": object()})


def test_work_that_fails_is_not_journalled(file):
    journal = Journal(file)
    with pytest.raises(AssertionError):
        journal.call("c", refuse)
    assert "c" not in Journal(file)


def test_a_line_that_a_kill_cut_is_dropped_wherever_it_was_cut(file):
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        file.write_bytes(whole[:cut])
        journal = Journal(file)
        assert journal.entries == {"a": 1}
        assert journal.call("b", lambda: 2) == 2
        assert Journal(file).entries == {"a": 1, "b": 2}
    file.write_bytes(whole[:1])
    assert Journal(file).entries == {}


@pytest.mark.parametrize("tail", [b"\0" * 4096, b'["c", 1' + b"\0" * 99, b'["c", 1\0\0\0\n', b"\0\0\n\0\0"])
def test_zeros_that_a_power_loss_left_are_removed_with_a_line(file, tail, caplog):
    whole = file.read_bytes()
    file.write_bytes(whole + tail)
    assert Journal(file).entries == {"a": 1, "b": {"x": [1.5, None]}}
    assert "incomplete line, which is removed" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize("at", [3, 6, -16])
def test_damage_in_the_middle_is_refused(file, at):
    content = bytearray(file.read_bytes())
    content[at if at > 0 else content.index(b"\n") + at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"line 1 is not a journal entry, or is damaged"):
        Journal(file)
    assert file.read_bytes() == content


def test_zeros_before_a_good_line_are_damage(file):
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[1])
    with pytest.raises(ValueError, match=r"line 2 is not a journal entry, or is damaged"):
        Journal(file)


def test_a_journal_without_checksums_is_continued(tmp_path):
    (tmp_path / "j").write_bytes(b'["a", 1, 2.5]\n["b", [2], 0.25]\n')
    journal = Journal(tmp_path / "j")
    journal.call("c", lambda: 3)
    assert Journal(tmp_path / "j").entries == {"a": 1, "b": [2], "c": 3}
    (tmp_path / "j").write_bytes(b'["a", 1e999, 2.5]\n')
    with pytest.raises(ValueError, match="line 1"):
        Journal(tmp_path / "j")


def test_a_pipe_is_no_journal(tmp_path):
    os.mkfifo(tmp_path / "j")
    with pytest.raises(ValueError, match="not a plain file"):
        Journal(tmp_path / "j")


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"hello\n",
            b"5\n",
            b'"abc"\n',
            b'{"a": 1, "b": 2, "c": 3.0}\n',
            b"[1, 2, 3.0]\n",
            b'["a"]\n',
            b'["a", 1, "b"]\n',
            b'["a", 1, NaN]\n',
            b'["a", 1, -1.0]\n',
        ),
        *(b"\xff\xfe\n", b"\n", b"\x89PNG", b"{}"),
    ],
)
def test_a_foreign_file_is_refused_and_left_as_it_was(tmp_path, content):
    file = tmp_path / "other"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"journal.*choose another --out") as caught:
        Journal(file)
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == content


# --- fronts -----------------------------------------------------------------------------------------------------------

values = st.integers(0, 6).map(float)


def candidates(pairs: list[tuple[float, float]]) -> list[Candidate]:
    return [Candidate(Arch({"k": k}), {"accuracy": a, "ms": c}) for k, (a, c) in enumerate(pairs)]


@given(st.lists(st.tuples(values, values), max_size=30))
def test_a_front_loses_nothing(pairs):
    found = candidates(pairs)
    kept = front(found, "ms")
    assert all(candidate in found for candidate in kept)
    assert not any(dominates(a, b, "ms") for a in found for b in kept)
    for candidate in found:
        point = candidate.metrics
        assert any(dominates(k, candidate, "ms") or k.metrics == point for k in kept)
    assert [c.metrics["ms"] for c in kept] == sorted({c.metrics["ms"] for c in kept})


def test_of_equal_candidates_the_first_stays_and_those_without_accuracy_are_in_no_front():
    found = candidates([(1, 1), (1, 1)])
    unscored = Candidate(Arch({"k": 9}), {"ms": 0.0})
    assert front([unscored, *found], "ms") == [found[0]]


# --- files ------------------------------------------------------------------------------------------------------------


def test_json_files_are_whole_or_as_before(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    assert read_json(file) == {"a": 1}
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(file, "half")
    assert read_json(file) == {"a": 1}


# --- studies ----------------------------------------------------------------------------------------------------------


def price(value: float) -> Price:
    return Price(value, "ms", value, value, "predicted")


def test_a_study_prices_and_scores_each_architecture_once(tmp_path):
    asked = []
    costs = {"ms": lambda arch: asked.append(arch) or price(float(arch["resolution"]))}
    supernet, task = Supernet(tiny.space()), tiny.task()
    arch = supernet.space.smallest
    first = Study(supernet, task, costs, Journal(tmp_path / "j")).score(arch)
    again = Study(supernet, task, costs, Journal(tmp_path / "j"))
    again.accuracy = refuse
    assert again.score(arch) == first
    assert again.price(arch, "ms") == price(8.0)
    assert asked == [arch]


@pytest.mark.parametrize("foreign", ["5", "null", "{}", '{"value": 1.0}'])
def test_a_changed_price_in_a_journal_is_one_line(tmp_path, foreign):
    supernet, task = Supernet(tiny.space()), tiny.task()
    arch, costs = supernet.space.smallest, {"ms": lambda _: price(1.0)}
    Study(supernet, task, costs, Journal(tmp_path / "j")).price(arch, "ms")
    (line,) = (tmp_path / "j").read_text().splitlines()
    key, _, seconds, _ = json.loads(line)
    (tmp_path / "j").write_text(f'["{key}", {foreign}, {seconds}]\n')
    with pytest.raises(ValueError, match=f"the journal holds no price under {key}; start afresh in another --out"):
        Study(supernet, task, costs, Journal(tmp_path / "j")).price(arch, "ms")


def test_a_score_before_training_is_not_the_answer_after_it():
    study = Study(Supernet(tiny.space()), tiny.task())
    arch = study.supernet.space.largest
    before = study.score(arch)
    study.train(sandwich.pick, Schedule(((25, 0.1),)))
    assert study.score(arch).metrics["accuracy"] == study.accuracy(arch) != before.metrics["accuracy"]


def test_initial_weights_are_those_before_training():
    study = Study(Supernet(tiny.space(), seed=5), tiny.task())
    arch = study.supernet.space.smallest
    before = {name: t.detach().clone() for name, t in study.weights(arch).items()}
    study.train(sandwich.pick, Schedule(((1, 0.1),)))
    initial = study.weights(arch, "initial")
    assert all(initial[name].equal(before[name]) for name in before)
    assert not all(study.weights(arch)[name].equal(before[name]) for name in before)
    with pytest.raises(ValueError, match="weights at 'later'; known: initial, now"):
        study.weights(arch, "later")
