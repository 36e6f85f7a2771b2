"""Table of GPUs: peak FLOPS, memory and typical price per hour."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

HERE: Final = "here"
"""The machine of the caller, measured instead of looked up."""

PRICES_OF: Final = "2026-03"
"""When the prices were read: list prices of one cloud that rents single GPUs, or of a like one where it has none. They
are indicative; other clouds ask three times as much for the same GPU, or half."""


SINGLE_REACHED: Final = 0.7
"""The share of its float32 peak that a GPU is taken to reach: ordinary cores are easier to keep busy (ours)."""


@dataclass(frozen=True)
class Gpu:
    """`half` and `single` are peaks in TFLOP/s, as the maker's data sheet gives them: dense (no sparsity) tensor cores
    with accumulation in float32 for bfloat16 and float16, and ordinary cores for float32, which is what torch uses
    unless it is told that TF32 will do. Memory in GB, price in US dollars an hour."""

    half: float
    single: float
    memory: float
    price: float
    has_bfloat16: bool = True

    def reached(self, dtype: str, mfu: float) -> float:
        """FLOP/s expected in a dtype by name, `mfu` being the share of the tensor cores' peak."""
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


def known(name: str) -> str:
    """`name` as the table spells it ("RTX 4090" is rtx4090). Raises ValueError for a GPU that is not in it."""
    spelt = name.strip().lower().replace("_", "-").replace(" ", "-")
    for candidate in (spelt, spelt.replace("-", ""), f"{spelt}-80gb"):
        if candidate in GPUS or candidate == HERE:
            return candidate
    near = get_close_matches(spelt, GPUS, n=3)
    meant = f"; near ones: {', '.join(near)}" if near else ""
    raise ValueError(f"should be {HERE} (this machine, measured) or one of {', '.join(GPUS)}{meant}")
