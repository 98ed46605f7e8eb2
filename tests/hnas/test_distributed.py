"""Two processes that train together equal one process with the whole batch. One process alone communicates with nobody.

One real pair of gloo processes runs every part of ``paired`` once; the tests look at what it left behind.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hnas import distributed
from hnas.files import read_tensors, write_tensors
from hnas.sampling.draws import relax
from hnas.space import Space
from hnas.strategies import proxylessnas, sandwich
from hnas.study import Study
from hnas.supernet import Supernet
from hnas.training import checkpoint as checkpoints
from hnas.training import loop as training
from hnas.training.loop import CheckpointOptions, Observer, Schedule, TrainingOptions, train
from hnas.training.step import SubnetPath
from tests.conftest import LIMIT_S
from tests.hnas import tiny

ROOT = Path(__file__).resolve().parent.parent.parent
# Each norm communicates twice in a pass, which is slow on a busy machine: several steps, but few.
STEPS, FEW = Schedule(((4, 0.1),)), Schedule(((2, 0.1),))
CLOSE = 1e-5


def rivals(space: Space, rng: Random, progress: float = 0.0) -> Sequence[SubnetPath]:
    """Return paths whose architecture depends on losses: all ranks must choose the same one."""
    archs = [space.sample(rng) for _ in range(3)]
    return SubnetPath(space.largest, teaches=True), SubnetPath(archs[0], rivals=tuple(archs[1:]), weight=0.5)


def gated(logits: nn.Parameter) -> training.Pick:
    """Return paths whose gates are trained together with the weights."""

    def pick(space: Space, rng: Random, progress: float) -> Sequence[SubnetPath]:
        arch = space.sample(rng)
        slot = next(slot for slot in space.slots if f"{slot}.op" in arch)
        both = space.choices[f"{slot}.op"].options[:2]
        return (SubnetPath(relax(space, arch, {slot: both}), {slot: logits.softmax(0)}),)

    return pick


def weights(pick: training.Pick = sandwich.pick, net: Supernet | None = None, **options) -> dict[str, Tensor]:
    net = net or Supernet(tiny.space())
    plain = {key: options.pop(key) for key in ("combine", "precision") if key in options}
    train(net, tiny.task(), pick, options.pop("schedule", STEPS), TrainingOptions(**plain), **options)
    return {name: parameter.detach() for name, parameter in net.union.named_parameters()}


def with_gates() -> dict[str, Tensor]:
    logits = nn.Parameter(torch.tensor([0.3, -0.2]))
    return {**weights(gated(logits), extra={"logits": logits}, schedule=FEW), "extra": logits.detach()}


def in_turns() -> dict[str, Tensor]:
    extra = proxylessnas.extra(tiny.space())
    found = weights(partial(proxylessnas.pick, extra=extra, warmup=0.0), extra=extra, schedule=FEW)
    return {**found, **{slot: logits.detach() for slot, logits in extra.items()}}


def images() -> tuple[Tensor, Tensor]:
    """Return a batch [8, 6, 5, 5] whose mean is large compared with its deviation, and weights of the outputs."""
    generator = torch.Generator().manual_seed(3)
    return 50 + torch.randn(8, 6, 5, 5, generator=generator), torch.randn(8, 6, 5, 5, generator=generator)


def normalised(x: Tensor, weigh: Tensor, norm: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a norm and the gradients of input, weight and bias."""
    x, weight, bias = (t.clone().requires_grad_() for t in (x, torch.linspace(0.5, 2, 6), torch.linspace(-1, 1, 6)))
    y = norm(x, weight, bias)
    (y * weigh).sum().backward()
    return {"y": y.detach(), "x": x.grad, "weight": weight.grad, "bias": bias.grad}


def whole(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, 1e-5)


def shared(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return distributed.batch_norm(x, weight, bias, 1e-5)


@contextmanager
def alone(**environment: str) -> Iterator[None]:
    """Remove the variables that torchrun sets, and set those of ``environment``."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in environment:
            os.environ.pop(name)
        os.environ.update(before)


def interrupted(file: Path, net: Supernet) -> None:
    """Stop a run after two steps, with a checkpoint after each step."""

    def stop(done: int, loss: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    before, checkpoints.SECONDS = checkpoints.SECONDS, -1.0
    try:
        weights(net=net, checkpoint=CheckpointOptions(file), observer=Observer(stop))
    except KeyboardInterrupt:
        pass
    finally:
        checkpoints.SECONDS = before


def failure_of(call: Callable[[], object]) -> str:
    """Return the type and text of the error that ``call`` raises."""
    try:
        return f"no error: {call()}"
    except (IndexError, ValueError, distributed.RankLost) as error:
        return f"{type(error).__name__}: {error}"


def paired(out: Path) -> None:
    """Run one of the two processes; the last part ends the second process."""
    said: dict[str, object] = {}
    saved: list[str] = []
    write = checkpoints.write_tensors
    checkpoints.write_tensors = lambda file, *rest: (saved.append(file.name), write(file, *rest))
    with distributed.group(timeout_s=300):
        rank = distributed.rank()

        def keep(name: str, tensors: dict[str, Tensor]) -> None:
            write_tensors(out / f"{name}-{rank}.safetensors", tensors, {})

        keep("sandwich", weights())
        keep("project", weights(combine="project", schedule=FEW))
        keep("rivals", weights(rivals, schedule=FEW))
        keep("gates", with_gates())
        keep("turns", in_turns())
        keep("bf16", weights(precision="bf16", schedule=FEW))
        x, weigh = images()
        keep("norm", normalised(*distributed.shard(x, weigh), shared))
        keep("begin", weights(net=Supernet(tiny.space(), seed=rank), schedule=Schedule(((1, 0.1),))))
        interrupted(out / "checkpoint-1.safetensors", Supernet(tiny.space()))
        again = CheckpointOptions(out / "checkpoint-1.safetensors", resume=True)
        keep("resumed", weights(checkpoint=again))
        said["saved"] = saved
        said["nan"] = str(distributed.mean(float("nan") if rank else 1.0))
        said["agreed"] = distributed.agreed(lambda: {"é": [rank, 0.1]})
        said["failed"] = failure_of(lambda: distributed.agreed(lambda: [][rank]))
        said["total"] = distributed.total(rank + 4)
        if rank == 0:  # the other one does not take part in this
            said["accuracy"] = Study(Supernet(tiny.space()), tiny.task()).accuracy(tiny.space().largest)
        said["begin"] = failure_of(lambda: distributed.begin(rank, []))
        (out / f"said-{rank}.json").write_text(json.dumps(said))
        if rank == 1:
            os._exit(0)
        try:
            weights()
        except distributed.RankLost as error:
            (out / "lost").write_text(str(error))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that two processes have written."""
    out = tmp_path_factory.mktemp("pair")
    code = f"from pathlib import Path; from tests.hnas.test_distributed import paired; paired(Path({str(out)!r}))"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    ended = [process.communicate(timeout=LIMIT_S)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(ended)
    return out


def left(pair: Path, name: str) -> list[dict[str, Tensor]]:
    return [read_tensors(pair / f"{name}-{rank}.safetensors")[0] for rank in (0, 1)]


def said(pair: Path, rank: int) -> dict[str, object]:
    found: dict[str, object] = json.loads((pair / f"said-{rank}.json").read_text())
    return found


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sandwich", {}),
        ("project", {"combine": "project", "schedule": FEW}),
        ("rivals", {"pick": rivals, "schedule": FEW}),
    ],
)
def test_two_processes_give_the_weights_of_one_with_the_whole_batch(pair, name, options):
    first, second = left(pair, name)
    fresh = {name: parameter.detach() for name, parameter in Supernet(tiny.space()).union.named_parameters()}
    assert apart(first, second) == 0
    assert apart(first, weights(**options)) < CLOSE
    assert apart(first, fresh) > 100 * CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "single"), [("gates", with_gates), ("turns", in_turns)])
def test_architecture_parameters_are_the_same_on_all_ranks(pair, name, single):
    first, second = left(pair, name)
    assert apart(first, second) == 0
    assert apart(first, single()) < 10 * CLOSE  # Adam divides by the size of a gradient
    begun = {"extra": torch.tensor([0.3, -0.2])}
    own = {key: logits for key, logits in first.items() if key == "extra" or key in tiny.space().slots}
    assert any(not torch.equal(logits, begun.get(key, torch.zeros_like(logits))) for key, logits in own.items())


@pytest.mark.slow
def test_without_the_moments_of_all_ranks_the_weights_would_differ(pair, monkeypatch):
    """Show that the law above can fail: moments of half a batch give another network."""
    halves = [normalised(x, weigh, whole) for x, weigh in zip(*(t.chunk(2) for t in images()), strict=True)]
    assert max(apart(half, other) for half, other in zip(halves, left(pair, "norm"), strict=True)) > 0.01


@pytest.mark.slow
def test_a_norm_over_ranks_is_the_norm_over_the_whole_batch(pair):
    first, second = left(pair, "norm")
    found = {name: torch.cat([first[name], second[name]]) for name in ("y", "x")}
    found |= {name: first[name] + second[name] for name in ("weight", "bias")}
    x, weigh = images()
    exact = normalised(x.double(), weigh.double(), lambda x, w, b: whole(x, w.double(), b.double()))
    assert apart(found, {name: value.float() for name, value in exact.items()}) < 5e-4  # float32 about a mean of 50


@pytest.mark.slow
def test_bf16_keeps_weights_in_float32_and_the_ranks_together(pair):
    first, second = left(pair, "bf16")
    assert all(t.dtype == torch.float32 and torch.equal(t, second[key]) for key, t in first.items())
    assert 0 < apart(first, weights(schedule=FEW)) < 0.1


@pytest.mark.slow
def test_every_rank_begins_with_the_weights_of_the_first(pair):
    first, second = left(pair, "begin")
    assert apart(first, second) == 0
    assert apart(first, weights(schedule=Schedule(((1, 0.1),)))) < CLOSE


@pytest.mark.slow
def test_interrupted_and_resumed_equals_uninterrupted_and_only_rank_0_writes(pair):
    for resumed, straight in zip(left(pair, "resumed"), left(pair, "sandwich"), strict=True):
        assert apart(resumed, straight) == 0
    assert set(said(pair, 0)["saved"]) == {"checkpoint-1.safetensors"}
    assert said(pair, 1)["saved"] == []


@pytest.mark.slow
def test_numbers_and_answers_are_the_same_on_all_ranks(pair):
    assert [said(pair, rank)["nan"] for rank in (0, 1)] == ["nan", "nan"]
    assert [said(pair, rank)["agreed"] for rank in (0, 1)] == [{"é": [0, 0.1]}] * 2
    assert [said(pair, rank)["total"] for rank in (0, 1)] == [9, 9]


@pytest.mark.slow
def test_a_failure_of_rank_0_is_the_failure_of_all(pair):
    assert said(pair, 0)["failed"] == "IndexError: list index out of range"
    assert said(pair, 1)["failed"] == "RankLost: rank 1: rank 0 failed: list index out of range"


@pytest.mark.slow
def test_one_rank_evaluates_without_the_others(pair):
    assert said(pair, 0)["accuracy"] == Study(Supernet(tiny.space()), tiny.task()).accuracy(tiny.space().largest)


@pytest.mark.slow
def test_ranks_that_would_start_at_different_steps_are_refused(pair):
    expected = "ValueError: the ranks would start at the steps 0, 1; --out must be a folder that every machine sees"
    assert [said(pair, rank)["begin"] for rank in (0, 1)] == [expected, expected]


@pytest.mark.slow
def test_a_rank_that_dies_is_one_line_and_no_hang(pair):
    line = (pair / "lost").read_text()
    assert line.startswith("rank 0: another process has ended or does not answer: ")
    assert line.endswith("; the same command with --resume continues")
    assert "\n" not in line
