"""Device and dtype selection."""

from __future__ import annotations

import copy
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import psutil
import torch
from torch import Tensor, nn

from robustclip.errors import RunError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXACT = {"float64": torch.float64}
KINDS = ("cpu", "cuda", "mps")
UNNAMED = ("auto", "measure")
"""Names that leave the choice to `pick_dtype`."""


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Parse a device: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` is the first available of cuda, mps, cpu.

    Raises UsageError for an unknown name and for a device this machine does not have.
    """
    local = os.environ.get("LOCAL_RANK", "")  # a launcher's: one device a process
    if name in ("auto", "cuda") and local and torch.cuda.is_available():
        name = f"cuda:{local}"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"unknown device {name!r}: use auto, cpu, cuda, cuda:<index> or mps", "unknown_device", device=name
        ) from error
    if device.type not in KINDS or (device.type == "cpu" and device.index):
        message = f"nothing here runs on the device {name!r}: use auto, cpu, cuda, cuda:<index> or mps"
        raise UsageError(message, "unknown_device", device=name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        why = "" if count else f" ({no_cuda()})"
        message = f"device {name!r} is not here: torch sees {count} CUDA device(s){why}; use --device auto or cpu"
        raise UsageError(message, "no_such_device", device=name, count=count)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device 'mps' is not here: use --device auto or cpu")
    return device


def no_cuda() -> str:
    """Why torch sees no CUDA device, with what it says of the driver: too old, or missing."""
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    found = f"torch {torch.__version__}, built for {built}"
    try:
        torch.cuda.init()  # raises always; the warning of is_available() comes once a process
    except (RuntimeError, AssertionError) as error:
        return f"{found}: {' '.join(str(error).split())}"
    return f"{found}: no device"


def pick_dtype(
    name: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    step: Callable[[], object] | None = None,
    *,
    tower: nn.Module | None = None,
    exact: bool = False,
) -> torch.dtype:
    """The dtype of computation (under `autocast`; weights and pixels stay float32).

    `auto` is deterministic: bfloat16 on CUDA devices that support it, and on CPUs with bfloat16 instructions for a
    convolutional `tower` (forward and backward take 0.57 of float32's time for emoji-robust, and 1.25 of it for
    emoji-vit-robust); float32 elsewhere. `measure` times `step` in both and takes the faster, e.g.
    `pick_dtype("measure", device, forward_backward(tower, images))`. `exact` allows float64 too, for callers that then
    convert weights and pixels to float64. Raises UsageError for an unknown name, and for `measure` without a step.
    """
    device = torch.device(device)
    names = DTYPES | (EXACT if exact else {})
    if isinstance(name, torch.dtype):
        return name
    if name in names:
        return names[name]
    if name == "measure":
        if step is None:
            raise UsageError(
                f"dtype 'measure' has nothing to time here: use auto, {', '.join(names)}", "nothing_to_time"
            )
        return measure_dtype(step, device)
    if name != "auto":
        raise UsageError(f"unknown dtype {name!r}: use auto, {', '.join(names)}", "unknown_dtype", dtype=name)
    fast = False
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = tower is not None and is_convolutional(tower) and cpu_has_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def chosen_dtype(
    name: str | torch.dtype, tower: nn.Module, images: Tensor, *, recorded: str | None = None, exact: bool = False
) -> torch.dtype:
    """`pick_dtype` for a tower and images (B,3,H,W) on its device, the same in all processes.

    `recorded` is the dtype of a run to resume, which is kept unless `name` names another.
    """
    from robustclip.runs.distributed import decided  # here, for it loads accelerate

    if name in UNNAMED and recorded is not None:
        name = recorded

    def choose() -> torch.dtype:
        step = forward_backward(tower, images) if name == "measure" else None
        return pick_dtype(name, images.device, step, tower=tower, exact=exact)

    return decided(choose)


def is_convolutional(tower: nn.Module) -> bool:
    """Whether most of a tower's weights are convolutions': true of ResNets, false of ViTs and ConvNeXts."""
    kinds = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    parts = [part for part in tower.modules() if isinstance(part, kinds)]
    sizes = {part: sum(one.numel() for one in part.parameters(recurse=False)) for part in parts}
    convolutions = sum(size for part, size in sizes.items() if isinstance(part, nn.Conv2d))
    return 2 * convolutions > sum(sizes.values())


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not in every release of torch
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def measure_dtype(step: Callable[[], object], device: str | torch.device = "cpu", repeats: int = 3) -> torch.dtype:
    """The faster of float32 and bfloat16 for `step`, which runs 2 * (1 + repeats) times (the first is a warm-up)."""

    def seconds(dtype: torch.dtype) -> float:
        def once() -> float:
            start = time.perf_counter()
            with autocast(device, dtype):
                step()
            return time.perf_counter() - start

        once()
        return min(once() for _ in range(repeats))

    return min((torch.float32, torch.bfloat16), key=seconds)


def forward_backward(module: nn.Module, images: Tensor) -> Callable[[], None]:
    """One forward and backward pass over `images`, for timing; on a copy, so that `module`'s statistics stay."""
    module = copy.deepcopy(module)
    leaves = [images.detach().clone().requires_grad_(), *(p for p in module.parameters() if p.requires_grad)]

    def step() -> None:
        torch.autograd.grad(module(leaves[0]).float().sum(), leaves, allow_unused=True)

    return step


def autocast(device: str | torch.device, dtype: torch.dtype) -> torch.autocast:
    """torch.autocast to `dtype`; disabled for float32 and float64."""
    cast = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(torch.device(device).type, dtype=dtype if cast else None, enabled=cast)


def check_memory(needed: float, what: str, device: str | torch.device = "cpu") -> None:
    """Raise UsageError if `what` needs more bytes than are free on the device; `needed` is a lower bound."""
    free = free_memory(device)
    if free is not None and needed > free:
        message = f"{what} take at least {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free on {device}"
        raise UsageError(message, "too_little_memory", needed=needed)


def free_memory(device: str | torch.device) -> float | None:
    """Free bytes on a device; None if unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available) if device.type == "cpu" else None


def largest_resident() -> int | None:
    """The most resident memory of this process so far, in bytes; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


NO_MEMORY: Final = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
"""What torch says in a RuntimeError where a CPU, MPS or an older driver has no more."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception is a device's or the CPU allocator's lack of memory."""
    if isinstance(error, RuntimeError):
        return isinstance(error, torch.OutOfMemoryError) or NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)


@contextmanager
def out_of_memory_as(error: Callable[[], RunError]) -> Iterator[None]:
    """Context manager: torch's out-of-memory errors become `error()`."""
    try:
        yield
    except Exception as raised:
        if isinstance(raised, RunError) or not is_out_of_memory(raised):
            raise
        raise error() from raised


def saved_bytes(forward: Callable[[], Tensor], weights: Iterable[Tensor] = ()) -> int:
    """Bytes saved by autograd in `forward()`, each storage once, without those of `weights`."""
    own = {weight.untyped_storage()._cdata for weight in weights}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = forward()
    total = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    del graph
    return total
