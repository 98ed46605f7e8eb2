"""The commands ``hnas-deploy`` and ``hnas-train``: arguments in, exit codes out; heavy imports only when they work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnas.cli.arguments import HOST, PRECISION, Parser
from hnas.cli.ending import guarded

COMMANDS = {
    "export": "a network of your own through everything after the search",
    "targets": "the devices that can be named",
    "doctor": "which backends can run here, and how to install the others",
    "show": "what a bundle holds; every byte is checked first",
    "run": "a bundle on an image file",
    "verify": "a bundle's files against the network in torch; what fails made small",
}
_EXAMPLES = """examples:
  hnas-deploy --target openvino-cpu
  hnas-deploy --target jetson --max-latency 5ms --out runs/robot
  hnas-deploy --target raspberry-pi-5 --host ssh://pi@raspberrypi
  hnas-deploy --target onnxruntime-cpu --supernet trained/ --data photos/ --min-accuracy 92%
"""


def deploy_main(arguments: Sequence[str] | None = None) -> int:
    """``hnas-deploy``: 0 done, 1 a check or bound failed, 2 wrong use, 3 a runtime is missing, 70 a fault of ours."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        name, rest = given[0], given[1:]
        from hnas.cli import commands

        return guarded("hnas-deploy", lambda: commands.run(name, rest, Parser))
    parsed = _deploy_parser().parse_args(given)
    return guarded("hnas-deploy", lambda: _deploy(vars(parsed)), resumes=True)


def train_main(arguments: Sequence[str] | None = None) -> int:
    """``hnas-train``: 0 done, 1 the training diverged, 2 wrong use, 3 torch is missing, 70 a fault of ours."""
    parsed = _train_parser().parse_args(arguments)
    return guarded("hnas-train", lambda: _train(parsed), resumes=True)


def _deploy_parser() -> Parser:
    commands = "\n".join(f"  hnas-deploy {name:<8} {what}" for name, what in COMMANDS.items())
    parser = Parser(
        "hnas-deploy",
        description="Search a trained supernet for a device and leave a folder that runs there, with proof.",
        epilog=f"commands:\n{commands}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--target", required=True, metavar="DEVICE", help="a device profile; hnas-deploy targets lists them")
    add("--max-latency", metavar="TIME", help="hard bound on the median at batch 1, e.g. 5ms")
    add("--min-accuracy", metavar="SHARE", help="hard bound on top-1 on the search images, e.g. 92%%")
    add("--max-size", metavar="SIZE", help="hard bound on the model files, e.g. 300KB")
    add("--precision", metavar="P", help=PRECISION)
    add("--budget", metavar="B", help="of the search: 32evals (default), 60s or 5min")
    add("--seed", type=int, default=0, metavar="N", help="of the search (default 0)")
    add("--threads", type=int, metavar="N", help="of the runtime (default: the device's, 1 on CPUs)")
    add("--supernet", metavar="DIR", help="what hnas-train wrote (default: the shipped Fashion-MNIST supernet)")
    add("--data", metavar="DIR", help="IDX files, or one sub-folder of images a class (default: the shipped slice)")
    add("--host", metavar="URL", help=HOST)
    add("--out", metavar="DIR", help="where the run goes (default: runs/DEVICE, numbered)")
    add("--resume", action="store_true", help="continue an interrupted run; a finished one shows its result again")
    add("--dry-run", action="store_true", help="print the resolved plan and what it will cost, and stop")
    add("--json", action="store_true", help="the result as JSON on standard output")
    return parser


def _train_parser() -> Parser:
    parser = Parser(
        "hnas-train",
        description="Train a supernet from a recipe and a folder of images.",
        epilog="A recipe's [shrink] section makes the space smaller on the way, by evidence or by method = padnas or "
        "pwsnas; hnas-deploy --supernet then searches what is left.",
    )
    add = parser.add_argument
    add("--recipe", required=True, metavar="NAME", help="fashion, images, imagenet, ... or the path of a .toml file")
    add("--data", required=True, metavar="DIR", help="IDX files, or one sub-folder of images a class")
    add("--out", required=True, metavar="DIR", help="the supernet's folder; hnas-deploy --supernet takes it")
    add("--epochs", type=float, metavar="N", help="in place of the recipe's")
    add("--alone", metavar="ARCH", help="train one subnet by itself: smallest, largest or random:SEED")
    add("--supernet", metavar="DIR", help="with --alone: the trained supernet whose space has that subnet")
    add("--seed", type=int, default=0, metavar="N", help="of weights, batches and paths (default 0)")
    add("--threads", type=int, metavar="N", help="of torch (default: all cores)")
    add("--device", default="cpu", metavar="D", help="cpu (default), or cuda: one GPU for each process of torchrun")
    add("--resume", action="store_true", help="continue from the last checkpoint")
    add("--json", action="store_true", help="the result as JSON on standard output")
    return parser


def _deploy(options: dict[str, Any]) -> int:
    from hnas import report

    as_json, dry = options.pop("json"), options.pop("dry_run")
    target, resume = options.pop("target"), options.pop("resume")
    from hnas import hw_profiles

    hw_profiles.load(target)  # the likeliest slip is answered before torch is imported
    from hnas import deployment
    from hnas.deployment.plan import resolve

    if dry:
        plan = resolve(target, resume=resume, **options)
        cost = deployment.estimate(plan)
        if as_json:
            report.write_json({"plan": plan.identity(), "out": str(plan.out), "cost": cost})
        else:
            report.plan_table([*plan.lines(), ("cost", cost)])
        return 0
    with report.stages() as on:
        found = deployment.deploy(target, resume=resume, on=on, **options)
    if as_json:
        report.write_json(found.to_json())
    else:
        report.deployment_table(found.to_json())
    return 0


def _train(parsed: argparse.Namespace) -> int:
    from hnas import recipes, report

    recipe = recipes.load(parsed.recipe)
    import torch

    from hnas import distributed
    from hnas.recipes.run import RunOptions, run_recipe
    from hnas.training.folder import load_supernet

    if parsed.threads is not None:
        if parsed.threads < 1:
            raise ValueError(f"threads is {parsed.threads}; it is 1 or more")
        torch.set_num_threads(parsed.threads)
    if parsed.supernet and not parsed.alone:
        raise ValueError("--supernet says where the name after --alone is looked up; give --alone too, or neither")
    with distributed.group(parsed.device), report.training(f"training {recipe.name}") as (advance, say):
        first = distributed.rank() == 0
        among = load_supernet(Path(parsed.supernet))[0].space if parsed.supernet else None
        record = run_recipe(
            recipe,
            Path(parsed.data),
            Path(parsed.out),
            RunOptions(parsed.seed, parsed.epochs, parsed.alone, among, parsed.resume),
            on_step=advance if first else None,
            on_message=say if first else None,
        )
    if not first:
        return 0
    if parsed.json:
        report.write_json(record)
    else:
        report.training_summary(Path(parsed.out), record)
    return 0
