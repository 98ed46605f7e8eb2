"""Tasks are found by their file names, and a recipe names one and its options."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from hnas import tasks
from hnas.recipes import Recipe
from hnas.recipes.parts import open_task_of
from hnas.recipes.schema import decode_recipe


def test_every_file_of_the_folder_is_a_task():
    files = {path.stem for path in Path(tasks.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(tasks.names()) == files == {"classification", "digits", "series", "stream", "text"}


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_opens_a_folder_with_typed_options(name):
    parameters = list(inspect.signature(tasks.load(name).open_task, eval_str=True).parameters.values())
    assert parameters[0].name == "folder"
    assert all(each.annotation is not each.empty for each in parameters)
    assert all(each.default is not each.empty for each in parameters if each.kind is each.KEYWORD_ONLY)


def recipe(data: dict, **train) -> Recipe:
    return Recipe("own", {"name": "tabular_digits"}, data, {"strategy": "spos", "epochs": 1, **train})


@pytest.mark.parametrize(
    ("data", "task"),
    [
        ({}, "classification"),
        ({"reader": "memory"}, "classification"),
        ({"reader": "webdataset"}, "stream"),
        ({"task": "stream"}, "stream"),
        ({"task": "digits"}, "digits"),
    ],
)
def test_a_recipe_names_a_task_or_a_reader(data, task):
    assert decode_recipe(recipe(data)).data.task == task


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"task": "weather"}, "no task 'weather'; known: classification, digits, series, stream, text"),
        ({"task": "digits", "size": 8}, r"\[data\] has no key 'size'; known: flip, shift, alpha, task"),
        ({"task": "digits", "batch_size": 8}, r"\[data\] has no key 'batch_size'"),
    ],
)
def test_a_recipe_that_names_no_task_or_no_option_is_one_line(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode_recipe(recipe(data))
    assert "\n" not in str(caught.value)


def test_the_options_of_a_recipe_reach_its_task():
    pytest.importorskip("sklearn")
    task = open_task_of(decode_recipe(recipe({"task": "digits", "shift": 1}, batch=32, smoothing=0.0)), None)
    assert (task.shift, task.batch_size, task.smoothing) == (1, 32, 0.0)
    assert dict(task.space_arguments) == {"classes": 10, "channels": 1}
