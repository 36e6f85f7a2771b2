"""The VQGAN of taming-transformers in its own names, built from the description of its architecture.

A level i of `channels` has `blocks` residual blocks (one more in the decoder), attention after each where it is asked
for, and a change of scale; group norms of 32 groups, SiLU, and one head of attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2) for part in (self.q, self.k, self.v))
        looks = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, dim=2)
        return x + self.proj_out((v @ looks.transpose(1, 2)).view_as(x))


class Scale(nn.Module):
    def __init__(self, channels: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1))) if self.down else self.conv(F.interpolate(x, scale_factor=2))


def level(before: int, after: int, blocks: int, *, attends: bool) -> nn.Module:
    made = nn.Module()
    made.block = nn.ModuleList(Residual(before if number == 0 else after, after) for number in range(blocks))
    made.attn = nn.ModuleList(Attention(after) for _ in range(blocks if attends else 0))
    return made


def middle(channels: int) -> nn.Module:
    made = nn.Module()
    made.block_1, made.attn_1, made.block_2 = Residual(channels, channels), Attention(channels), None
    made.block_2 = Residual(channels, channels)
    return made


def through(part: nn.Module, x: Tensor) -> Tensor:
    for number, block in enumerate(part.block):
        x = block(x)
        x = part.attn[number](x) if len(part.attn) else x
    return x


class Coder(nn.Module):
    """The encoder (`down`) or the decoder."""

    def __init__(
        self, channels: Sequence[int], blocks: int, attention: Sequence[int], latent: int, *, down: bool
    ) -> None:
        super().__init__()
        levels, last = list(range(len(channels))), channels[-1]
        if down:
            self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
            before = [channels[0], *channels[:-1]]
            self.down = nn.ModuleList(level(before[i], channels[i], blocks, attends=i in attention) for i in levels)
            for i in levels[:-1]:
                self.down[i].downsample = Scale(channels[i], down=True)
        else:
            self.conv_in = nn.Conv2d(latent, last, 3, padding=1)
            before = [*channels[1:], last]
            self.up = nn.ModuleList(level(before[i], channels[i], blocks + 1, attends=i in attention) for i in levels)
            for i in levels[1:]:
                self.up[i].upsample = Scale(channels[i], down=False)
        self.mid = middle(last)
        end = last if down else channels[0]
        self.norm_out, self.conv_out = norm(end), nn.Conv2d(end, latent if down else 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for part in getattr(self, "down", []):
            h = through(part, h)
            h = part.downsample(h) if hasattr(part, "downsample") else h
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        for part in reversed(getattr(self, "up", [])):
            h = through(part, h)
            h = part.upsample(h) if hasattr(part, "upsample") else h
        return self.conv_out(F.silu(self.norm_out(h)))


class TamingVQGAN(nn.Module):
    """`encode` gives what is quantised, `decode` the picture, both on the scale of [-1,1]."""

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 64),
        blocks: int = 1,
        attention: Sequence[int] = (1, 2),
        latent: int = 8,
        code: int = 6,
        codes: int = 10,
    ) -> None:
        super().__init__()
        self.encoder = Coder(channels, blocks, attention, latent, down=True)
        self.decoder = Coder(channels, blocks, attention, latent, down=False)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, code)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(latent, code, 1), nn.Conv2d(code, latent, 1)

    def encode(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))
