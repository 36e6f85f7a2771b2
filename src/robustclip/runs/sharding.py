"""Towers too large for one device: weights, gradients and optimizer states split over the processes (FSDP2).

Asked for by accelerate's configuration (`accelerate launch --use_fsdp ...`), and done by torch's `fully_shard`, so that
it runs on CPU processes as it does on GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from robustclip.runs import distributed


def wanted() -> bool:
    """Whether the launcher was told to shard, and there is more than one process to shard over."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and distributed.count() > 1


def shard(tower: nn.Module) -> None:
    """Split a tower's weights over the processes, in place: each of its blocks as a unit, then the rest."""
    for block in blocks(tower):
        fully_shard(block)
    fully_shard(tower)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of a tower's outermost lists: a ViT's residual blocks, a ConvNet's stages."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1:
            yield from (block for block in child if next(block.parameters(), None) is not None)
        else:
            yield from blocks(child)


def whole(state: Any) -> Any:
    """A state dict with every tensor whole; all processes must ask."""
    return tree_map(lambda value: value.full_tensor() if isinstance(value, DTensor) else value, state)


def load_module(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load whole tensors into a module, split as it is."""
    own = module.state_dict()
    module.load_state_dict(
        {name: _laid_out(value, own[name]) if name in own else value for name, value in state.items()}
    )


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state of whole tensors, split as its parameters are."""
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                moments[name] = _laid_out(value, parameter.detach())


def _laid_out(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
