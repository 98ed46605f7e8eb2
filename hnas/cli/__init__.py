"""The commands ``hnas-deploy`` and ``hnas-train``: `deploy_main(arguments)` and `train_main(arguments)`.

Both return an exit code. The modules of a command are imported only when the command runs, so that help is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from hnas.cli.ending import guarded
from hnas.nearest import did_you_mean

COMMANDS = {
    "export": "deploy a network of your own",
    "targets": "list the devices that --target takes",
    "doctor": "list the backends that run here, and how to install the others",
    "show": "print what a bundle holds, after a check of every byte",
    "score": "evaluate subnets of a supernet once, for better searches",
    "run": "classify an image, forecast a series or continue a text with a bundle",
    "verify": "compare a bundle's files with the network in torch; reduce what fails",
    "sign": "sign a bundle with a key of your own",
    "pack": "write a bundle into one file",
    "push": "publish a bundle: in a folder, S3, the Hugging Face Hub or an OCI registry",
    "pull": "fetch a bundle, verified before anything in it is opened",
    "zoo": "list the bundles of a store with their figures",
}


def deploy_main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hnas-deploy``.

    Return the exit code. 0: success. 1: a check failed or a constraint was missed. 2: wrong use. 3: a runtime is
    missing. 70: an internal error. 130: interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        name, rest = given[0], given[1:]
        return guarded("hnas-deploy", lambda: _command(name)(rest))
    from hnas.cli import completion, search

    parser = search.make_deploy_parser(COMMANDS)
    parser.add_completion(partial(completion.complete_deploy, COMMANDS))
    if given and given[0] and not given[0].startswith("-"):
        parser.error(f"no command {given[0]!r}{did_you_mean(given[0], COMMANDS)}")
    options = parser.parse_args(given)
    return guarded("hnas-deploy", lambda: search.run_deploy(options), resumes=True)


def train_main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hnas-train``.

    Return the exit code. 0: success. 1: the training diverged or a process ended. 2: wrong use. 3: a package is
    missing. 70: an internal error. 130: interrupted.
    """
    from hnas.cli import growing, training

    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["grow"]:
        return guarded("hnas-train", lambda: growing.run_grow(given[1:]), resumes=True)
    options = training.make_train_parser().parse_args(given)
    return guarded("hnas-train", lambda: training.run_train(options), resumes=True)


def _command(name: str) -> Callable[[Sequence[str]], int]:
    from hnas.cli import commands, network, scoring, zoo

    return {
        "export": network.run_export,
        "targets": commands.run_targets,
        "doctor": commands.run_doctor,
        "show": commands.run_show,
        "score": scoring.run_score,
        "run": commands.run_bundle,
        "verify": network.run_verify,
        "sign": zoo.run_sign,
        "pack": zoo.run_pack,
        "push": zoo.run_push,
        "pull": zoo.run_pull,
        "zoo": zoo.run_zoo,
    }[name]
