"""Prepare an image tower for training: train mode, memory layout, BatchNorm, checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustclip.attacks.gradient import eval_mode
from robustclip.errors import UsageError
from robustclip.referees.smoothed import refuse_smoothed
from robustclip.runs import distributed


def ready_to_train(
    tower: nn.Module, *, frozen_statistics: bool, grad_checkpointing: bool, accumulate: int, channels_last: bool
) -> None:
    """Unfreeze a tower and put it in train mode, its BatchNorm in eval mode where statistics are frozen.

    Raises UsageError where batch statistics would be those of a part of the batch, and for a tower that cannot
    checkpoint its activations.
    """
    refuse_smoothed(tower, "inside training", "train the base referee, with noise on its images")
    if has_batch_statistics(tower) and not frozen_statistics and (accumulate > 1 or distributed.count() > 1):
        raise UsageError(
            "the image tower has BatchNorm, whose statistics would be those of a part of the batch, so that neither "
            "loss nor gradients would be those of the whole: use --frozen-statistics (it then normalises by its "
            "running statistics, as when it judges), or --accumulate 1 and one process"
        )
    if grad_checkpointing:
        if not hasattr(tower, "set_grad_checkpointing"):
            raise UsageError(
                f"a {type(tower).__name__} cannot checkpoint its activations: leave --grad-checkpointing out, and use "
                "--accumulate 2 (or more) to save memory"
            )
        tower.set_grad_checkpointing(True)  # type: ignore[operator]
    nhwc = channels_last and not distributed.is_sharded()  # FSDP splits contiguous weights only
    tower.to(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
    tower.requires_grad_(True).train()
    if frozen_statistics:
        for module in tower.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def has_batch_statistics(tower: nn.Module) -> bool:
    """Whether the tower normalises by statistics of its batch when it trains."""
    return any(isinstance(module, _BatchNorm) for module in tower.modules())


@contextmanager
def judging(tower: nn.Module) -> Iterator[None]:
    """The tower as it judges, in eval mode and without gradients; afterwards every part of it is as before."""
    with eval_mode(tower), torch.no_grad():
        yield
