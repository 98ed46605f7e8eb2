"""Networks of attention: a small ViT (arXiv 2010.11929) with one product for q, k and v, and torch's encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    """Norm, attention, residual; norm, two linear layers with a GELU, residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, tokens, width] to the same shape."""
        n, tokens, width = x.shape
        split = self.qkv(self.before(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.project(mixed.transpose(1, 2).reshape(n, tokens, width))
        y: Tensor = self.narrow(F.gelu(self.wide(self.between(x))))
        return x + y


class ViT(nn.Module):
    """Patches of 16 x 16, a class token, six blocks of width 192: 3 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        width = 192
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.position = nn.Parameter(torch.randn(1, 197, width) * 0.5)
        self.blocks = nn.Sequential(*(_Block(width, 3) for _ in range(6)))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 1000] from [N, 3, 224, 224]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), -1, -1), tokens), 1) + self.position
        scores: Tensor = self.classifier(self.norm(self.blocks(x))[:, 0])
        return scores


class Encoder(nn.Module):
    """torch's own transformer encoder on bytes: four layers of width 192, 64 tokens, 1.8 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        width = 192
        self.embed, self.position = nn.Embedding(256, width), nn.Parameter(torch.randn(1, 64, width) * 0.5)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        for part in self.layers.parameters():  # torch copies one layer four times
            if part.ndim > 1:
                nn.init.xavier_uniform_(part)
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 10] from [N, 64]."""
        found = self.norm(self.layers(self.embed(x) + self.position))
        scores: Tensor = self.classifier(found.mean(1))
        return scores
