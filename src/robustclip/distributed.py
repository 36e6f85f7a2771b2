"""Processes that train together. The only importer of accelerate; without a launcher there is one process."""

from __future__ import annotations

from functools import cache

import torch
from accelerate import PartialState
from accelerate.utils import gather as gather_tensors
from torch import Tensor


@cache
def _processes() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available())


def is_main() -> bool:
    """Is this the process that writes the run's files? Without a launcher it is."""
    return bool(_processes().is_main_process)


def count() -> int:
    """How many processes train together."""
    return int(_processes().num_processes)


def gather(values: Tensor) -> Tensor:
    """The `values` (n, ...) of all processes, one after another (count() * n, ...); no gradient passes."""
    gathered: Tensor = gather_tensors(values)
    return gathered
