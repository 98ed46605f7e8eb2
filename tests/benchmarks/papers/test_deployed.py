"""C6: the LSTM of a runtime is that of torch, and its operator is in the file. C5: all compute is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install 'hnas[papers]'")

from hnas.benchmarks.papers import deployed_steps, grown_images, grown_plan, own_lstm
from hnas.benchmarks.papers.claims import StudyPlan
from hnas.benchmarks.papers.supernets import costs
from hnas.cost.flops import parameters
from hnas.export.device.artifact import Artifact
from hnas.export.remote.worker import Worker

PLAN = StudyPlan().smallest
RUNTIMES = {"onnxruntime": "onnx", "openvino": "openvino", "tflite": "ai_edge_litert"}


@pytest.mark.parametrize("backend", RUNTIMES)
def test_the_lstm_of_a_runtime_is_that_of_torch(tmp_path, backend):
    pytest.importorskip(RUNTIMES[backend])
    lstm = own_lstm.lstm_of_size(3, 2, 500, seed=0)
    path, kind = own_lstm.write_own_lstm(lstm, backend, tmp_path)
    rows = np.random.default_rng(0).normal(size=(3, 1, 3)).astype(np.float32)
    given = own_lstm.first_inputs(lstm, backend, rows[0])
    assert kind in deployed_steps._checked(path, kind, lstm, given)
    h = c = torch.zeros(1, lstm.cell.hidden_size)
    with Worker(Artifact.read(path)) as worker, torch.no_grad():
        for row in rows:  # LiteRT's operator keeps the state; the others get it back
            y, *state = worker(row.reshape(given[0].shape), *given[1:])
            given = [given[0], *state]
            wanted, h, c = lstm(torch.from_numpy(row), h, c)
            np.testing.assert_allclose(y.reshape(1, -1), wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_a_file_without_the_operator_or_with_other_weights_is_refused(tmp_path):
    pytest.importorskip("ai_edge_litert")
    lstm = own_lstm.lstm_of_size(3, 2, 500, seed=0)
    path, kind = own_lstm.write_own_lstm(lstm, "tflite", tmp_path)
    given = own_lstm.first_inputs(lstm, "tflite", np.ones((1, 3), np.float32))
    with pytest.raises(RuntimeError, match=f"does not run LSTM but {kind}, "):
        deployed_steps._checked(path, "LSTM", lstm, given)
    with torch.no_grad():
        lstm.cell.bias_hh.add_(0.1)
    with pytest.raises(RuntimeError, match="the file of the LSTM is wrong by "):
        deployed_steps._checked(path, kind, lstm, given)


def test_the_lstm_has_about_as_many_weights_as_asked_for():
    for features, outputs, weights in ((3, 3, 4350), (95, 95, 64_318)):
        assert parameters(own_lstm.lstm_of_size(features, outputs, weights, 0)) == pytest.approx(weights, rel=0.02)


def test_a_slower_or_worse_artifact_has_the_sign_of_a_loss():
    assert deployed_steps._saved_time([{"ratio": 2.0}, {"ratio": 0.5}]) == [0.5, -1.0]
    results = [{"network": -0.5, "precisions": {"int8": {"score": score}}} for score in (-0.55, -0.45)]
    assert deployed_steps._lost_score(results, "int8") == pytest.approx([0.1, -0.1])


def test_the_compute_of_a_growth_includes_the_small_network_and_the_others_spend_as_much():
    grown = grown_plan._grown_part(PLAN, 0, (0.1, 0.1))
    known = grown_images.grown_images(None, 0, grown.setting)
    space = grown_plan._space(PLAN)
    least = costs(space, space.smallest)["macs"]
    assert known["before"] == grown.setting.before * least > 0
    assert known["compute"] > known["before"] + grown.setting.steps * least, "the network has grown"
    assert costs(space, space.smallest)["params"] < known["weights"] <= grown_plan._most(PLAN)
    for arm in (grown_plan._ALONE, grown_plan._LITTLE):
        other = grown_plan._other_part(PLAN, 0, arm, known, 0.1)
        found = grown_images.fixed_images(None, 0, other.setting)
        assert found["compute"] == found["steps"] * costs(space, space.arch(found["arch"]))["macs"]
        assert abs(found["compute"] - known["compute"]) <= found["compute"] / found["steps"] / 2, "to the nearest step"
    anew = grown_plan._other_part(PLAN, 0, grown_plan._UNTRAINED, known, 0.1).setting
    assert anew.before == 0
    assert anew.steps > grown.setting.steps


def test_a_random_network_has_the_weights_of_the_budget_and_each_seed_another():
    space, most = grown_plan._space(PLAN), grown_plan._most(PLAN)
    drawn = [grown_plan._random_arch(PLAN, seed) for seed in range(2)]
    assert drawn[0] == grown_plan._random_arch(PLAN, 0)
    assert drawn[0] != drawn[1]
    assert all(0.9 * most <= costs(space, space.arch(arch))["params"] <= most for arch in drawn)
