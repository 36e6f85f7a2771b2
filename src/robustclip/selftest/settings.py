"""Devices, dtypes and memory layouts that the checks compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from robustclip.runs.devices import cpu_has_bfloat16

TF32: Final = 2.0**-11  # unit roundoff: a significand of 10 bits and the hidden one
LOSS_SCALE: Final = 1024.0
"""In float16, as a GradScaler's, for gradients below 2^-24 are 0 there; the checks do not overflow with it."""
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Setting:
    """One way to compute a check. `dtype` is autocast's, but for float64, in which weights and pixels are too."""

    name: str
    device: torch.device
    dtype: torch.dtype = torch.float32
    tf32: bool = False
    channels_last: bool = False
    compiled: bool = False
    scale: float = 1.0

    @property
    def roundoff(self) -> float:
        """Unit roundoff of the products: half the distance of 1 to the next number."""
        return TF32 if self.tf32 else torch.finfo(self.dtype).eps / 2

    @property
    def exact(self) -> torch.dtype:
        """Of weights and pixels."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def autocast(self) -> torch.dtype:
        """What to open an autocast with: float32 means none."""
        return torch.float32 if self.dtype == torch.float64 else self.dtype

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on the device, in the exact dtype; images in the layout."""
        return tensor.to(
            self.device, self.exact, memory_format=self.layout if tensor.ndim == 4 else torch.preserve_format
        )

    def placed(self, module: Module) -> Module:
        """A module's weights on the device, in the exact dtype and the layout."""
        return module.to(self.device, self.exact).to(memory_format=self.layout)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """TF32 in matrix products and convolutions on, or off; as before afterwards."""
        # torch's older switches: since 2.9 there are fp32_precision attributes too, and reading one kind after writing
        # the other raises.
        products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        try:
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = self.tf32
            yield
        finally:
            torch.set_float32_matmul_precision(products)
            torch.backends.cudnn.allow_tf32 = convolutions


TRUTH: Final = Setting("float64", torch.device("cpu"), torch.float64)


def settings_of(device: torch.device) -> list[Setting]:
    """What is checked on a device: on the CPU the dtypes and channels_last; on an accelerator TF32 and compilation too.

    Left out: what the device does not have. bfloat16 that is emulated is checked all the same.
    """
    found = [
        Setting("float32", device),
        Setting("bfloat16", device, torch.bfloat16),
        Setting("float16", device, torch.float16, scale=LOSS_SCALE),
        Setting("channels_last", device, channels_last=True),
    ]
    if device.type == "cuda":
        found.insert(1, Setting("TF32", device, tf32=True))
    if device.type != "cpu":  # where it takes half a minute and a C++ compiler
        found.append(Setting("compiled", device, compiled=True))
    return found


def accelerators() -> list[torch.device]:
    """Every CUDA device, and MPS."""
    found = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return found + ([torch.device("mps")] if torch.backends.mps.is_available() else [])


def dtypes_of(device: torch.device) -> list[str]:
    """The dtypes that a device computes in by itself."""
    found = ["float32", "float16"] if device.type == "mps" else ["float64", "float32", "float16"]
    native = cpu_has_bfloat16() if device.type == "cpu" else device.type == "cuda" and _bfloat16_on(device)
    return [*found, "bfloat16"] if native else found


def _bfloat16_on(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)
