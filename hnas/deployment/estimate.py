"""Estimate the duration of a deployment for ``--dry-run``: `estimate_search(plan)`.

It opens the supernet and the images as the deployment does, so it refuses what the deployment would refuse.
"""

from __future__ import annotations

import time
from random import Random

import torch

from hnas.deployment.folder import compare_run, run_identity
from hnas.deployment.forecaster import is_sequence
from hnas.deployment.plan import Plan
from hnas.deployment.source import open_source

_BATCH = 64  # images that an estimate of the duration is made from
_CALLS = 3  # of that batch; the fastest one counts, since other processes may use the machine for a moment
_PRICING = 1.0  # seconds to convert and time one subnet of the shipped supernet, in an estimate


def estimate_search(plan: Plan) -> str:
    """Return an estimate of the duration of the search, in words. One batch of images is timed; nothing is built.

    Raises:
        FileNotFoundError, ValueError: as in the deployment, also for a run to continue that has other options.
    """
    if is_sequence(plan.supernet):
        from hnas.deployment.sequence_source import open_sequence  # recipes are imported for a sequence alone

        compare_run(plan, run_identity(plan, open_sequence(plan)))
        return "a minute of building and measuring"
    source = open_source(plan.supernet, plan.data)
    compare_run(plan, run_identity(plan, source))
    if plan.seconds is not None:
        return f"about {plan.seconds:.0f} s of search and a minute of building and measuring"
    arch = source.supernet.space.sample(Random(plan.seed))
    raw, _ = source.task.held("search")
    inputs = source.task.inputs(raw[:_BATCH], source.supernet.space.example(arch))
    passes = sum(len(source.task.splits[split]) for split in ("calibration", "search")) / len(inputs[0])
    with torch.no_grad():
        source.supernet(arch, *inputs)  # the first call builds the subnet
        seconds = []
        for _ in range(_CALLS):
            begun = time.monotonic()
            source.supernet(arch, *inputs)
            seconds.append(time.monotonic() - begun)
    each = passes * min(seconds) + (_PRICING if plan.measured else 0.0)
    total = each * (plan.evaluations or 0)
    return f"roughly {total:.0f} s of search ({each:.1f} s for one subnet, from one batch), then building and measuring"
