"""Multi-process training: ranks and collectives; the only importer of accelerate.

Without a launcher there is one process, and every function here is free. With `accelerate launch` (or torchrun) each
process takes its share of a batch; nothing outside this file knows of ranks.

Towers too large for one device: weights, gradients and optimizer states are split over the processes (FSDP2) where
accelerate's configuration asks for it (`accelerate launch --use_fsdp ...`). torch's `fully_shard` does it, so that it
runs on CPU processes as it does on GPUs.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from robustclip.errors import RunError, UsageError
from robustclip.runs.processes import Place

T = TypeVar("T")


@cache
def _processes() -> PartialState:
    on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    state = PartialState(cpu=on_cpu)
    if state.num_processes > 1:
        atexit.register(state.destroy_process_group)
    return state


def is_main() -> bool:
    """Is this the process that writes the run's files? Without a launcher it is."""
    return bool(_processes().is_main_process)


def count() -> int:
    """How many processes train together."""
    return int(_processes().num_processes)


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(_processes().process_index)


def place() -> Place:
    """Which share of the data is this process's."""
    return Place(rank(), count())


def broadcast(thing: Any) -> Any:
    """The main process's `thing`, in all processes; it must be one that pickles."""
    return thing if count() == 1 else broadcast_object_list([thing])[0]


def listed(thing: Any) -> list[Any]:
    """The `thing` of each process, in the order of their ranks; it must be one that pickles."""
    return [thing] if count() == 1 else list(gather_object([thing]))


def decided(decide: Callable[[], T]) -> T:
    """Run `decide` in the main process and return its result in all; its exceptions end all.

    For what only one may do: make a folder, look at one that another is about to write to.
    """
    outcome: tuple[Any, Exception | None] = (None, None)
    if is_main():
        try:
            outcome = (decide(), None)
        except Exception as error:
            if count() == 1:
                raise
            outcome = (None, error if isinstance(error, UsageError | RunError) else RunError(repr(error)))
    made, fault = broadcast(outcome)
    if fault is not None:
        raise fault
    return made


def anywhere(flag: bool) -> bool:
    """Whether `flag` holds in any process, so that all may act on it in the same step."""
    if count() == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=_processes().device), "sum"))


def mean(value: Tensor) -> Tensor:
    """The mean of a number over the processes, without gradient."""
    return value.detach() if count() == 1 else reduce(value.detach(), "mean")


def everyone(values: Tensor) -> Tensor:
    """The rows (b, ...) of all processes in the order of their ranks, (count() * b, ...), without gradient."""
    return values.detach() if count() == 1 else gather(values.detach().contiguous())


def everyone_with_gradient(values: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """The rows of all processes, of which this process's own carry gradients.

    That is all it takes where every process computes the loss of the whole batch: the gradient to its own rows is
    then exact, and nothing needs to be sent back (open_clip's gather without local loss).
    """
    if count() == 1:
        return values
    rows = list(everyone(values).chunk(count()))
    rows[rank()] = values
    return torch.cat(rows)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one message.

    Instead of DistributedDataParallel: an attack runs the tower many times with frozen weights between two updates,
    and a batch in parts runs it several times before one, for which its hooks are not made. What it would hide behind
    the backward pass, one message a step, is small beside the attack.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if count() == 1 or not gradients:
        return
    means = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, values in zip(gradients, means.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(values.view_as(gradient))


def is_sharded() -> bool:
    """Whether FSDP is enabled with more than one process."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and count() > 1


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
    """Load full tensors into a possibly sharded module."""
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
