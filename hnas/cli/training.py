"""The command ``hnas-train``: train a supernet from a recipe and data."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.cli.arguments import Parser
from hnas.cli.completion import script_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from hnas.cost import Cost
    from hnas.deployment.limits import DerivedLimits
    from hnas.hw_profiles import Device
    from hnas.recipes import Recipe
    from hnas.space import Arch
    from hnas.study import Study

_LIMITS = ("target", "max_latency", "max_weights", "max_macs", "max_memory", "max_skips")  # of --alone derived

_DEVICES = ("cpu", "cuda")  # those of hnas.distributed, which imports torch


def make_train_parser() -> Parser:
    """Return the parser."""
    parser = Parser(
        "hnas-train",
        description="Train a supernet from a recipe and a folder of images, a series or a text.",
        epilog="The section [shrink] of a recipe makes the space smaller during training, by evidence or by method = "
        "padnas, pwsnas or pdarts. hnas-deploy --supernet then searches the smaller space. "
        "hnas-train grow --help: grow a small trained network up to a predicted latency or a number of weights.",
    )
    add = parser.add_argument
    add("--recipe", required=True, metavar="NAME", help="fashion, images, imagenet, ... or the path of a .toml file")
    add(
        "--data",
        metavar="PATH",
        help="folder with one sub-folder of images a class (or of IDX files), or a CSV file with path,label; the CSV "
        "file of a series; a text file",
    )
    add("--out", required=True, metavar="DIR", help="folder of the supernet; hnas-deploy --supernet takes it")
    add("--skip-broken", action="store_true", help="leave out images that cannot be read, and count them")
    add("--epochs", type=float, metavar="N", help="total number of epochs (default: as in the recipe)")
    add("--minutes", type=float, metavar="N", help="choose space, resolution and epochs that fit into N minutes here")
    add("--pretrained", metavar="NAME", help="start from the weights of this network of timm or .safetensors file")
    add("--from-scratch", action="store_true", help="start from random weights where the recipe has pretrained ones")
    add("--alone", metavar="ARCH", help="train one subnet by itself: smallest, largest, random:SEED or derived")
    add("--supernet", metavar="DIR", help="with --alone: find the subnet in the space of this trained supernet")
    add("--target", metavar="DEVICE", help="with --alone derived: the device of --max-latency")
    add("--max-latency", metavar="TIME", help="with --alone derived: limit of the latency on the device, e.g. 5ms")
    add("--max-weights", type=int, metavar="N", help="with --alone derived: limit of the number of weights")
    add("--max-macs", type=int, metavar="N", help="with --alone derived: limit of the multiply-accumulates of an image")
    add("--max-memory", metavar="SIZE", help="with --alone derived: limit of weights and activations in fp32, e.g. 2MB")
    add("--max-skips", type=int, metavar="N", help="with --alone derived: at most N slots with an identity")
    add("--seed", type=int, default=0, metavar="N", help="seed of weights, batches and paths (default 0)")
    add("--threads", type=int, metavar="N", help="threads of torch (default: all cores)")
    devices = "cpu (default), or cuda: one GPU for each process of torchrun"
    add("--device", default="cpu", choices=_DEVICES, metavar="D", help=devices)
    add("--resume", action="store_true", help="continue from the last checkpoint")
    add("--tensorboard", action="store_true", help="write event files for TensorBoard into --out")
    add("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_config()
    parser.add_completion(lambda shell: script_of(make_train_parser(), shell))
    return parser


def run_train(parsed: argparse.Namespace) -> int:
    """Run the command. Return its exit code."""
    from hnas import report

    with report.show_training(f"training with {parsed.recipe}") as (advance, say):
        record = train_parsed(parsed, on_step=advance, on_message=say)
    if record is None:
        return 0
    if parsed.json:
        report.print_json(record)
    else:
        report.print_training(Path(parsed.out), record)
    return 0


def train_parsed(
    parsed: argparse.Namespace,
    *,
    on_step: Callable[[int, int, float], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> dict[str, Any] | None:
    """Train as the parsed flags say. Return the record; None in all processes of torchrun but the first.

    on_step: called after each step with (finished steps, steps of the run, loss).
    on_message: called with one line for a person.
    """
    from hnas.recipes import load

    recipe = load(parsed.recipe)
    if parsed.data is None and not {"source", "task"} <= recipe.data.keys():
        raise ValueError(f"recipe {recipe.name} needs data: --data DIR, one sub-folder of images a class, or a file")
    if parsed.skip_broken:
        recipe = replace(recipe, data={**recipe.data, "skip": True})
    check_values(parsed)  # before torch is imported, so that a wrong value is refused at once
    _check_together(parsed)
    import torch

    from hnas import distributed
    from hnas.recipes.run import RunOptions, run_recipe
    from hnas.training.folder import load_supernet

    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    with distributed.group(parsed.device):
        first = distributed.rank() == 0
        alone = _derived(parsed, recipe) if parsed.alone == "derived" else parsed.alone
        among = load_supernet(Path(parsed.supernet))[0].space if parsed.supernet is not None else None
        record = run_recipe(
            recipe,
            _data(parsed),
            Path(parsed.out),
            RunOptions(
                seed=parsed.seed,
                epochs=parsed.epochs,
                alone=alone,
                among=among,
                resume=parsed.resume,
                pretrained=parsed.pretrained,
                scratch=parsed.from_scratch,
                minutes=parsed.minutes,
                report=True,
                tensorboard=parsed.tensorboard,
                measure=_measuring,
            ),
            on_step=on_step if first else None,
            on_message=on_message if first else None,
        )
    return record if first else None


def _limits(parsed: argparse.Namespace) -> DerivedLimits:
    """Return the limits of the derived subnet."""
    from hnas.deployment.limits import DerivedLimits

    return DerivedLimits(**{name: getattr(parsed, name) for name in _LIMITS})


def _check_together(parsed: argparse.Namespace) -> None:
    """Raise ValueError for flags that need or exclude each other, and for limits that are not understood."""
    if parsed.supernet is not None and parsed.alone is None:
        raise ValueError("--supernet says where the name after --alone is looked up; give --alone too, or neither")
    if parsed.alone == "derived" and parsed.supernet is None:
        raise ValueError("--alone derived needs the supernet whose architecture parameters name the subnet: --supernet")
    given = [name for name in _LIMITS if getattr(parsed, name) is not None]
    if given and parsed.alone != "derived":
        flag = "--" + given[0].replace("_", "-")
        what = "the device of --max-latency" if given[0] == "target" else "a limit"
        raise ValueError(f"{flag} is {what}, for the derived subnet; give --alone derived too, or leave it out")
    _limits(parsed).cost()
    if parsed.pretrained is not None and parsed.from_scratch:
        raise ValueError("--pretrained and --from-scratch both say what to start from; give one of them")


def _measuring(study: Study, device: Device) -> AbstractContextManager[Cost]:
    """Return the measurement of latencies; its packages are imported for a recipe that needs it alone."""
    from hnas.deployment.derived import measuring

    return measuring(study, device)


def _data(parsed: argparse.Namespace) -> Path | None:
    return None if parsed.data is None else Path(parsed.data)


def check_values(parsed: argparse.Namespace) -> None:
    """Raise ValueError or FileNotFoundError for flags of ``hnas-train`` and ``hnas-train grow`` that are of no use."""
    from hnas.deployment.places import try_writing
    from hnas.export.device.artifact import check_threads
    from hnas.recipes import check_length, check_subnet

    if parsed.threads is not None:
        check_threads(parsed.threads)
    check_length(parsed.epochs, getattr(parsed, "minutes", None))  # growth has no --minutes
    if parsed.seed < 0:
        raise ValueError(f"seed is {parsed.seed}; it is 0 or more")
    if parsed.data is not None and not Path(parsed.data).exists():
        raise FileNotFoundError(
            f"no folder {parsed.data}; --data takes one sub-folder of images a class, or a CSV list"
        )
    if (alone := getattr(parsed, "alone", None)) is not None:
        check_subnet(alone, ("derived",))
    out = Path(parsed.out)
    if parsed.resume and not (out.is_dir() and any(out.glob("[!.]*"))):
        raise FileNotFoundError(f"{out} holds no training to continue; leave out --resume")
    if os.environ.get("RANK", "0") == "0":  # the processes of torchrun do not lock the folder all at once
        try_writing(out)


def _derived(parsed: argparse.Namespace, recipe: Recipe) -> Arch:
    """Return the subnet that the architecture parameters of --supernet name, the same in all processes of torchrun.

    The first process alone derives it: a limit of the latency makes it build and time subnets.
    """
    from hnas import distributed
    from hnas.deployment.derived import derive_subnet
    from hnas.recipes.parts import open_task_of
    from hnas.recipes.schema import decode_recipe
    from hnas.space import Arch
    from hnas.training.folder import load_supernet

    def derived() -> dict[str, Any]:
        supernet, record = load_supernet(Path(parsed.supernet))
        task = open_task_of(decode_recipe(recipe), _data(parsed))
        return derive_subnet(supernet, record, task, _limits(parsed)).to_json()

    return Arch(distributed.agreed(derived))
