"""Time a call from end to end where an artifact runs: prepare the input, run the network, read the answer.

``time_ends(runner, arrays, runs=30, pixels=True)``. A user's program does all three for each image.
"""

from __future__ import annotations

from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, Sequence

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = ("prepare", "copies", "run", "answer")
_LEAD = 3  # untimed calls


def time_ends(
    runner: Callable[..., Sequence[NDArray[Any]]],
    arrays: Sequence[NDArray[Any]],
    *,
    runs: int,
    pixels: bool,
    seconds: float = float("inf"),
) -> NDArray[np.float64]:
    """Return the seconds of the parts of ``runs`` calls, [runs, 4]. Start no call after ``seconds``.

    ``pixels``: whether ``arrays`` are an image and its preprocessing, see ``prepare``; else they are the inputs, and
    preparing them takes no time.

    1. prepare: uint8 pixels become the input.
    2. copies: to the GPU and back, of a runner that times them (``copied``); else 0, and they are part of case 3.
    3. run: the runner, from an array of numpy to an array of numpy, without case 2.
    4. answer: softmax and the five best classes of every output row.

    A runner that starts a tool for each call is called once; cases 2 and 3 are by the tool's clock (``part_times``).
    """
    if hasattr(runner, "part_times"):
        return _time_by_tool(runner, arrays, runs=runs, pixels=pixels, seconds=seconds)
    rows: list[tuple[float, float, float, float]] = []
    end = monotonic() + seconds
    while len(rows) < runs + _LEAD and (monotonic() < end or len(rows) <= _LEAD):
        begun = perf_counter_ns()
        inputs = (prepare(*arrays),) if pixels else tuple(arrays)
        prepared = perf_counter_ns()
        outputs = runner(*inputs)
        ran = perf_counter_ns()
        answer(outputs)
        answered = perf_counter_ns()
        copied = 1e9 * getattr(runner, "copied", 0.0)
        rows.append((prepared - begun, copied, ran - prepared - copied, answered - ran))
    return np.array(rows[_LEAD:]) * 1e-9


def _time_by_tool(
    runner: Any, arrays: Sequence[NDArray[Any]], *, runs: int, pixels: bool, seconds: float
) -> NDArray[np.float64]:
    """Return what ``time_ends`` returns, with copies and run by the clock of the tool that the runner starts."""
    inputs = (prepare(*arrays),) if pixels else tuple(arrays)
    outputs = runner(*inputs)
    rows = time_ends(lambda *_: outputs, arrays, runs=runs, pixels=pixels, seconds=seconds)
    parts = np.array(runner.part_times(inputs, len(rows)))
    rows = rows[: len(parts)]
    rows[:, 1:3] = parts
    return rows


def prepare(
    image: NDArray[np.uint8],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    rows: NDArray[np.float32],
    columns: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return uint8 [N, H, W, C] as float32 [N, C, h, w].

    ``scale``, ``offset``: one value a channel; a pixel becomes pixel * scale - offset.
    ``rows``, ``columns``: the matrices [h, H] and [w, W] of a resize; empty for none.
    """
    x = (image * scale - offset).transpose(0, 3, 1, 2)
    if rows.size:
        x = rows @ x @ columns.T
    return np.ascontiguousarray(x, np.float32)


def answer(outputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the indices of the five highest scores of each output row, after a softmax."""
    found = []
    for scores in outputs:
        flat = np.asarray(scores, np.float32).reshape(len(scores) if scores.ndim > 1 else 1, -1)
        shares = np.exp(flat - flat.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        found.append(np.argsort(-shares, axis=1)[:, :5])
    return found
