"""Test that the card labels every figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hnas.export.bundle.card import model_card
from hnas.export.bundle.manifest import (
    Data,
    Latency,
    Prediction,
    Speedup,
)
from tests.export.bundle.test_bundle import a_bundle, a_manifest


def test_the_card_labels_every_number(tmp_path: Path) -> None:
    text = (a_bundle(tmp_path).path / "README.md").read_text("utf-8")
    for piece in (
        "# hybrid_vision-7f3a",
        "accuracy, top-1, test split, n=2000, of the artifact itself | 90.90% (95 % interval 89.60% to 92.10%)",
        "latency, measured, p50, batch 1, 1 thread(s), int8 | 0.21 ms (95 % interval 0.2 to 0.23), p90 0.3, p99 0.4",
        ", n=400, ",
        "on A CPU \\| of 2026 (2 cores, Linux x86_64)",
        "latency, predicted | 0.3 ms (band 0.15 to 0.6)",
        "speedup, measured, against largest subnet, fp32, same backend | 2.40x (95 % interval 2.20 to 2.60); 5 proc",
        "hnas-deploy --target onnxruntime-cpu --seed 0",
        "hnas-bench check .",
        "0 shirt, 1 Schuh ß",
        "- `artifact/model.onnx`",
        "- `manifest.json`",
        "Apache-2.0 (weights)",
    ):
        assert piece in text


def test_a_prediction_states_its_power_mode_and_what_its_band_rests_on() -> None:
    forecast = Prediction(0.3, 0.15, 0.6, basis="outside what I know: 5 GFLOP", power="MAXN_SUPER")
    latency = Latency("predicted", 0.3, 0.15, 0.6, 1, 1, 0, confidence=None, predicted=forecast)
    text = model_card(a_manifest(latency=latency, speedup=None))
    assert "predicted by a model of the device in power mode MAXN_SUPER; nothing was run on it" in text
    assert "nothing was run on it; outside what I know: 5 GFLOP" in text


def test_a_predicted_number_is_never_called_measured() -> None:
    predicted = Latency("predicted", 3, 1.5, 6, 1, 1, 0)
    speedup = Speedup(2, 1, 4, "the largest subnet", "predicted")
    build = {"command": "trtexec --onnx=artifact/model.onnx", "tensorrt": "10.3"}
    text = model_card(a_manifest(latency=predicted, speedup=speedup, build=build))
    assert "measured" not in text
    assert "nothing was run on it" in text
    assert "trtexec" in text


def metadata(text: str) -> dict[str, object]:
    """Return the metadata of a card as YAML reads it."""
    yaml = pytest.importorskip("yaml")
    _, front, _ = text.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(front)
    return found


def test_the_metadata_is_what_the_hub_reads() -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(model_card(a_manifest(licence="Apache-2.0", base_model="timm/tf_efficientnet_lite0.in1k")))
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "hnas", "image-classification")
    assert data.tags == ["hnas", "onnxruntime", "int8", "onnxruntime-cpu"]
    assert data.base_model == "timm/tf_efficientnet_lite0.in1k"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.909, "test")
    assert card.text.strip().startswith("# hybrid_vision-7f3a")


def test_what_is_not_known_is_left_out() -> None:
    found = metadata(model_card(a_manifest(accuracy=None, task="a task of its own", licence="")))
    assert found["license"] == "unknown"
    assert not {"pipeline_tag", "metrics", "model-index", "base_model"} & found.keys()
    assert metadata(model_card(a_manifest()))["license"] == "other"  # a sentence is no identifier of the Hub


def test_no_text_of_a_manifest_adds_a_key() -> None:
    evil = 'x"\nlicense: mit\n---\n# owned\n- a: &a [*a]\u2028\x85'
    text = model_card(a_manifest(target=evil, data=replace(a_manifest().data, name=evil)))
    found = metadata(text)
    assert found["license"] == "other"
    assert evil in found["tags"]
    assert set(found) == set(metadata(model_card(a_manifest())))


@pytest.mark.parametrize("name", ["x", "a/b/c", "a b/c", "../../x y", "a/" + "b" * 97])
def test_a_base_model_is_a_name_of_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match="expected OWNER/NAME"):
        a_manifest(base_model=name)


@pytest.mark.parametrize(
    "name", ["\U0001f600 \u00df", "a\nb: c", "\x00\x1b\x7f\x85", "\u2028\ufeff\ufffe", '"\\', "\U000e0041"]
)
def test_every_text_comes_back_from_the_metadata(name: str) -> None:
    found = metadata(model_card(a_manifest(data=Data(name, {}))))
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert ("\U0001f600" in model_card(a_manifest(data=Data(name, {})))) == (name[0] == "\U0001f600")
