"""Estimate FLOPs, memory, hours and cost of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Group
from torch import nn

from robustclip.planning import flops, gpus, memory, report
from robustclip.planning.flops import StepFlops, TowerFlops
from robustclip.planning.imagined import Blueprint, Imagined, blueprint, imagine
from robustclip.planning.memory import Memory
from robustclip.planning.plan import command_line
from robustclip.planning.rehearsal import Rehearsal, rehearse
from robustclip.planning.settings import Settings, of_recipe
from robustclip.planning.terms import Terms
from robustclip.recipes import Recipe
from robustclip.robustification.state import ready_to_train
from robustclip.runs import terminal


@dataclass(frozen=True)
class Estimate:
    """What a run would take. Times in seconds and hours, memory in bytes of one GPU, cost in US dollars."""

    recipe: str
    settings: Settings
    terms: Terms
    dtype: str
    size: tuple[int, int]
    parameters: int
    tower: TowerFlops
    step: StepFlops
    memory: Memory
    memory_of_gpu: float
    enough_accumulation: int | None
    """Parts of a share, a power of two, with which it fits; None where no number of parts is enough."""
    flops_per_second: float
    """That a GPU is expected to reach in the image tower, or was measured to."""
    seconds_per_step: float
    price: float | None
    measured: Rehearsal | None
    has_grouped_convolutions: bool
    command: str

    @property
    def total_flops(self) -> float:
        return self.step.total * self.settings.steps

    @property
    def hours(self) -> float:
        return self.seconds_per_step * self.settings.steps / 3600

    @property
    def cost(self) -> float | None:
        return None if self.price is None else self.hours * self.terms.count * self.price

    @property
    def images_per_second(self) -> float:
        """Of all GPUs together: what the data must deliver."""
        return self.settings.batch_size / self.seconds_per_step

    @property
    def fits(self) -> bool:
        return self.memory.peak <= (1 - memory.RESERVED) * self.memory_of_gpu

    def __repr__(self) -> str:
        return f"<Estimate of {self.recipe}: {self.settings.steps} steps; .table() shows it>"

    def _repr_html_(self) -> str:  # what a notebook shows
        return terminal.html(self.table())

    def table(self) -> Group:
        """For people."""
        return report.table(self)

    def to_json(self) -> dict[str, Any]:
        """For programs: every number above, and what is assumed, in sentences."""
        derived = {name: getattr(self, name) for name in ("total_flops", "hours", "cost", "images_per_second", "fits")}
        peak = {"peak": self.memory.peak, "fullest": self.memory.fullest}
        return asdict(self) | derived | {"memory": asdict(self.memory) | peak, "assumptions": report.assumptions(self)}


def estimate(recipe: Recipe, terms: Terms, arguments: Mapping[str, Any]) -> Estimate:
    """Plan a call of `recipe`. Raises UsageError for settings that the trainer would refuse too."""
    settings = of_recipe(recipe, arguments, terms.samples)
    settings.share(terms.count)
    design = blueprint(settings.start, settings.architecture)
    towers = imagine(design, lambda tower: _ready(tower, settings, terms.count))
    bank = 0 if settings.coupled else _texts_of_bank(settings)
    tower = flops.of_towers(towers, design.size)
    step = flops.of_step(settings, tower, design, terms.count, bank)
    measured = rehearse(settings, design, tower, terms.count, bank) if terms.gpu == gpus.HERE else None
    if measured is None:
        gpu = gpus.GPUS[terms.gpu]
        dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if gpu.has_bfloat16 else "float32"
        speed, reading = gpu.reached(dtype, terms.mfu), gpu.reached("float32", terms.mfu)
        memory_of_gpu, update = gpu.memory * memory.GIB, 0.0
        price: float | None = gpu.price if terms.price is None else terms.price
    else:
        dtype, speed, memory_of_gpu = measured.dtype, measured.flops_per_second, measured.memory
        update, price, reading = measured.seconds_per_update, terms.price, speed
    needed = _memories(settings, towers, design, dtype, terms, bank)
    usable = (1 - memory.RESERVED) * memory_of_gpu
    return Estimate(
        recipe=recipe.name,
        settings=settings,
        terms=terms,
        dtype=dtype,
        size=design.size,
        parameters=sum(weight.numel() for weight in towers.image_tower.parameters()),
        tower=tower,
        step=step,
        memory=needed[settings.accumulate],
        memory_of_gpu=memory_of_gpu,
        enough_accumulation=next((parts for parts, memory in needed.items() if memory.peak <= usable), None),
        flops_per_second=speed,
        seconds_per_step=((step.total - step.captions) / speed + step.captions / reading) / terms.count + update,
        price=price,
        measured=measured,
        has_grouped_convolutions=any(_is_grouped(module) for module in towers.image_tower.modules()),
        command=command_line(recipe, arguments, settings.steps, terms),
    )


def _ready(tower: nn.Module, settings: Settings, count: int) -> None:
    ready_to_train(
        tower,
        frozen_statistics=settings.frozen_statistics,
        grad_checkpointing=settings.grad_checkpointing,
        accumulate=max(settings.accumulate, min(2, count)),  # several processes are refused what parts are
        channels_last=False,
    )


def _memories(
    settings: Settings, towers: Imagined, design: Blueprint, dtype: str, terms: Terms, bank: int
) -> dict[int, Memory]:
    """Memory by the number of parts of a share: the settings' own, and more."""
    kept = memory.activations(towers, design.size, dtype, grad_checkpointing=settings.grad_checkpointing)
    share = settings.share(terms.count)
    parts = [settings.accumulate, *(2**n for n in range(1, share.bit_length()) if 2**n > settings.accumulate)]
    return {
        accumulate: memory.of_step(
            replace(settings, accumulate=accumulate), towers, design, kept, terms.count, fsdp=terms.fsdp, bank=bank
        )
        for accumulate in parts
    }


def _texts_of_bank(settings: Settings) -> int:
    """The concepts of the recipe's split of the embedded set, whose names are the bank."""
    from robustclip.data.emoji import load_labels

    return len(load_labels(settings.split or "guide-styles").labels.unique())


def _is_grouped(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1
