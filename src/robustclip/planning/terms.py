"""Arguments of a plan: GPUs, their number, samples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, PositiveInt

from robustclip.planning import gpus

POWERS: Final = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
MOST: Final = 10**15


def count_of(text: object) -> object:
    """A number of samples: 100M, 5k, 1.2B, 4096. Raises ValueError for what is none."""
    if not isinstance(text, str):
        return text
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kmb]?)", text.strip().lower().replace("_", ""), re.ASCII)
    value = float(found[1]) * POWERS[found[2]] if found else 0.0
    if not value.is_integer() or not 0 < value <= MOST:
        raise ValueError("should be a whole number above 0, as in 100M, 5k, 1.2B or 4096")
    return int(value)


@dataclass(frozen=True)
class Terms:
    """Where a run would be made, how long, and what is assumed of it."""

    gpu: Annotated[str, AfterValidator(gpus.known), "its name, or `here` to measure a step on this machine"] = "h100"
    count: Annotated[PositiveInt, "how many of them, a process each"] = 1
    samples: Annotated[int | None, BeforeValidator(count_of), "pairs to see, as 100M; sets --steps"] = None
    mfu: Annotated[float, Field(gt=0, le=1), "the share of their peak that tensor cores reach (assumed)"] = 0.3
    price: Annotated[NonNegativeFloat | None, "of one GPU for an hour, else the table's"] = None
    fsdp: Annotated[bool, "split weights, gradients and moments over the GPUs"] = False


def faults(gpu: str, count: int, fsdp: bool, dtype: str, quick: bool) -> Iterator[str]:
    """What is wrong with terms and flags that are illegal together."""
    if quick:
        yield "--quick: a quick run takes seconds, there is nothing to plan: leave it out"
    if fsdp and count == 1:
        yield "--fsdp splits weights over GPUs, and --count is 1: leave it out, or give --count 2 or more"
    if gpu != gpus.HERE and dtype == "bfloat16" and not gpus.GPUS[gpu].has_bfloat16:
        yield f"--dtype bfloat16: a {gpu} does not compute in it: use --dtype float32"
    if gpu != gpus.HERE and dtype not in ("auto", "bfloat16", "float32"):
        yield f"--dtype {dtype!r}: training runs in auto, bfloat16 or float32"
