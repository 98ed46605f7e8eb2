"""Each kind of evidence finds the operation that was made bad; the control does not."""

from __future__ import annotations

from functools import partial
from random import Random

import numpy as np
import pytest
import torch

from hnas.pareto import Candidate
from hnas.sampling import draws as paths
from hnas.shrinking import evidence
from hnas.shrinking.edits import ShrinkRules, drop_worst
from hnas.shrinking.evidence import angle, chance, magnitude, one_shot_accuracy, pareto_frequency, rank_sum
from hnas.space import Arch, Space
from hnas.strategies import evolution
from hnas.strategies.evolution import EvolutionOptions, Window
from hnas.study import Study
from tests.hnas import tiny
from tests.hnas.planted import BAD, digits, known, one_line, planted, turned, worst

# --- the other kinds --------------------------------------------------------------------------------------------------


def test_one_shot_accuracy_finds_what_costs_accuracy():
    study = known()
    assert worst(one_shot_accuracy.scores(study, study.supernet.space, samples=4)) == BAD


def test_one_shot_accuracy_judges_all_by_as_many_subnets():
    study, asked = known(), []
    study.truth = lambda arch: asked.append(arch) or 0.5
    one_shot_accuracy.scores(study, study.supernet.space, samples=3)
    for slot in study.supernet.space.slots:
        taken = [arch[f"{slot}.op"] for arch in asked]
        assert {taken.count(option) for option in set(taken)} == {3}


def test_pareto_frequency_finds_what_no_good_architecture_takes():
    study = known()
    windows = {"latency_ms": Window(high=3.5)}
    for reject in (False, True):
        options = EvolutionOptions(windows, evaluations=120, population=20, reject=reject)
        search = partial(evolution.search, options=options)
        found = pareto_frequency.scores(study, study.supernet.space, search=search, windows=windows, ranks=4)
        assert found[BAD] == 0.0
        for slot in study.supernet.space.slots:
            shares = [share for (name, _), share in found.items() if name == f"{slot}.op"]
            assert sum(shares) == pytest.approx(1.0)


def test_selection_goes_by_rank_and_keeps_equals_together():
    points = [(1.0, 0.5), (1.0, 0.5), (2.0, 0.6), (2.0, 0.5), (3.0, 0.5)]
    found = [Candidate(Arch({"k": k}), {"latency_ms": c, "accuracy": a}) for k, (c, a) in enumerate(points)]
    ranks = [pareto_frequency.select(found, "latency_ms", ranks) for ranks in (1, 2, 9)]
    assert [sorted(c.arch["k"] for c in chosen) for chosen in ranks] == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_of_an_absent_slot_only_those_count_that_have_it():
    space = tiny.space()
    study = known(space)
    optional = [name for name, choice in space.choices.items() if name.endswith(".op") and choice.when]
    archs = [space.sample(Random(seed)) for seed in range(12)]
    found = pareto_frequency.scores(
        study, space, search=lambda *_, **__: [study.score(arch) for arch in archs], ranks=99
    )
    for name in optional:
        having = [arch[name] for arch in archs if name in arch]
        assert 0 < len(having) < len(archs)
        assert found[name, having[0]] == having.count(having[0]) / len(having)


def test_magnitude_finds_what_adds_nothing():
    space = digits()
    study = turned(space)
    with torch.no_grad():
        for name, p in study.supernet.union.named_parameters():
            if ".out." in name:
                p.fill_(0.01 if name.startswith("blocks.2.conv1.") else 1.0)
    for standardised in (False, True):
        found = magnitude.scores(study, space, standardised=standardised)
        assert worst(found) == BAD
        assert (("blocks.0.op", "identity") in found) == standardised


def test_magnitude_of_architecture_parameters_is_their_softmax():
    space = digits()
    study = turned(space)
    logits = {slot: torch.arange(5.0) for slot in space.slots}
    logits["blocks.2"] = torch.tensor([0.0, -9.0, 0.0, 0.0, 0.0])
    found = magnitude.scores(study, space, logits=logits)
    assert worst(found) == BAD
    assert sum(found["blocks.0.op", o] for o in space.choices["blocks.0.op"].options) == pytest.approx(1.0)


def test_magnitude_scores_no_divided_option_where_there_are_logits():
    space = tiny.space(divisions=("convnext+mbconv", "attention+fusedconv"))
    logits = paths.new_logits(space)
    slot = next(
        slot for slot in space.slots if len(paths.slot_types(space, slot)) < len(space.choices[f"{slot}.op"].options)
    )
    poor = paths.slot_types(space, slot)[1]
    with torch.no_grad():
        logits[slot][1] = -9.0
    found = magnitude.scores(turned(space), space, logits=logits)
    assert worst(found) == (f"{slot}.op", poor)
    assert {kind for name, kind in found if name == f"{slot}.op"} == set(paths.slot_types(space, slot))
    left, [edit] = drop_worst(space, found, ShrinkRules(1))
    assert (edit.choice, edit.option) == (f"{slot}.op", poor)
    divided = {option for option in space.choices[edit.choice].options if paths.DIVIDED in str(option)}
    assert divided <= set(left.choices[edit.choice].options), "what has no score stays"


def test_the_rank_sum_finds_what_is_poor_by_every_evidence():
    space = digits()
    study = planted(space, *BAD)
    with torch.no_grad():
        for name, p in study.supernet.union.named_parameters():
            if ".out." in name:
                p.fill_(0.5 if name.startswith("blocks.2.conv1.") else 1.0)
            if name.startswith("blocks.0.conv3.out."):
                p.fill_(0.1)  # worse in magnitude, but it has turned
    parts = {"angle": {"form": "block"}, "magnitude": {}}
    assert worst(magnitude.scores(study, space)) == ("blocks.0.op", "conv3")
    found = rank_sum.scores(study, space, evidence.load, parts=parts)
    assert worst(found) == BAD
    assert ("blocks.0.op", "identity") not in found, "neither part scores it"


def test_ranks_are_means_where_scores_are_equal(monkeypatch):
    monkeypatch.setattr(
        chance, "scores", lambda *_: {("a.op", k): v for k, v in zip("wxyz", (1, 2, 2, 3), strict=True)}
    )
    found = rank_sum.scores(turned(digits()), digits(), evidence.load, parts={"chance": {}})
    assert list(found.values()) == [0.0, 1.5, 1.5, 3.0]


def test_chance_is_no_evidence():
    study = planted(digits(), *BAD)
    hits = [worst(chance.scores(study, study.supernet.space, seed=seed)) == BAD for seed in range(40)]
    assert 0 <= sum(hits) <= 8, "one in twenty is expected"
    assert chance.scores(study, study.supernet.space, seed=1) == chance.scores(study, study.supernet.space, seed=1)


# --- bad input --------------------------------------------------------------------------------------------------------

OPTIONS = {
    "pareto_frequency": {"search": partial(evolution.search, options=EvolutionOptions(evaluations=12, population=6))},
    "angle": {"samples": 4},
    "one_shot_accuracy": {"samples": 1},
    "rank_sum": {"load": evidence.load, "parts": {"angle": {"samples": 4}, "chance": {}}},
}


def asked(name: str, study: Study, space: Space):
    return evidence.load(name).scores(study, space, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", evidence.names())
def test_scores_cover_the_slots_that_still_decide(name):
    study = known()
    space = paths.keep_types(study.supernet.space, {"blocks.0": ("conv3",), "blocks.1": ("identity", "conv1")})
    found = asked(name, study, space)
    assert {key[0] for key in found} == {"blocks.1.op", "blocks.2.op", "blocks.3.op"}
    assert set(found) <= {(n, o) for n, choice in space.choices.items() for o in choice.options}
    assert all(np.isfinite(list(found.values())))


@pytest.mark.parametrize("name", evidence.names())
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("one architecture", "has one architecture; there is nothing to score"),
        ("no slot open", "no slot of the space 'hybrid_vision' has two operations left"),
        ("foreign", "'tabular_digits' is not part of the study's space 'hybrid_vision'"),
        (
            "larger",
            "'hybrid_vision' is not part of the study's space 'hybrid_vision': resolution=16 is not an option of it",
        ),
        ("nan", "holds NaN or infinite weights; drop that operation, or go back to the last good checkpoint"),
    ],
)
def test_what_cannot_be_scored_is_one_line(name, case, message):
    space = tiny.space()
    study = known(space)
    if case == "one architecture":
        space = space.alone(space.largest)
        study = known(space)
    elif case == "no slot open":
        space = paths.keep_types(space, {slot: (space.choices[f"{slot}.op"].options[-1],) for slot in space.slots})
    elif case == "foreign":
        space = digits()
    elif case == "larger":
        space = tiny.space(resolutions=(8, 16))
    else:
        next(iter(study.supernet.union.parameters())).data.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=message) as caught:
        asked(name, study, space)
    assert one_line(caught)


def test_nan_in_a_dropped_operation_harms_nobody():
    study = known()
    for p in study.supernet.union.get_submodule("blocks.1.conv3").parameters():
        p.data.fill_(float("nan"))
    space = study.supernet.space
    with pytest.raises(ValueError, match=r"blocks\.1\.conv3\.\S+ holds NaN"):
        asked("angle", study, space)
    assert all(np.isfinite(list(asked("angle", study, space.without("blocks.1.op", "conv3")).values())))


def test_a_window_that_no_architecture_meets_is_one_line():
    study = known()
    for reject, message in (
        (True, "no architecture meets latency_ms in .*drawn ones have"),
        (False, "no architecture that"),
    ):
        windows = {"latency_ms": Window(high=0.5)}
        options = EvolutionOptions(windows, evaluations=12, population=6, reject=reject)
        search = partial(evolution.search, options=options)
        with pytest.raises(ValueError, match=message) as caught:
            pareto_frequency.scores(study, study.supernet.space, search=search, windows=windows)
        assert one_line(caught)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: angle.scores(s, s.supernet.space, form="cooked"),
            "no form 'cooked' of the angle; known: raw, block",
        ),
        (lambda s: angle.angles_of(s, [], form="cooked"), "no form 'cooked'"),
        (
            lambda s: rank_sum.scores(s, s.supernet.space, evidence.load, parts={}),
            "parts is empty; name the evidence to sum",
        ),
        (
            lambda s: rank_sum.scores(s, s.supernet.space, evidence.load, parts={"angles": {}}),
            "no evidence 'angles'; known: angle",
        ),
        (lambda s: s.snapshot("then"), "a snapshot at 'then'; known: initial, now"),
    ],
)
def test_a_wrong_option_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(known())
    assert one_line(caught)
