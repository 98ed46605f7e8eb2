"""Test networks of transformers, which return a ModelOutput and take a cache, on the three CPU backends.

The configurations are tiny and the weights random: nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hnas import export
from hnas.export import backends
from tests.conftest import need

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("default")  # a newer transformers renames arguments and says so
IDS = torch.tensor([[7, 3, 9, 21, 4, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0]])


def bert() -> tuple[Any, dict[str, Any]]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    net = transformers.BertModel(transformers.BertConfig(vocab_size=50, max_position_embeddings=32, **sizes))
    return net, {"input_ids": IDS, "attention_mask": MASK}


def gpt2() -> tuple[Any, dict[str, Any]]:
    """Return a decoder in the middle of a text: one token, and the cache of the tokens before it."""
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    net = transformers.GPT2LMHeadModel(config).eval()
    cache = transformers.DynamicCache()
    rng = torch.Generator().manual_seed(0)
    for layer in range(2):
        cache.update(torch.randn(1, 2, 6, 16, generator=rng), torch.randn(1, 2, 6, 16, generator=rng), layer)
    mask = torch.ones(1, 7, dtype=torch.int64)
    return net, {"input_ids": IDS[:, :1], "attention_mask": mask, "past_key_values": cache}


def t5() -> tuple[Any, dict[str, Any]]:
    config = transformers.T5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config), {"input_ids": IDS, "attention_mask": MASK}


CACHE = [f"layers.{layer}.{part}" for layer in (0, 1) for part in ("keys", "values")]
EXPECTED = {
    bert: (["input_ids", "attention_mask"], ["last_hidden_state", "pooler_output"]),
    t5: (["input_ids", "attention_mask"], ["last_hidden_state"]),
    gpt2: (["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in CACHE)], ["logits", *CACHE]),
}


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_names_stay_and_values_are_right(tmp_path: Path, backend: str, kind: Any) -> None:
    need(backend, backends.load(backend).missing())
    torch.manual_seed(0)
    net, examples = kind()
    net.eval()
    artifact = export.compile(net, examples, device=f"{backend}-cpu", path=tmp_path / "net")
    inputs, outputs = EXPECTED[kind]
    assert [tensor.name for tensor in artifact.inputs] == inputs
    names = [tensor.name for tensor in artifact.outputs]
    # An output with the name of an input ends in _out; whether it has that name depends on the versions.
    plain_names = [name.removesuffix("_out") for name in names]
    assert [name.partition(".")[2] if "layers" in name else name for name in plain_names] == outputs
    run = export.load(artifact)
    cache = examples.pop("past_key_values", None)
    plain: dict[str, Any] = {name: value.numpy() for name, value in examples.items()}
    if cache is not None:
        layers = [{"keys": layer.keys.numpy(), "values": layer.values.numpy()} for layer in cache.layers]
        plain["past_key_values"] = {"layers": layers}
    found = run(**plain)
    with torch.no_grad():
        expected = net(**examples, **({} if cache is None else {"past_key_values": cache}))
    first = outputs[0]
    np.testing.assert_allclose(found[first], expected[first].numpy(), rtol=1e-3, atol=1e-4)
    if cache is not None:  # the module has written into it
        for name in names[1:]:
            layer, part = name.removesuffix("_out").split(".")[-2:]
            np.testing.assert_allclose(
                found[name], getattr(cache.layers[int(layer)], part).numpy(), rtol=1e-3, atol=1e-4
            )


def test_a_cache_is_calibrated(tmp_path: Path) -> None:
    need("onnxruntime", backends.load("onnxruntime").missing())
    torch.manual_seed(0)
    net, examples = gpt2()
    options = export.CompileOptions(recover="none")
    artifact = export.compile(
        net,
        examples,
        device="onnxruntime-cpu",
        precision="int8",
        calibration=[gpt2()[1] for _ in range(4)],
        path=tmp_path / "net",
        options=options,
    )
    assert artifact.inputs[2].name == "past_key_values.layers.0.keys"
