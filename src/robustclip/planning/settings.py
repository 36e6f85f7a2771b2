"""Inputs of a plan: GPUs, number of samples, and the settings of a training that determine its cost.

Importing this module does not import torch, so that help stays fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import ceil
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, PositiveInt

from robustclip.errors import UsageError
from robustclip.planning.launch import Launcher
from robustclip.recipes import Recipe
from robustclip.runs.processes import Place

HERE: Final = "here"
"""Name of this machine, which is measured instead of looked up."""
PRICES_OF: Final = "2026-03"
"""Date of the prices, list prices of a cloud that rents single GPUs. They are indicative; other clouds charge from half
to three times as much."""
SINGLE_REACHED: Final = 0.7
"""Assumed utilisation of a GPU's float32 peak (ours); without tensor cores it is higher than --mfu."""
RESERVED: Final = 0.1
"""Share of a GPU's memory for the CUDA context, fragmentation, and workspace of layers (ours)."""
LOG_EVERY: Final = 10  # the trainer's default
GIB: Final = 2**30


@dataclass(frozen=True)
class Gpu:
    """`half` and `single` are peaks in TFLOP/s of the maker's data sheet: dense (no sparsity) tensor cores with float32
    accumulation for bfloat16 and float16, and ordinary cores for float32, torch's default (no TF32). Memory in GB,
    price in US dollars per hour."""

    half: float
    single: float
    memory: float
    price: float
    has_bfloat16: bool = True

    def reached(self, dtype: str, mfu: float) -> float:
        """Expected FLOP/s in a dtype by name; `mfu` is the utilisation of the tensor cores' peak."""
        return 1e12 * (SINGLE_REACHED * self.single if dtype == "float32" else mfu * self.half)


GPUS: Final = {
    "b200": Gpu(2250, 75, 180, 5.98),  # NVIDIA HGX B200 data sheet (a system's numbers / 8)
    "h200": Gpu(989, 67, 141, 3.59),  # NVIDIA H200 data sheet, SXM
    "h100": Gpu(989, 67, 80, 2.69),  # NVIDIA H100 data sheet, SXM
    "h100-pcie": Gpu(756, 51, 80, 1.99),  # NVIDIA H100 PCIe product brief
    "a100-80gb": Gpu(312, 19.5, 80, 1.39),  # NVIDIA A100 80GB data sheet
    "a100-40gb": Gpu(312, 19.5, 40, 1.29),  # NVIDIA A100 data sheet
    "l40s": Gpu(362, 91.6, 48, 0.79),  # NVIDIA L40S data sheet
    "l4": Gpu(121, 30.3, 24, 0.44),  # NVIDIA L4 data sheet
    "a40": Gpu(149.7, 37.4, 48, 0.40),  # NVIDIA A40 data sheet
    "a10": Gpu(125, 31.2, 24, 0.75),  # NVIDIA A10 data sheet
    "rtx-a6000": Gpu(154.8, 38.7, 48, 0.49),  # NVIDIA RTX A6000 data sheet (half of its sparse figure)
    "rtx5090": Gpu(209.5, 104.8, 32, 0.69),  # NVIDIA RTX Blackwell architecture paper
    "rtx4090": Gpu(165.2, 82.6, 24, 0.34),  # NVIDIA Ada architecture paper
    "rtx3090": Gpu(71, 35.6, 24, 0.22),  # NVIDIA Ampere GA102 architecture paper
    "v100": Gpu(125, 15.7, 32, 0.55, has_bfloat16=False),  # NVIDIA V100 data sheet, SXM2
    "t4": Gpu(65, 8.1, 16, 0.35, has_bfloat16=False),  # NVIDIA T4 data sheet
}


def known_gpu(name: str) -> str:
    """Canonical name of a GPU ("RTX 4090" is rtx4090). Raises ValueError for an unknown one."""
    spelt = name.strip().lower().replace("_", "-").replace(" ", "-")
    for candidate in (spelt, spelt.replace("-", ""), f"{spelt}-80gb"):
        if candidate in GPUS or candidate == HERE:
            return candidate
    near = get_close_matches(spelt, GPUS, n=3)
    meant = f"; near ones: {', '.join(near)}" if near else ""
    raise ValueError(f"should be {HERE} (this machine, measured) or one of {', '.join(GPUS)}{meant}")


def count_of(text: object) -> object:
    """Parse a number of samples: 100M, 5k, 1.2B, 4096. Raises ValueError."""
    if not isinstance(text, str):
        return text
    powers = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kmb]?)", text.strip().lower().replace("_", ""), re.ASCII)
    value = float(found[1]) * powers[found[2]] if found else 0.0
    if not value.is_integer() or not 0 < value <= 10**15:
        raise ValueError("should be a whole number above 0, as in 100M, 5k, 1.2B or 4096")
    return int(value)


@dataclass(frozen=True)
class Terms:
    """Hardware, length and assumptions of a planned run."""

    gpu: Annotated[str, AfterValidator(known_gpu), "GPU name, or `here` to time a step on this machine"] = "h100"
    count: Annotated[PositiveInt, "number of GPUs, one process each"] = 1
    samples: Annotated[int | None, BeforeValidator(count_of), "number of training pairs, e.g. 100M; sets --steps"] = (
        None
    )
    mfu: Annotated[float, Field(gt=0, le=1), "assumed utilisation of peak FLOPS"] = 0.3
    price: Annotated[NonNegativeFloat | None, "price of one GPU hour; default: the table's"] = None
    fsdp: Annotated[bool, "shard weights, gradients and moments over the GPUs (FSDP)"] = False
    per_node: Annotated[PositiveInt, "GPUs of one machine"] = 8
    launch: Annotated[Launcher | None, "print a script that launches the run, instead of the table"] = None

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return ceil(self.count / self.per_node)


def faults(
    gpu: str, count: int, fsdp: bool, per_node: int, launch: Launcher | None, dtype: str, quick: bool
) -> Iterator[str]:
    """Faults of combinations of terms and flags."""
    if launch and count > per_node and count % per_node:
        near = " or ".join(f"--count {per_node * nodes}" for nodes in (count // per_node, count // per_node + 1))
        yield f"--count {count}: not a multiple of the {per_node} GPUs of a machine (--per-node): give {near}"
    if quick:
        yield "--quick: a quick run takes seconds and needs no plan: leave it out"
    if fsdp and count == 1:
        yield "--fsdp splits weights over GPUs, and --count is 1: leave it out, or give --count 2 or more"
    if gpu != HERE and dtype == "bfloat16" and not GPUS[gpu].has_bfloat16:
        yield f"--dtype bfloat16: not supported by a {gpu}: use --dtype float32"
    if gpu != HERE and dtype not in ("auto", "bfloat16", "float32"):
        yield f"--dtype {dtype!r}: training runs in auto, bfloat16 or float32"


@dataclass(frozen=True)
class Settings:
    """Settings that the cost of a training depends on, named as the flags; defaults are the trainer's."""

    start: str
    steps: int
    batch_size: int
    architecture: str | None = None
    attack_steps: int = 0
    objective: str = "clip"
    split: str | None = None
    clean_weight: float = 0.0
    anchor: float = 0.0
    energy: float = 0.0
    energy_steps: int = 0
    accumulate: int = 1
    attack_negatives: str = "gathered"
    grad_checkpointing: bool = False
    frozen_statistics: bool = False
    locked_groups: int = 0
    evaluate_every: int = 0
    channels_last: bool = False
    dtype: str = "auto"
    device: str = "auto"

    @property
    def coupled(self) -> bool:
        """Whether an image's loss depends on the rest of its batch."""
        return self.objective in ("clip", "siglip")

    @property
    def reads_clean(self) -> bool:
        """Whether the update also embeds the clean images, with gradients."""
        return self.objective == "trades" or self.anchor > 0 or self.energy > 0

    @property
    def sampling_steps(self) -> int:
        """Steps of CLIP-JEM's negative samples, each as dear as one of the attack."""
        return self.energy_steps if self.energy else 0

    @property
    def reads_original(self) -> bool:
        """Whether the objective needs the tower before training."""
        return self.objective in ("fare", "agft") or self.anchor > 0

    @property
    def samples(self) -> int:
        return self.steps * self.batch_size

    def share(self, count: int) -> int:
        """Pairs of a batch per process. Raises UsageError if `count` does not divide the batch."""
        return Place(world_size=count).share(self.batch_size)

    def part(self, count: int) -> int:
        """Pairs whose activations a process holds at once."""
        return ceil(self.share(count) / self.accumulate)


def settings_of(recipe: Recipe, arguments: Mapping[str, Any], samples: int | None = None) -> Settings:
    """Settings of a call of `recipe` with `arguments` (including defaults), for `samples` pairs or the recipe's steps.

    Raises UsageError for a recipe without tower or batch size, and for one that trains a text tower or LoRA.
    """
    known = dict(arguments)
    for flag, trained in (("edits", "a text tower"), ("votes", "LoRA on triplets")):
        if flag in known:
            raise UsageError(f"plans are of whole image towers on pairs, and {recipe.name} trains {trained}", "no_plan")
    if lacking := [name for name in ("start", "steps", "batch_size") if not known.get(name)]:
        flags = ", ".join("--" + name.replace("_", "-") for name in lacking)
        raise UsageError(
            f"{recipe.name} has no value of {flags}, which a plan needs. Give it if the recipe has the flag, "
            "e.g. --start emoji-vanilla or --start ViT-B-32:laion2b_s34b_b79k"
        )
    if samples is not None:
        known["steps"] = ceil(samples / known["batch_size"])
    return Settings(**{field.name: known[field.name] for field in fields(Settings) if field.name in known})
