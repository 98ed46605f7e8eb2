"""3 x 3 average pooling without weights (NAS-Bench-201, arXiv 2001.00326)."""

from __future__ import annotations

from torch import nn

WINDOW = 3  # a constant: a smaller window is not a slice of a larger one


class AveragePool(nn.AvgPool2d):
    """3 x 3 average over the positions inside the map; padding does not count."""

    def __init__(self, cin: int, cout: int, stride: int, act: str = "relu") -> None:
        del act  # every operation takes this argument
        if cin != cout:
            raise ValueError(f"pooling keeps the channels; {cin} to {cout} is not possible")
        super().__init__(WINDOW, stride, WINDOW // 2, count_include_pad=False)


build = AveragePool
