"""Where tensors lie, and what becomes of memory that was freed."""

import ctypes
import gc

import torch
from torch import Tensor


def reuse_memory() -> None:
    """Let the C library keep freed blocks: new tensors then fault in no fresh pages (1.1 to 1.4 times as fast).

    And let Python look for cycles once in 20,000 new objects, not 700: some hundred subnets stay built, a few thousand
    objects each, and to walk them all again and again took twice the time of building the next one.

    For the whole process, from now on. Does nothing to the C library where that is not glibc.
    """
    gc.set_threshold(20_000)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at the most that every version takes
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-2, 64 << 20)  # M_TOP_PAD


def channels_last(x: Tensor) -> Tensor:
    """``x`` [N, C, H, W] channels-last in memory, and by its strides, too, where one channel makes both orders equal.

    There ``contiguous`` keeps the strides as they are; a convolution whose weights are slices, which lie in no order,
    would take them for channels-first, and the whole network after it would take half as long again.
    """
    n, channels, height, width = x.shape
    if channels == 1:
        return x.reshape(n, height, width, 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)
