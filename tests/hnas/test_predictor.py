"""The predictor learns the effect of options from few members, and states how sure it is."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from hnas.predictor import Predictor
from hnas.space import Choice
from tests.hnas.strategies.fake_study import SEPARABLE, FakeStudy, plain

NESTED = plain(
    {
        "op": Choice(("conv", "attention")),
        "conv.kernel": Choice((3, 5, 7), when=("op", ("conv",))),
        "width": Choice((8, 16, 32)),
        "fixed": Choice((1,)),
    }
)


def _drawn(count, space=SEPARABLE, seed=0):
    rng = Random(seed)
    return [space.sample(rng) for _ in range(count)]


def _error(predicted, true):
    return float(np.sqrt(np.mean((predicted - true) ** 2)) / np.std(true))


def test_forty_members_teach_a_sum_over_twelve_choices():
    study, seen, others = FakeStudy(), _drawn(40), _drawn(200, seed=1)
    means, deviations = Predictor(SEPARABLE).fit(seen, list(map(study.search_accuracy, seen))).predict(others)
    true = np.array(list(map(study.search_accuracy, others)))
    assert _error(means, true) < 0.75  # 1: the mean of all
    assert 0.5 < np.mean(np.abs(means - true) / deviations) < 1.2  # 0.8 if the deviations are right


def test_more_members_teach_more():
    study, others = FakeStudy(), _drawn(200, seed=1)
    true = np.array(list(map(study.search_accuracy, others)))
    errors = []
    for count in (10, 40, 120):
        seen = _drawn(count)
        errors.append(
            _error(Predictor(SEPARABLE).fit(seen, list(map(study.search_accuracy, seen))).predict(others)[0], true)
        )
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.3


def test_a_member_that_was_seen_is_known_best():
    study, seen = FakeStudy(), _drawn(20)
    found = Predictor(SEPARABLE).fit(seen, list(map(study.search_accuracy, seen)))
    assert found.predict(seen)[1].max() < found.predict(_drawn(20, seed=2))[1].min()


def test_options_that_are_not_active_count_as_absent():
    archs = [
        NESTED.arch({"op": op, "width": width, "fixed": 1, **({"conv.kernel": kernel} if op == "conv" else {})})
        for op, kernel in (("conv", 3), ("conv", 7), ("attention", None))
        for width in (8, 32)
    ]
    values = [1.0, 2.0, 1.4, 2.4, 3.0, 4.0]
    predictor = Predictor(NESTED).fit(archs, values)
    between = NESTED.arch({"op": "conv", "conv.kernel": 5, "width": 16, "fixed": 1})
    assert predictor.predict(archs)[0] == pytest.approx(values, abs=0.15)
    assert 1.0 < predictor.predict([between])[0][0] < 2.4


def test_unlike_options_are_far_apart():
    def far(*options):
        points = Predictor(NESTED).encode(
            [
                NESTED.arch(dict(zip(("op", "conv.kernel", "width", "fixed"), (*each, 1), strict=True)))
                for each in options
            ]
        )
        return round(float(np.square(points[0] - points[1]).sum()), 6)

    conv = ("conv", 3, 8)
    assert far(conv, conv) == 0
    assert far(conv, ("conv", 5, 8)) == 0.5
    assert far(conv, ("conv", 7, 8)) == far(conv, ("conv", 3, 32)) == 1
    assert far(conv, ("attention", 3, 8)) == far(("conv", 5, 8), ("attention", 3, 8)) == 2  # the kernel is absent too


def test_values_that_are_all_equal_are_predicted():
    means, deviations = Predictor(SEPARABLE).fit(_drawn(5), [0.5] * 5).predict(_drawn(3, seed=1))
    assert means == pytest.approx([0.5] * 3)
    assert (deviations > 0).all()
