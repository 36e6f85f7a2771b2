"""Print a plan and its assumptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from robustclip.planning import gpus
from robustclip.planning.memory import GIB, RESERVED

if TYPE_CHECKING:
    from robustclip.planning.estimate import Estimate

NAMES = {
    "recomputed": "computed again for parts",
    "beside": "clean and original embeddings",
    "watching": "log and probe",
}


def table(estimate: Estimate) -> Group:
    """A line for each answer with how it comes about, the assumptions, and the command."""
    settings, terms, step = estimate.settings, estimate.terms, estimate.step
    lines = Table("", "", "", box=None, pad_edge=False, show_header=False)
    lines.add_column()
    share = settings.share(terms.count)
    tower = f"{settings.architecture or settings.start} at {estimate.size[0]}x{estimate.size[1]}"
    rows = [
        ("tower", f"{estimate.parameters / 1e6:,.1f}M weights", tower),
        (
            "samples",
            f"{settings.samples:,}",
            f"{settings.steps:,} steps of {settings.batch_size:,}: {share:,} on each of {terms.count} x {terms.gpu}"
            + (f", in {settings.accumulate} parts" if settings.accumulate > 1 else ""),
        ),
        ("FLOPs of a step", with_prefix(step.total, "FLOP"), shares(vars(step))),
        (
            "FLOPs of an image",
            with_prefix(step.total / settings.batch_size, "FLOP"),
            f"{step.total / settings.batch_size / estimate.tower.forward:.1f} forward passes of the image tower",
        ),
        ("FLOPs of the run", with_prefix(estimate.total_flops, "FLOP"), ""),
        ("time of a step", f"{estimate.seconds_per_step:.3g} s", f"{estimate.images_per_second:,.0f} images/s"),
        ("time of the run", in_time(estimate.hours), f"{estimate.hours * terms.count:,.1f} GPU hours"),
        ("cost", _cost(estimate), _price(estimate)),
        (
            "memory of a GPU",
            f"{estimate.memory.peak / GIB:,.1f} GB",
            f"of {estimate.memory_of_gpu / GIB:,.0f} GB; fullest in the {estimate.memory.fullest}: {_memory(estimate)}",
        ),
        ("", _fits(estimate), ""),
    ]
    for row in rows:
        lines.add_row(*map(Text, row))
    assumed = [Text(f"- {sentence}", style="dim") for sentence in assumptions(estimate)]
    return Group(lines, Text("\nAssumed:"), *assumed, Text("\nTo run it (with its data):"), Text(estimate.command))


def assumptions(estimate: Estimate) -> list[str]:
    """What the numbers stand on, in sentences."""
    terms, measured = estimate.terms, estimate.measured
    said = ["FLOPs are those of products of matrices and convolutions, counted by torch on this tower."]
    if measured is None:
        said.append(_speed(estimate, gpus.GPUS[terms.gpu]))
    else:
        said.append(
            f"Measured here: {measured.images} images a step on {measured.device} in {measured.dtype} made "
            f"{with_prefix(measured.flops_per_second, 'FLOP/s')}, and an update besides takes "
            f"{measured.seconds_per_update:.3g} s."
        )
    if estimate.has_grouped_convolutions:
        said.append("The tower has grouped convolutions, which reach far less of a peak than dense ones.")
    said.append(
        f"Nobody waits for data, which must deliver {estimate.images_per_second:,.0f} images/s, and messages between "
        "GPUs take no time."
    )
    said.append(_captions(estimate))
    said.append(
        f"Weights, gradients, moments and average are float32; activations are what torch keeps on a CPU in "
        f"{estimate.dtype} with fused attention; {RESERVED:.0%} of the memory stays free for the rest."
    )
    if terms.price is None and estimate.price is not None:
        said.append(f"Prices are indicative, of {gpus.PRICES_OF}: give yours by --price.")
    return said


def with_prefix(value: float, unit: str) -> str:
    """1.5e12 FLOP is 1.50 TFLOP."""
    for power, prefix in ((24, "Y"), (21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def in_time(hours: float) -> str:
    """Hours as people say them."""
    if hours < 1:
        return f"{hours * 60:.3g} minutes"
    return f"{hours:,.1f} hours" if hours < 72 else f"{hours / 24:,.1f} days ({hours:,.0f} hours)"


def shares(parts: Mapping[str, float]) -> str:
    """What a total consists of, in percent, the largest first."""
    total = sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{NAMES.get(name, name)} {value / total:.1%}" for name, value in largest if value > 0)


def _speed(estimate: Estimate, gpu: gpus.Gpu) -> str:
    name, measure = estimate.terms.gpu, "Small towers and batches reach less; --gpu here, on one of them, measures it."
    if estimate.dtype == "float32":
        return f"A {name} reaches {gpus.SINGLE_REACHED:.0%} of {gpu.single:g} TFLOP/s in float32. {measure}"
    return (
        f"A {name} reaches {estimate.terms.mfu:.0%} (--mfu) of {gpu.half:,g} TFLOP/s, its maker's figure for dense "
        f"{estimate.dtype}. {measure}"
    )


def _memory(estimate: Estimate) -> str:
    memory = estimate.memory
    parts = memory.held | memory.moments[memory.fullest]
    return ", ".join(f"{name} {size / GIB:.2g}" for name, size in parts.items() if size / GIB >= 0.05)


def _fits(estimate: Estimate) -> str:
    if estimate.fits:
        return "fits"
    if estimate.memory.fullest == "probe":
        return "does NOT fit the probe, a whole batch at once: --evaluate-every 0 leaves it out, a smaller batch helps"
    if estimate.enough_accumulation is not None:
        return f"does NOT fit: --accumulate {estimate.enough_accumulation} would, or --grad-checkpointing may"
    return "does NOT fit, in however many parts: try --fsdp, --grad-checkpointing or larger GPUs"


def _cost(estimate: Estimate) -> str:
    return "unknown" if estimate.cost is None else f"${estimate.cost:,.2f}"


def _price(estimate: Estimate) -> str:
    if estimate.price is None:
        return "give --price, of an hour"
    return f"{estimate.terms.count} x ${estimate.price:.2f} an hour"


def _captions(estimate: Estimate) -> str:
    if not estimate.settings.coupled:
        return "The loss reads no captions, only the names of all concepts, which are embedded once."
    if estimate.tower.caption is None:
        return "The text tower is not counted: its config would have to be fetched."
    return "Every caption fills the text tower's context, and is embedded in float32 in each step that meets it."
