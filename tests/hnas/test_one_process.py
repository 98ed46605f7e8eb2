"""One process alone: it communicates with nobody, and errors of its group are one line."""

from __future__ import annotations

import socket

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hnas import distributed, recipes
from hnas.cli import training
from hnas.ops.conv import BatchNorm
from hnas.strategies import sandwich
from hnas.supernet import Supernet
from hnas.training.loop import Schedule, TrainingOptions, train
from tests.hnas import tiny
from tests.hnas.test_distributed import STEPS, alone, apart, images, weights


def test_one_process_takes_none_of_the_paths_of_several(monkeypatch):
    plain = weights()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("one process has nobody to talk to")

    for name in ("all_reduce", "broadcast", "init_process_group"):
        monkeypatch.setattr(torch.distributed, name, never)
    monkeypatch.setattr(distributed, "batch_norm", never)
    with alone(), distributed.group():
        assert apart(weights(), plain) == 0
    with alone(WORLD_SIZE="1", RANK="0", LOCAL_RANK="0"), distributed.group():  # torchrun --nproc-per-node 1
        assert apart(weights(), plain) == 0
        assert (distributed.rank(), distributed.world(), distributed.mean(2.5)) == (0, 1, 2.5)


def test_a_norm_of_one_process_is_torchs_own():
    x, _ = images()
    norm = BatchNorm(6)
    with distributed.together():
        assert torch.equal(norm(x), F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps))


def test_bf16_computes_in_bfloat16_and_learns():
    kinds: set[torch.dtype] = set()

    class Spy:
        def __getattr__(self, name: str):
            return getattr(tiny.task(), name)

        def loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
            kinds.add(outputs.dtype)
            return tiny.task().loss(outputs, labels, teacher)

    net = Supernet(tiny.space())
    hooked: list[torch.dtype] = []
    skeleton = net.skeleton(net.space.largest)
    skeleton.get_submodule("classifier").register_forward_hook(lambda _, __, out: hooked.append(out.dtype))
    train(net, Spy(), sandwich.pick, Schedule(((1, 0.1),)), TrainingOptions(precision="bf16"))
    assert hooked == [torch.bfloat16]
    assert kinds == {torch.float32}
    assert all(p.dtype == torch.float32 for p in net.parameters())
    with pytest.raises(ValueError, match="no precision 'fp8' to train in; known: fp32, bf16"):
        train(net, tiny.task(), sandwich.pick, STEPS, TrainingOptions(precision="fp8"))


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    with pytest.raises(ValueError, match="a batch of 16 images does not divide among 3 processes; change the batch"):
        distributed.batch(tiny.task(), 0)


def test_the_command_knows_the_devices_without_torch():
    assert tuple(distributed.BACKENDS) == training._DEVICES


def test_devices_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="no device 'tpu' to train on; known: cpu, cuda"), distributed.group("tpu"):
        pass
    with (
        alone(LOCAL_RANK="1"),
        pytest.raises(ValueError, match="process 1 of this machine needs a GPU of its own; it has 1"),
        distributed.group("cuda"),
    ):
        pass


@pytest.mark.parametrize(
    ("device", "backend", "place", "chosen"), [("cuda", "nccl", "cuda:1", [1]), ("cpu", "gloo", "cpu", [])]
)
def test_gpus_communicate_through_nccl_and_cpus_through_gloo(monkeypatch, device, backend, place, chosen):
    asked, gpus = [], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", gpus.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **_: asked.append(name))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: asked.append("left"))
    with alone(LOCAL_RANK="1", WORLD_SIZE="2"), distributed.group(device):
        assert (asked, gpus) == ([backend], chosen)
        assert distributed.device() == torch.device(place)
    assert asked == [backend, "left"]


def test_a_reader_that_is_killed_at_any_moment_is_one_line():
    with (
        alone(),
        pytest.raises(distributed.RankLost, match=r"a process that reads images has ended: .*--resume") as caught,
        distributed.group(),
    ):
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Terminated. \nMore.")
    assert "\n" not in str(caught.value)
    with alone(), pytest.raises(RuntimeError, match="another fault"), distributed.group():
        raise RuntimeError("another fault")


def test_processes_that_do_not_come_are_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with (
        alone(**environment),
        pytest.raises(distributed.RankLost, match="rank 0: not all 2 processes have joined") as caught,
        distributed.group(timeout_s=0.5),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_another_process_than_the_first_takes_the_derived_subnet_from_it(monkeypatch):
    words = ["--recipe", "fashion", "--out", "x", "--alone", "derived", "--supernet", "nowhere"]
    monkeypatch.setattr(distributed, "agreed", lambda _: {"depth": 2})
    arch = training._derived(training.make_train_parser().parse_args(words), recipes.load("fashion"))
    assert arch.to_json() == {"depth": 2}
