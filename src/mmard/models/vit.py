"""Vision transformers for small images: ViT-Ti and ViT-S without a class token and without learned positions.

Dosovitskiy et al. "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
arXiv:2010.11929; sizes of Touvron et al. "Training data-efficient image transformers & distillation through attention",
ICML 2021; positions and pooling of Beyer, Zhai, Kolesnikov. "Better plain ViT baselines for ImageNet-1k", 2022,
arXiv:2205.01580.

Layout of the weights: `patches, blocks.0.norm1, blocks.0.qkv, ..., norm, linear`.

Differences from the papers:
  1. patches of 4 or 8 pixels, for images of 32 or 64, instead of 16.
  2. the grid of patches may be of any size: positions are sines and cosines of the place, made in each call.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

DEPTH = 12
fx.wrap("positions")  # a tracer cannot look into it


def positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sines and cosines of the row and of the column of each place in a grid, (height * width, channels)."""
    steps = torch.arange(channels // 4, dtype=like.dtype, device=like.device) / max(channels // 4 - 1, 1)
    rates = 10_000.0**-steps
    rows = torch.arange(height, dtype=like.dtype, device=like.device).repeat_interleave(width)[:, None] * rates
    columns = torch.arange(width, dtype=like.dtype, device=like.device).repeat(height)[:, None] * rates
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], 1)


class TransformerBlock(nn.Module):
    """Attention among the patches and a perceptron for each, behind LayerNorms and added: (B, N, D) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def by_head(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, N, D / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=2)
        attended = F.scaled_dot_product_attention(self.by_head(q), self.by_head(k), self.by_head(v))
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Twelve blocks over patches, their mean and a linear layer: images (B, channels, H, W) -> logits (B, num_classes).

    Images are filled up with zeros at the right and below to whole patches.
    """

    def __init__(self, width: int, heads: int, patch: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patches(F.pad(x, (0, -x.shape[3] % self.patch, 0, -x.shape[2] % self.patch)))
        tokens = grid.flatten(2).transpose(1, 2)
        tokens = tokens + positions(grid.shape[2], grid.shape[3], tokens.shape[2], tokens)
        return self.linear(self.norm(self.blocks(tokens)).mean(1))


def vit_tiny(patch: int, *, num_classes: int, channels: int) -> VisionTransformer:
    """ViT-Ti, 192 wide: 5,350,090 parameters with patches of 4 for ten classes and three channels."""
    return VisionTransformer(192, 3, patch, num_classes, channels)


def vit_small(patch: int, *, num_classes: int, channels: int) -> VisionTransformer:
    """ViT-S, 384 wide: 21,317,002 parameters with patches of 4 for ten classes and three channels."""
    return VisionTransformer(384, 6, patch, num_classes, channels)
