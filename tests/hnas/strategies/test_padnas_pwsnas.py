"""PAD-NAS and PWSNAS from end to end: stages, drops, splits, the last search, and a killed run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice

import pytest

from hnas import strategies
from hnas.benchmarks.papers import tabular
from hnas.journal import Journal
from hnas.sampling import draws as paths
from hnas.shrinking.edits import replay
from hnas.shrinking.loop import StageTraining
from hnas.space import Choice, Space
from hnas.strategies import darts, evolution, padnas, pwsnas, spos
from hnas.strategies.evolution import EvolutionOptions, Window
from hnas.strategies.padnas import PadNasOptions
from hnas.strategies.pwsnas import PwsNasOptions
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.tasks.classification import Classification, keep_for_alpha
from hnas.training.loop import Schedule
from tests.hnas import tiny
from tests.hnas.planted import BAD, digits, known, latency, one_line

STEP = Schedule(((1, 0.05),))


# --- PAD-NAS ----------------------------------------------------------------------------------------------------------

PAD = PadNasOptions(evaluations=60, population=12, ranks=3, force=True)
INSIDE = {"latency_ms": Window(high=3.6)}


def staged(method, steps: int) -> StageTraining:
    return StageTraining(method.schedules(steps), spos.pick)


def test_padnas_drops_what_no_good_architecture_takes():
    study, log = known(), []
    found = list(padnas.search(study, study.supernet.space, replace(PAD, windows=INSIDE), log=log))
    assert [space.size < before.size for before, space in zip(study.spaces, study.spaces[1:], strict=False)] == [
        True
    ] * 2
    assert BAD in [(edit.choice, edit.option) for edit in log]
    assert all(edit.score <= 0.01 for edit in log)
    assert not any(c.arch.get(BAD[0]) == BAD[1] for c in found)
    assert all(c.arch in study.spaces[-1] and c.metrics["latency_ms"] <= 3.6 and "accuracy" in c.metrics for c in found)


def test_padnas_in_stages_differs_from_one_shot():
    """The last search is in a smaller space, unlike that of plain single path training."""
    study = known()
    space = study.supernet.space
    options = EvolutionOptions(INSIDE, evaluations=60, population=12, reject=True)
    plain = {c.arch for c in evolution.search(study, space, options)}
    pruned = {c.arch for c in padnas.search(study, space, replace(PAD, windows=INSIDE))}
    assert any(arch not in study.spaces[-1] for arch in plain)
    assert all(arch in study.spaces[-1] for arch in pruned)


def test_padnas_stages_are_the_papers():
    stages = padnas.schedules(2400, 0.5)
    assert [s.steps for s in stages] == [1200, 800, 400]
    assert [s.cycles[0][1] for s in stages] == pytest.approx([0.5, 0.1, 0.1])
    assert sum(s.steps for s in padnas.schedules(1001)) == 1001
    with pytest.raises(ValueError, match="5 steps cannot be divided as 120:80:40"):
        padnas.schedules(5)


def test_padnas_trains_its_supernet(tmp_path):
    """Without fakes, killed and resumed: the same candidates, and nothing is trained twice."""
    space, options, training = digits(), replace(PAD, evaluations=8), staged(padnas, 6)
    whole = list(padnas.search(real(space), space, options, training=training))
    part = real(space, tmp_path)
    list(islice(padnas.search(part, space, options, training=training), 2))
    part.journal.close()
    again = real(space, tmp_path)
    assert list(padnas.search(again, space, options, training=training)) == whole
    again.journal.close()


def real(space: Space, folder=None) -> Study:
    journal = Journal(folder / "journal.jsonl") if folder else Journal()
    return Study(Supernet(space), tiny.task(), {"latency_ms": latency}, journal, folder=folder)


# --- PWSNAS -----------------------------------------------------------------------------------------------------------

PWS = PwsNasOptions(evaluations=10, population=6, samples=20)


def test_pwsnas_shrinks_splits_and_searches(tmp_path):
    space, log = digits(), []
    small = paths.keep_types(space, dict.fromkeys(space.slots, ("identity", "conv1", "conv3")))
    study = real(space)
    options = replace(PWS, until=30)
    whole = list(pwsnas.search(study, small, options, training=staged(pwsnas, 4), log=log))
    left = replay(log, small)
    assert left.size <= 30
    assert {edit.kind for edit in log} == {"drop", "split"}
    assert all(c.arch in left for c in whole)
    first, part = list(log), real(space, tmp_path)
    log.clear()
    list(islice(pwsnas.search(part, small, options, training=staged(pwsnas, 4), log=log), 3))
    part.journal.close()
    log.clear()
    again = real(space, tmp_path)
    assert list(pwsnas.search(again, small, options, training=staged(pwsnas, 4), log=log)) == whole
    again.journal.close()
    assert log == first
    assert again.supernet.splits == study.supernet.splits != {}


def test_pwsnas_without_un_sharing_is_angle_based_shrinking_alone():
    space, log = digits(), []
    study = real(space)
    options = replace(PWS, until=200, p_max=None)
    list(pwsnas.search(study, space, options, training=staged(pwsnas, 2), log=log))
    assert {edit.kind for edit in log} == {"drop"}
    assert len(log) % 5 == 0, "as many a stage as there are types"
    assert study.supernet.splits == {}


@pytest.mark.parametrize("fit", [6, 31, 121])
def test_pwsnas_keeps_the_operations_that_a_window_needs(fit):
    study = known()
    space = study.supernet.space
    prices = sorted(latency(arch).value for arch in tabular.all_members(space))
    window = {"latency_ms": Window(high=prices[fit - 1])}
    options = PwsNasOptions(windows=window, evaluations=10, population=4, p_max=None, force=True)
    found = list(pwsnas.search(study, space, options))
    assert study.spaces[-1].size < space.size
    assert found
    assert all(c.metrics["latency_ms"] <= prices[fit - 1] for c in found)


def test_pwsnas_measures_from_later_weights_once_enough_is_gone(monkeypatch):
    space, references = digits(), []
    from hnas.shrinking.evidence import angle

    true = angle.scores
    monkeypatch.setattr(
        angle, "scores", lambda *a, basis, **k: references.append(basis.reference) or true(*a, basis=basis, **k)
    )
    options = replace(PWS, until=20, drop=2, restart=3, p_max=None)
    list(pwsnas.search(real(space), space, options, training=staged(pwsnas, 2)))
    assert references[:2] == [None, None]
    assert references[2] is not None
    assert all(reference is references[2] for reference in references[2:])


def test_pwsnas_lets_a_host_go_on_in_what_is_left():
    study, picks = known(), []
    train = study.train
    study.train = lambda pick, schedule, **k: picks.append((pick, schedule, k["space"])) or train(pick, schedule, **k)
    host = paths.draw_exclusive
    options = replace(PWS, until=60, p_max=None)
    list(pwsnas.search(study, study.supernet.space, options, host=StageTraining([STEP], host)))
    assert picks[-1][:2] == (host, STEP)
    assert picks[-1][2].size <= 60
    assert host not in [pick for pick, _, _ in picks[:-1]]


def test_pwsnas_hosts_a_strategy_with_logits_in_what_is_left():
    whole = tiny.task()
    task = Classification(keep_for_alpha(whole.splits, 0.5), whole.preprocessing, 16, flip=False, shift=1)
    study = Study(Supernet(digits()), task, {"latency_ms": latency})
    extra = darts.extra(study.supernet.space)
    options = replace(PWS, until=60, p_max=None)
    host = StageTraining([STEP], partial(darts.pick, extra=extra, warmup=0.0), extra)
    list(pwsnas.search(study, study.supernet.space, options, training=staged(pwsnas, 4), host=host))
    left = study.space
    assert left.size <= 60 < study.supernet.space.size
    for slot, logits in extra.items():
        assert len(logits) == len(paths.slot_types(left, slot))
        assert len(logits) == 1 or bool(logits.any())


def test_pwsnas_stages_and_end_are_the_papers():
    first, *later = islice(pwsnas.schedules(1000, 0.25), 4)
    assert (first.steps, [s.steps for s in later]) == (1000, [50] * 3)
    assert pwsnas.members_left(digits()) == 9
    big = {f"{k}.op": Choice(tuple(range(7))) for k in range(21)}
    assert pwsnas.members_left(Space("big", {}, big, None, None, lambda _: (), lambda _: None)) == 823543
    assert pwsnas.members_left(Space("huge", {}, {**big, "x.op": Choice(tuple(range(99)))}, *[None] * 4)) == 10**6


OPTIONS = {"padnas": PadNasOptions, "pwsnas": PwsNasOptions}


def searched(method: str, study: Study, space: Space, **options):
    return strategies.load(method).search(study, space, OPTIONS[method](**options))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["padnas", "pwsnas"])
@pytest.mark.parametrize("case", ["window", "foreign", "nan"])
def test_bad_input_is_one_line_and_loses_nothing(method, case):
    study = known()
    space, windows, message = study.supernet.space, INSIDE, None
    if case == "window":
        windows, message = {"latency_ms": Window(high=0.5)}, r"no architecture meets latency_ms in \[-inf, 0.5\]"
    elif case == "foreign":
        space, message = tiny.space(), "'hybrid_vision' is not part of the study's space 'tabular_digits': resolution=8"
    else:
        next(iter(study.supernet.union.parameters())).data.view(-1)[0] = float("nan")
        message = "holds NaN or infinite weights"
    before = study.snapshot()
    with pytest.raises(ValueError, match=message) as caught:
        list(searched(method, study, space, windows=windows, evaluations=10, population=4))
    assert one_line(caught)
    assert all(weight.equal(before[name]) or case == "nan" for name, weight in study.snapshot().items())
    assert len(study.spaces) == (case == "nan"), "what can be known before training is said before training"


@pytest.mark.parametrize("method", ["padnas", "pwsnas"])
def test_a_space_of_one_architecture_is_trained_and_answered(method):
    space = digits()
    lone = space.alone(space.largest)
    study = known(lone)
    assert [c.arch for c in searched(method, study, lone, evaluations=5, population=4)] == [space.largest]
    assert len(study.spaces) == 1
    with pytest.raises(ValueError, match="no architecture meets latency_ms") as caught:
        list(searched(method, study, lone, windows={"latency_ms": Window(high=0.5)}, evaluations=5))
    assert one_line(caught)


def test_padnas_needs_a_number_of_evaluations():
    study = known()
    with pytest.raises(ValueError, match="give evaluations"):
        list(padnas.search(study, study.supernet.space, PadNasOptions(evaluations=None, seconds=1.0)))
