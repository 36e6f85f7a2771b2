"""Plan a training run before it is started: FLOPs, memory, hours and cost on GPUs by name or on this machine.

Importing this module does not import torch, so that help stays fast.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from robustclip import recipes, signatures
from robustclip.errors import raise_faults
from robustclip.planning.settings import (
    GIB,
    GPUS,
    HERE,
    PRICES_OF,
    RESERVED,
    SINGLE_REACHED,
    Launch,
    Settings,
    Terms,
    settings_of,
    shares,
)
from robustclip.planning.settings import (
    faults as faults,  # of a call, which `signatures.bind` finds here
)
from robustclip.recipes import LATEST, Recipe
from robustclip.runs import terminal
from robustclip.runs.folder import HOME
from robustclip.runs.terminal import in_time, with_prefix
from robustclip.signatures import Parameter
from robustclip.source import Function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from robustclip.planning.costs import Sent, StepFlops, TowerFlops
    from robustclip.planning.memory import Memory
    from robustclip.planning.towers import Rehearsal


@dataclass(frozen=True)
class Estimate:
    """Estimate of a run: times in seconds and hours, memory in bytes of one GPU, cost in US dollars.

    enough_accumulation  smallest --accumulate, a power of two, with which it fits; None if none does
    largest_batch        largest --batch-size that fits with the given --accumulate; 0 if none does
    largest_in_parts     largest --batch-size that fits in any number of parts, and that --accumulate
    flops_per_second     of a GPU in the image tower, expected or measured
    bandwidth            bytes per second that a GPU sends to the others; None if unknown, and then not in the times
    """

    recipe: str
    settings: Settings
    terms: Terms
    dtype: str
    size: tuple[int, int]
    parameters: int
    trained_parameters: int
    tower: TowerFlops
    step: StepFlops
    sent: Sent
    bandwidth: float | None
    memory: Memory
    memory_of_gpu: float
    enough_accumulation: int | None
    largest_batch: int
    largest_in_parts: tuple[int, int]
    flops_per_second: float
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
        """Of all GPUs together, the rate that the data must deliver."""
        return self.settings.batch_size / self.seconds_per_step

    @property
    def fits(self) -> bool:
        return self.memory.peak <= (1 - RESERVED) * self.memory_of_gpu

    def __repr__(self) -> str:
        return f"<Estimate of {self.recipe}: {self.settings.steps} steps; .table() shows it>"

    def _repr_html_(self) -> str:  # what a notebook shows
        return terminal.html(self.table())

    def to_json(self) -> dict[str, Any]:
        """All numbers, and the assumptions in sentences."""
        derived = {name: getattr(self, name) for name in ("total_flops", "hours", "cost", "images_per_second", "fits")}
        peak = {"peak": self.memory.peak, "fullest": self.memory.fullest}
        return asdict(self) | derived | {"memory": asdict(self.memory) | peak, "assumptions": self.assumptions()}

    def table(self) -> Group:
        """Table of the estimates, the assumptions, and the command."""
        settings, terms, step, each = self.settings, self.terms, self.step, self.step.total / self.settings.batch_size
        parts = f", in {settings.accumulate} parts" if settings.accumulate > 1 else ""
        share = f"{settings.share(terms.count):,} on each of {terms.count} x {terms.gpu}{parts}"
        passes = f"{each / self.tower.forward:.1f} forward passes of the image tower"
        tower = f"{settings.architecture or settings.start} at {self.size[0]}x{self.size[1]}"
        if settings.locked_groups:
            tower += f", {self.trained_parameters / 1e6:,.2f}M of them trained"
        named = self.memory.held | self.memory.moments[self.memory.fullest]
        kept = ", ".join(f"{name} {size / GIB:.2g}" for name, size in named.items() if size / GIB >= 0.05)
        of_gpu = f"of {self.memory_of_gpu / GIB:,.0f} GB; fullest in the {self.memory.fullest}: {kept}"
        price = "give --price, of an hour" if self.price is None else f"{terms.count} x ${self.price:.2f} an hour"
        rows = [
            ("tower", f"{self.parameters / 1e6:,.1f}M weights", tower),
            ("samples", f"{settings.samples:,}", f"{settings.steps:,} steps of {settings.batch_size:,}: {share}"),
            ("FLOPs of a step", with_prefix(step.total, "FLOP"), shares(vars(step))),
            ("FLOPs of an image", with_prefix(each, "FLOP"), passes),
            ("FLOPs of the run", with_prefix(self.total_flops, "FLOP"), ""),
            ("time of a step", f"{self.seconds_per_step:.3g} s", f"{self.images_per_second:,.0f} images/s"),
            ("time of the run", in_time(self.hours), f"{self.hours * terms.count:,.1f} GPU hours"),
            *self._sending(),
            ("cost", "unknown" if self.cost is None else f"${self.cost:,.2f}", price),
            ("memory of a GPU", f"{self.memory.peak / GIB:,.1f} GB", of_gpu),
            ("", self.advice(), ""),
        ]
        lines = Table("", "", "", box=None, pad_edge=False, show_header=False)
        for row in rows:
            lines.add_row(*map(Text, row))
        assumed = [Text(f"- {sentence}", style="dim") for sentence in self.assumptions()]
        return Group(lines, Text("\nAssumed:"), *assumed, Text("\nTo run it (with its data):"), Text(self.command))

    def _sending(self) -> list[tuple[str, str, str]]:
        if self.terms.count == 1:
            return []
        about = f"by each GPU: {shares(vars(self.sent))}"
        if self.bandwidth is not None:
            about += f"; {self.sent.seconds(self.bandwidth):.3g} s at {self.bandwidth / 1e9:g} GB/s"
        return [("sent per step", with_prefix(self.sent.total, "B"), about)]

    def advice(self) -> str:
        """Whether it fits into a GPU's memory, and what to change if not."""
        (batch, parts), count = self.largest_in_parts, self.terms.count
        in_parts = f"--batch-size {batch} --accumulate {parts} ({batch // count:,} on each GPU)"
        alone = f"--batch-size {self.largest_batch} ({self.largest_batch // count:,} on each GPU)"
        if self.fits:
            return f"fits, as does {alone}, the largest with this --accumulate"
        if not self.largest_batch:
            return "does NOT fit, not even an image a GPU: try --fsdp, --grad-checkpointing or larger GPUs"
        would = [alone] if self.enough_accumulation is None else [f"--accumulate {self.enough_accumulation}", alone]
        if self.enough_accumulation is None and batch > self.largest_batch:
            would.append(in_parts)
        if self.memory.fullest == "probe":
            would.append("perhaps --evaluate-every 0, which leaves the probe out")
        return f"does NOT fit: {', or '.join(would)} would, and --grad-checkpointing may"

    def assumptions(self) -> list[str]:
        """Assumptions behind the numbers, in sentences."""
        captions = "Every caption fills the text tower's context, and is embedded in float32 in each step."
        if not self.settings.coupled:
            captions = "The loss reads no captions, only the names of all concepts, which are embedded once."
        elif self.tower.caption is None:
            captions = "The text tower is not counted: its config would have to be fetched."
        sentences = [
            "FLOPs are those of matrix products and convolutions, counted by torch on this tower.",
            self._speed(),
            "The tower has grouped convolutions, which have a much lower utilisation than dense ones."
            if self.has_grouped_convolutions
            else "",
            f"The data deliver {self.images_per_second:,.0f} images/s.",
            self._speed_of_sending(),
            captions,
            f"Weights, gradients, moments and average are float32; activations are those that torch saves on a CPU in "
            f"{self.dtype} with fused attention; {RESERVED:.0%} of the memory is reserved for the rest.",
            f"Prices are indicative, of {PRICES_OF}: give yours by --price."
            if self.terms.price is None and self.price is not None
            else "",
        ]
        return [sentence for sentence in sentences if sentence]

    def _speed_of_sending(self) -> str:
        if self.terms.count == 1:
            return ""
        if self.bandwidth is None:
            return "Communication between GPUs takes no time: give --bandwidth, in GB/s."
        given = "--bandwidth" if self.terms.bandwidth else "a network" if self.terms.nodes > 1 else "one machine"
        rate = f"{self.bandwidth / 1e9:g} GB/s ({given})"
        return f"Each GPU sends at {rate} in rings, without delays, and computes nothing meanwhile."

    def _speed(self) -> str:
        if (measured := self.measured) is not None:
            return (
                f"Measured here: {measured.images} images per step on {measured.device} in {measured.dtype} reached "
                f"{with_prefix(measured.flops_per_second, 'FLOP/s')}, and the rest of an update takes "
                f"{measured.seconds_per_update:.3g} s."
            )
        gpu = GPUS[self.terms.gpu]
        reached = f"{SINGLE_REACHED:.0%} of {gpu.single:g} TFLOP/s in float32"
        if self.dtype != "float32":
            reached = (
                f"{self.terms.mfu:.0%} (--mfu) of {gpu.half:,g} TFLOP/s, its maker's figure for dense {self.dtype}"
            )
        return (
            f"A {self.terms.gpu} reaches {reached}. Small towers and batches reach less; --gpu here, on one of them, "
            "measures it."
        )


def plan(recipe: str, **arguments: object) -> Estimate:
    """Estimate FLOPs, memory, hours and cost of a recipe: `plan("clipag-vit-b32", gpu="h100", samples="100M")`.

    Takes the recipe's own arguments and those of `Terms`. Raises one UsageError with all faults of the call.
    """
    function = command(recipes.find(recipe, "robustify"))
    bound, call_faults = signatures.bind(function, arguments)
    raise_faults(f"plan({recipe!r})", call_faults, f"Its arguments: robustclip plan {recipe} --help")
    return function(**bound)


def command(recipe: Recipe) -> Callable[..., Estimate]:
    """Function of `robustclip plan RECIPE`, with the parameters of `Terms` and of the recipe."""
    described = describe(recipe, recipe.function)

    def planned(**arguments: Any) -> Estimate:
        of_plan = Terms(**{field.name: arguments.pop(field.name) for field in fields(Terms)})
        return estimate(recipe, of_plan, arguments)

    planned.__name__, planned.__doc__ = "plan", described.doc
    planned.__signature__ = described.signature  # type: ignore[attr-defined]
    return planned


def describe(recipe: Recipe, function: Callable[..., Any] | None = None) -> Function:
    """Help of a plan; without `function`, the recipe's own, the recipe is not imported."""
    terms = inspect.signature(Terms, eval_str=True)
    own = recipe.describe().signature if function is None else inspect.signature(function, eval_str=True)
    doc = f"""FLOPs, memory, hours and cost of a run of {recipe.name}, with the assumptions.

      robustclip plan {recipe.name} --gpu h100 --count 8 --samples 100M
      robustclip plan {recipe.name} --gpu here

    FLOPs are counted on the recipe's tower, without its weights and without a network. The recipe's own flags are
    accepted too: to plan a run, replace `robustify` by `plan` in its command.
    """
    merged = {**terms.parameters, **own.parameters}
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in merged.values()]
    return Function(inspect.Signature(keywords), inspect.cleandoc(doc))


def estimate(recipe: Recipe, terms: Terms, arguments: Mapping[str, Any]) -> Estimate:
    """Plan a call of `recipe`. Raises UsageError for settings that the trainer would refuse, and with `launch` for a
    call that the recipe would refuse; planning alone needs no data."""
    from robustclip.planning import costs, memory, towers
    from robustclip.robustification import state

    if terms.launch:
        asked = {name: value for name, value in arguments.items() if name not in ("out", "resume")}
        hint = f"Its flags: robustclip robustify {recipe.name} --help"
        raise_faults(f"robustify {recipe.name}", recipe.bind(asked)[1], hint)
    settings = settings_of(recipe, arguments, terms.samples)
    settings.share(terms.count)
    design = towers.blueprint(settings.start, settings.architecture)
    imagined = towers.imagine(design, lambda tower: towers.make_ready(tower, settings, terms.count))
    bank = 0 if settings.coupled else costs.texts_of_bank(settings)
    tower = costs.of_towers(imagined, design.size)
    step = costs.of_step(settings, tower, design, terms.count, bank)
    measured = None
    if terms.gpu == HERE:

        def passes(rehearsed: Settings) -> float:
            step = costs.of_step(rehearsed, tower, design, 1, bank)
            return step.total - step.captions - step.watching

        measured = towers.rehearse(settings, design, terms.count, bank, passes)
    if measured is None:
        gpu = GPUS[terms.gpu]
        dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if gpu.has_bfloat16 else "float32"
        speed, reading = gpu.reached(dtype, terms.mfu), gpu.reached("float32", terms.mfu)
        memory_of_gpu, update = gpu.memory * GIB, 0.0
        price: float | None = gpu.price if terms.price is None else terms.price
    else:
        dtype, speed, memory_of_gpu = measured.dtype, measured.flops_per_second, measured.memory
        update, price, reading = measured.seconds_per_update, terms.price, speed
    weights = sum(weight.numel() for weight in imagined.image_tower.parameters())
    trained = state.trained_parameters(imagined.image_tower)
    sent = costs.sent(settings, design.width, terms.count, weights, trained, dtype, fsdp=terms.fsdp)
    bandwidth = terms.sending()
    kept = memory.activations(imagined, design.size, dtype, grad_checkpointing=settings.grad_checkpointing)

    def needed(share: int, accumulate: int) -> Memory:
        asked = replace(settings, batch_size=share * terms.count, accumulate=accumulate)
        return memory.memory_of_step(asked, imagined, design, kept, terms.count, fsdp=terms.fsdp, bank=bank)

    def fits(share: int, accumulate: int) -> bool:
        return needed(share, accumulate).peak <= (1 - RESERVED) * memory_of_gpu

    def enough(share: int) -> int | None:
        more = (2**n for n in range(1, share.bit_length()) if 2**n > settings.accumulate)
        return next((parts for parts in (settings.accumulate, *more) if fits(share, parts)), None)

    share = settings.share(terms.count)
    computing = ((step.total - step.captions) / speed + step.captions / reading) / terms.count
    most = memory.largest(lambda share: enough(share) is not None)
    planned = Estimate(
        recipe=recipe.name,
        settings=settings,
        terms=terms,
        dtype=dtype,
        size=design.size,
        parameters=weights,
        trained_parameters=trained,
        tower=tower,
        step=step,
        sent=sent,
        bandwidth=bandwidth,
        memory=needed(share, settings.accumulate),
        memory_of_gpu=memory_of_gpu,
        enough_accumulation=enough(share),
        largest_batch=terms.count * memory.largest(lambda share: fits(share, settings.accumulate)),
        largest_in_parts=(terms.count * most, enough(most) or settings.accumulate),
        flops_per_second=speed,
        seconds_per_step=computing + update + sent.seconds(bandwidth),
        price=price,
        measured=measured,
        has_grouped_convolutions=towers.has_grouped_convolutions(imagined.image_tower),
        command=command_line(recipe, arguments, settings.steps, terms),
    )
    return replace(planned, command=script(recipe, arguments, planned)) if terms.launch else planned


def command_line(recipe: Recipe, arguments: Mapping[str, Any], steps: int, terms: Terms) -> str:
    """Command of the planned run: the given flags, with the steps of `samples`."""
    run = ["robustify", _name(recipe), *signatures.flags(_parameters(recipe), {**arguments, "steps": steps}, {"steps"})]
    if terms.count == 1:
        return shlex.join(["robustclip", *run])
    launch = ["accelerate", "launch", "--num_processes", str(terms.count)]
    if terms.nodes > 1:
        launch += ["--num_machines", str(terms.nodes), "--machine_rank", "RANK"]
        launch += ["--main_process_ip", "HEAD", "--main_process_port", "29500"]
    if terms.fsdp:
        launch += ["--use_fsdp", "--fsdp_version", "2"]
    return shlex.join([*launch, "-m", "robustclip", *run])


def script(recipe: Recipe, arguments: Mapping[str, Any], planned: Estimate) -> str:
    """The script that launches the planned run by `terms.launch`; its first comment is the command that prints it.

    The run goes to runs/RECIPE unless `out` is given.
    """
    terms, steps = planned.terms, planned.settings.steps
    assert terms.launch is not None
    parameters = _parameters(recipe)
    out = arguments["out"] or HOME / recipe.name
    run = {**arguments, "steps": steps, "out": out} | ({"resume": LATEST} if "resume" in parameters else {})
    of_terms = signatures.flags(inspect.signature(Terms, eval_str=True).parameters, vars(terms), {"gpu", "count"})
    launched = Launch(
        ["robustify", _name(recipe), *signatures.flags(parameters, run, {"steps"})],
        terms.count,
        terms.nodes,
        fsdp=terms.fsdp,
        workers=arguments.get("workers", 0),
        hours=planned.hours,
    )
    about = [
        shlex.join(["robustclip", "plan", _name(recipe), *of_terms, *signatures.flags(parameters, arguments)]),
        f"{steps:,} steps of {planned.settings.batch_size:,}, {planned.settings.share(terms.count):,} on each of "
        f"{terms.count} x {terms.gpu}: about {in_time(planned.hours)}, {planned.memory.peak / GIB:.0f} of "
        f"{planned.memory_of_gpu / GIB:.0f} GB ({'fits' if planned.fits else planned.advice()})",
    ]
    return launched.script(terms.launch, about)


def _name(recipe: Recipe) -> str:
    return recipe.name if recipe.path.is_relative_to(recipes.folder()) else str(recipe.path)


def _parameters(recipe: Recipe) -> Mapping[str, Parameter]:
    return {parameter.name: parameter for parameter in signatures.parameters(recipe.function)}
