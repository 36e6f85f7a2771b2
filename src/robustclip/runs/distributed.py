"""Multi-process training: ranks and collectives; the only importer of accelerate.

Without a launcher there is one process, and these functions do nothing. With `accelerate launch` (or torchrun) each
process takes its share of a batch.

With FSDP enabled in accelerate's configuration (`accelerate launch --use_fsdp ...`), weights, gradients and optimizer
states are sharded by torch's `fully_shard` (FSDP2), which also runs on CPU processes.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
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
        atexit.register(_leave, state)
    return state


def _leave(state: PartialState) -> None:
    """Destroy the process group, so that its threads end before the interpreter does.

    A thread of Gloo that frees a tensor after that aborts the process. DTensor caches device meshes, which keep the
    group alive (`DeviceMesh._pg_registry` in torch 2.14).
    """
    gc.collect()
    state.destroy_process_group()
    for mesh in [thing for thing in gc.get_objects() if isinstance(thing, DeviceMesh)]:
        getattr(mesh, "_pg_registry", {}).clear()


def is_main() -> bool:
    """Whether this is rank 0, which writes the run's files."""
    return bool(_processes().is_main_process)


def count() -> int:
    """World size."""
    return int(_processes().num_processes)


def rank() -> int:
    """Rank of this process."""
    return int(_processes().process_index)


def place() -> Place:
    """Rank and world size, which select this process's share of the data."""
    return Place(rank(), count())


def broadcast(thing: Any) -> Any:
    """The main process's `thing` (picklable), in all processes."""
    return thing if count() == 1 else broadcast_object_list([thing])[0]


def listed(thing: Any) -> list[Any]:
    """The `thing` (picklable) of each process, by rank."""
    return [thing] if count() == 1 else list(gather_object([thing]))


def summed(counts: Mapping[str, int]) -> Counter[str]:
    """Counts of all processes together."""
    return sum(map(Counter, listed(dict(counts))), Counter[str]())


def decided(decide: Callable[[], T]) -> T:
    """Run `decide` in the main process and return its result, or raise its exception, in all processes.

    For actions that only one process may take, such as creating a folder.
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
    """All-gather of rows (b, ...) by rank: (count() * b, ...), without gradient."""
    return values.detach() if count() == 1 else gather(values.detach().contiguous())


def everyone_with_gradient(values: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """All-gather of rows in which this process's own carry gradients.

    If every process computes the loss of the whole batch, the gradient of its own rows is exact without a backward
    communication (open_clip's gather without local loss).
    """
    if count() == 1:
        return values
    rows = list(everyone(values).chunk(count()))
    rows[rank()] = values
    return torch.cat(rows)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """All-reduce gradients to their mean, in one message.

    Replaces DistributedDataParallel, whose hooks do not fit attacks with frozen weights between updates, nor gradient
    accumulation over several passes. One message a step is cheap beside the attack.
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
    """Shard a tower in place: each of its blocks as an FSDP unit, then the rest."""
    for block in blocks(tower):
        fully_shard(block)
    fully_shard(tower)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The children of a tower's outermost module lists: a ViT's residual blocks, a ConvNet's stages."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1:
            yield from (block for block in child if next(block.parameters(), None) is not None)
        else:
            yield from blocks(child)


def whole(state: Any) -> Any:
    """A state dict with full tensors; a collective, so all processes must call it."""
    return tree_map(lambda value: value.full_tensor() if isinstance(value, DTensor) else value, state)


def gathered(state: Any) -> Any:
    """A state dict with full tensors on the main process's CPU, gathered one by one, so that no device holds them all;
    of sharded ones the other processes get empty tensors. A collective."""

    def on_main(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.cpu() if is_main() else full.new_empty(0)

    return tree_map(on_main, state)


def load_module(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load full tensors into a possibly sharded module."""
    own = module.state_dict()
    module.load_state_dict(
        {name: _laid_out(value, own[name]) if name in own else value for name, value in state.items()}
    )


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state of full tensors, sharded as its parameters are."""
    parameters = [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]

    def placed(value: Any, like: torch.Tensor) -> Any:
        return _laid_out(value, like) if torch.is_tensor(value) and value.shape == like.shape else value

    moments = {
        number: {name: placed(value, parameters[number]) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": moments})


def _laid_out(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
