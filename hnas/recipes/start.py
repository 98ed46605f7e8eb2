"""Choose the weights that a run begins with: ``begin(recipe, None, scratch=False)``.

The section [pretrained] of a recipe names a network and replaces keys of the other sections. A run that has the weights
trains the space ``inverted_residuals``, whose largest member is that network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hnas import distributed
from hnas.data.images import Preprocessing
from hnas.recipes import Recipe, check_short, check_tables
from hnas.recipes.length import is_in_memory
from hnas.recipes.parts import check_same_data
from hnas.space import Arch, Space
from hnas.study import Study, pool_moments
from hnas.supernet import Stats, Supernet
from hnas.tasks import Task
from hnas.tasks.classification import Classification
from hnas.training.folder import load_supernet, make_supernet
from hnas.training.pretrained import NoWeights, Pretrained, copy_weights, find_pretrained
from hnas.training.teacher import taught

_ITERATIONS, _DECAY, _CHUNK = 40, 5e-4, 64  # of L-BFGS; of its weights; images in a forward pass
_FITTED, _STREAM = 2000, 7  # training images that the classifier is fitted to; of the random numbers that draw them


def begin(recipe: Recipe, name: str | None, *, scratch: bool) -> tuple[Recipe, Pretrained | None, str]:
    """Return the recipe as it is run, the weights to begin with, and a line for a person (may be empty).

    name: of the network, as ``find_pretrained`` takes it; None: the one that the recipe names.
    scratch: begin with random weights.

    1. The weights are there: the keys of [pretrained] replace those of the recipe; ``pretrained`` says which weights.
    2. The recipe names weights and they are missing: train from scratch; the line says how to get them.
    3. ``scratch``, or neither the recipe nor ``name`` names weights: train from scratch.
    4. The network does not consist of plain inverted residuals: the recipe is trained from scratch, with the network as
       its teacher.

    Raises:
        FileNotFoundError, NoWeights, ValueError: the weights ``name`` cannot be used.
    """
    plain = replace(recipe, pretrained={})
    table: Mapping[str, Any] = recipe.pretrained
    if scratch or (name is None and not table):  # case 3
        return plain, None, ""
    _check(recipe)
    try:
        found = find_pretrained(name or str(table["name"]))
    except NoWeights as error:
        if name is not None:
            raise
        return plain, None, f"{error}; training from scratch"  # case 2
    if found.net is not None:  # case 4
        given = replace(plain, data={**plain.data, "channels": 3}, pretrained=found.to_json())
        return given, found, f"{found.name} teaches: {found.origin}, licence {found.licence}"
    own = {section: {**getattr(recipe, section), **table.get(section, {})} for section in ("data", "train")}
    kept = {"resolutions": recipe.space["resolutions"]} if "resolutions" in recipe.space else {}
    space = {"name": "inverted_residuals", "channels": 3, **found.arguments, **kept, **table.get("space", {})}
    data = {**own["data"], "channels": 3}
    started = Recipe(recipe.name, space, data, own["train"], {}, found.to_json(), table.get("short", {}))
    return started, found, f"starting from {found.name}: {found.origin}, licence {found.licence}"  # case 1


def prepared_for(task: Task, found: Pretrained | None, seed: int) -> Task:
    """Return the task with the mean and deviation that the pretrained weights expect, and with their teacher."""
    if found is None:
        return task
    if not isinstance(task, Classification):
        raise ValueError(f"{found.name} has weights for images; this recipe has other data: give --from-scratch")
    changed = replace(task, preprocessing=replace(task.preprocessing, mean=found.mean, std=found.std))
    return changed if found.net is None else taught(changed, found.net, max(task.preprocessing.base), seed)


def make_started(space: Space, seed: int, origin: str, found: Pretrained | None, whole: Space) -> Supernet:
    """Return the supernet of ``space`` with the weights that a run begins with.

    whole: the space of which ``space`` is all, or one member.
    """
    supernet = make_supernet(space, seed, origin)
    if found is None or found.net is not None:
        return supernet
    if not space.lone:
        copy_weights(supernet, found)
        return supernet
    complete = make_supernet(whole, seed, origin)
    copy_weights(complete, found)
    with torch.no_grad():
        for name, value in complete.view(whole.arch(space.largest)).items():
            supernet.union.get_parameter(name).copy_(value)
    supernet.changed()
    return supernet


def needs_fit(recipe: Mapping[str, Any], task: Task) -> bool:
    """Return whether a run begins with ``fit_classifier``: it has pretrained weights, and its images are in memory.

    recipe: as JSON.
    """
    pretrained = recipe.get("pretrained", {})
    return is_in_memory(task) and bool(pretrained) and "role" not in pretrained


def time_fitting(supernet: Supernet, task: Task, clock: Callable[[], float]) -> float:
    """Return the predicted seconds of ``fit_classifier``, from one chunk of images. No weight changes."""
    raw, arch = task.held("train")[0], supernet.space.largest
    inputs = task.inputs(raw[:_CHUNK], supernet.space.example(arch))
    net, _ = _cut_classifier(supernet, arch, pool_moments(supernet, arch, [inputs], len(inputs[0])))
    with torch.no_grad():
        net(*inputs)  # the first pass is slow
        begun = clock()
        net(*inputs)
        seconds = clock() - begun
    return seconds / len(inputs[0]) * (min(len(raw), _FITTED) + len(task.splits["calibration"]))


def fit_classifier(study: Study, say: Callable[[str], None]) -> None:
    """Fit the classifier to the features that the largest subnet has of training images; no other weight changes.

    say: called with the number of images, 2,000 at most; the seed of the study draws them.

    This is multinomial logistic regression by L-BFGS. Training that begins with a random classifier would first damage
    the pretrained features. Of several ranks only the first one fits: training begins with its weights on all ranks.
    """
    if distributed.rank() != 0:
        return
    space, task = study.supernet.space, study.task
    raw, labels = task.held("train")
    chosen = np.sort(np.random.default_rng([study.seed, _STREAM]).permutation(len(labels))[:_FITTED])
    say(f"fitting the classifier to {len(chosen)} of {len(labels)} training images")
    net, classifier = _cut_classifier(study.supernet, space.largest, study.calibrate(space.largest))
    labels, shapes = labels[chosen], space.example(space.largest)
    chunks = (raw[chosen[i : i + _CHUNK]] for i in range(0, len(chosen), _CHUNK))
    with torch.no_grad():
        features = torch.cat([net(*task.inputs(chunk, shapes)) for chunk in chunks])
    torch.nn.init.zeros_(classifier.weight)
    optimiser = torch.optim.LBFGS(classifier.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        loss = task.loss(classifier(features), labels) + _DECAY * classifier.weight.square().sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, value in classifier.named_parameters():
            study.supernet.union.get_parameter(f"classifier.{name}").copy_(value)
    study.supernet.changed()


def _cut_classifier(supernet: Supernet, arch: Arch, stats: Stats) -> tuple[nn.Module, nn.Linear]:
    """Return a copy of the subnet without its classifier, and a copy of the classifier."""
    net = supernet.extract(arch, stats)
    classifier, net.classifier = net.get_submodule("classifier"), nn.Identity()
    assert isinstance(classifier, nn.Linear)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, classifier


def _check(recipe: Recipe) -> None:
    table = recipe.pretrained
    if table and "name" not in table:
        raise ValueError(f"recipe {recipe.name}: [pretrained] lacks 'name'")
    tables = {key: value for key, value in table.items() if key != "name"}
    check_tables(recipe.name, "pretrained", tables, ("space", "data", "train", "short"))
    check_short(recipe.name, "pretrained.short", table.get("short", {}))


def read_grown(folder: Path, space: Space, task: Task, seed: int) -> tuple[Supernet, Arch, Task]:
    """Return the supernet of ``space`` with the weights of the one in ``folder``, its smallest member, and the task.

    space: the declared space, in which the member grows.
    task: of the same data; returned with the preprocessing that the weights expect.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: the supernet is not of this space or data, or its branches are split.
    """
    trained, record = load_supernet(folder)
    check_same_data(task, record, folder)
    if trained.space.name != space.name or dict(trained.space.arguments) != dict(space.arguments):
        raise ValueError(f"{folder} holds a supernet of another space; grow it with the recipe that trained it")
    if trained.splits:
        raise ValueError(f"{folder} holds a supernet with split branches, which cannot grow; train it without [shrink]")
    member = space.arch(trained.space.smallest)
    supernet = make_supernet(space, seed, str(folder))
    with torch.no_grad():
        for name, value in trained.union.named_parameters():
            if not trained.space.lone:
                supernet.union.get_parameter(name).copy_(value)
        for name, part in supernet.view(member).items():
            part.copy_(trained.view(trained.space.smallest)[name])
    supernet.changed()
    if isinstance(task, Classification):
        task = replace(task, preprocessing=Preprocessing.from_json(record["task"]["preprocessing"]))
    return supernet, member, task
