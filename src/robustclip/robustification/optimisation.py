"""AdamW with weight decay on matrices only, warm-up and cosine schedule, EMA of weights."""

from __future__ import annotations

import math

from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from robustclip.runs import distributed


def adamw(tower: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.98)) -> AdamW:
    """AdamW that decays matrices and kernels only, not gains, biases and embeddings of one dimension (as open_clip).

    beta2 0.98 is open_clip's for ViT towers; CLIPAG names no optimiser.
    """
    trained = [p for p in tower.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=lr, betas=betas)


def warmup_cosine(optimizer: AdamW, warmup: int, steps: int) -> LambdaLR:
    """Linear from lr/warmup to lr over `warmup` steps, then half a cosine down to 0 at `steps`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)


def average(tower: nn.Module, decay: float) -> ModelEmaV3:
    """Exponential moving average of weights and buffers (timm's); its decay warms up as (1+t)/(10+t), so that a short
    run is not an average of its own start."""
    # timm's fast path cannot mix split weights with whole buffers.
    fast = not distributed.is_sharded()
    return ModelEmaV3(tower, decay=decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0, foreach=fast)
