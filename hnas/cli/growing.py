"""The command ``hnas-train grow``: grow a small trained network up to a predicted latency or a number of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnas.cli.arguments import Parser
from hnas.cli.training import check_values

if TYPE_CHECKING:
    from hnas.recipes import Recipe

_FINE = 0.2  # of the learning rate of the recipe: the weights are trained already


def _make_grow_parser() -> Parser:
    """Return the parser of ``hnas-train grow``."""
    parser = Parser(
        "hnas-train grow",
        description="Grow the smallest subnet of a trained supernet inside its space, by edits that keep its outputs: "
        "depth, width, nodes and operation types. Kernels, expansions and heads stay as they are.",
        epilog="A section [grow] in the recipe of the supernet gives stages, mode and trigger.",
    )
    add = parser.add_argument
    add("--supernet", required=True, metavar="DIR", help="folder that hnas-train wrote")
    add("--data", metavar="PATH", help="the data that it was trained on")
    add("--out", required=True, metavar="DIR", help="folder of the grown network; hnas-deploy --supernet takes it")
    add("--target", metavar="DEVICE", help="the device of --max-latency")
    add("--max-latency", metavar="TIME", help="grow up to this predicted latency on the device, e.g. 2ms")
    add("--max-weights", type=int, metavar="N", help="grow up to this number of weights")
    add("--epochs", type=float, metavar="N", help="total number of epochs (default: as in the recipe)")
    add("--seed", type=int, default=0, metavar="N", help="seed of edits and batches (default 0)")
    add("--threads", type=int, metavar="N", help="threads of torch (default: all cores)")
    add("--resume", action="store_true", help="continue from the last checkpoint")
    add("--json", action="store_true", help="print the result as JSON on standard output")
    return parser


def run_grow(arguments: Sequence[str]) -> int:
    """Run the command. Return its exit code."""
    from hnas import report

    parsed = _make_grow_parser().parse_args(arguments)
    rules = _rules(parsed.target, parsed.max_latency, parsed.max_weights)
    check_values(parsed)
    import torch

    from hnas.files import read_json
    from hnas.recipes import Recipe
    from hnas.recipes.run import RunOptions, run_recipe

    if parsed.threads is not None:
        torch.set_num_threads(parsed.threads)
    folder = Path(parsed.supernet)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; --supernet takes what hnas-train --out wrote")
    try:
        recipe = _recipe_to_grow(Recipe(**read_json(folder / "supernet.json")["recipe"]), rules)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder / 'supernet.json'} does not say which recipe trained it; it cannot grow") from None
    options = RunOptions(seed=parsed.seed, epochs=parsed.epochs, resume=parsed.resume, grown_from=folder)
    data = None if parsed.data is None else Path(parsed.data)
    with report.show_training(f"growing {folder}") as (advance, say):
        record = run_recipe(recipe, data, Path(parsed.out), options, on_step=advance, on_message=say)
    if parsed.json:
        report.print_json(record)
    else:
        report.print_training(Path(parsed.out), record)
    return 0


def _recipe_to_grow(recipe: Recipe, rules: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a trained supernet with [grow]: one cycle of the same length, at a share of its rate."""
    from hnas.recipes.schema import GROWN, decode_recipe

    plain = replace(recipe, shrink={}, pretrained={}, grow={})
    kept = {key: value for key, value in recipe.train.items() if key not in GROWN}
    known = decode_recipe(plain).train
    length = known.epochs + sum(epochs for epochs, _ in known.restarts)
    train = {**kept, "strategy": GROWN["strategy"], "epochs": length, "rate": known.rate * _FINE}
    return replace(plain, train=train, grow={**recipe.grow, **rules})


def _rules(target: str | None, latency: str | None, weights: int | None) -> dict[str, Any]:
    """Return the limits as keys of [grow]. Raise ValueError if none is given, or one without its device."""
    from hnas import hw_profiles
    from hnas.units import parse_latency_ms

    if (target is None) != (latency is None):
        raise ValueError("a limit of latency needs a device: give both --target and --max-latency, or neither")
    if latency is None and weights is None:
        raise ValueError("say how far to grow: --target DEVICE --max-latency TIME, or --max-weights N")
    found: dict[str, Any] = {} if weights is None else {"max_weights": weights}
    if target is not None and latency is not None:
        found |= {"device": hw_profiles.load(target).name, "max_latency_ms": parse_latency_ms(latency)}
    return found
