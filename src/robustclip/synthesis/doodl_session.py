"""Session of `synthesize doodl`: loaded models, and painting of a batch by DOODL or by its baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator
from torch import Tensor

from robustclip.canvases.latents import ChainStart
from robustclip.data.images import clamp_through
from robustclip.diffusion.budget import report_budget
from robustclip.diffusion.mutual_information import MARK
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.reversible import Chain, Predicted, chain_of, guided
from robustclip.diffusion.samplers import Levels
from robustclip.diffusion.stable import Conditioning, LatentDiffusion
from robustclip.errors import UsageError
from robustclip.runs.devices import pick_device
from robustclip.synthesis.doodl import (
    Doodl,
    Ends,
    Objective,
    StopBy,
    check_crops,
    generator_prompt,
    objective_of,
    use_of,
)
from robustclip.synthesis.guides import Guides, PairGuides
from robustclip.synthesis.items import Item
from robustclip.synthesis.loop import Callback
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.prompts import Prompt
from robustclip.synthesis.session import Session, call_faults
from robustclip.synthesis.starts import Starts, check_init
from robustclip.synthesis.studio import generators_of, paint_batch
from robustclip.synthesis.terms import Looking, Loss, Stream

Init = Annotated[str, AfterValidator(check_init), "noise, or an image"]


@dataclass
class DoodlSession:
    """Loaded models and settings of a call. `arguments` are the recipe's."""

    arguments: Mapping[str, Any]
    doodl: Doodl
    session: Session
    generator: LatentDiffusion
    empty: Conditioning
    objective: Objective
    look: Looking | None
    starts: Starts | None
    held_out: Guides | None
    device: torch.device

    @classmethod
    def open(cls, arguments: dict[str, Any], doodl: Doodl, ends: Ends) -> DoodlSession:
        """Load the models and start the run.

        Raises UsageError for chain steps, a schedule, a model, a referee or a picture that cannot be used.
        """
        device, dtype = pick_device(arguments["device"]), arguments["dtype"]
        if arguments["method"] == "one-step":  # whose steps use only the noise levels
            doodl = replace(doodl, variant=replace(doodl.variant, sampler="bdia"))
        generator = load_diffusion(
            arguments["model"],
            device,
            dtype=dtype,
            checkpointing=arguments["checkpointing"],
        )
        Levels.of(generator.scheduler_config, doodl.variant.chain_steps)  # validates chain_steps
        rule = "auto" if dtype == "measure" else dtype  # only the guides' pass is timed
        held_out = arguments["stop_by"] and Guides.load(arguments["stop_by"], device=device, dtype=rule)
        session = Session.open(
            "doodl",
            arguments,
            load=PairGuides.load_all,
            generator=generator,
            held_out=held_out or None,
        )
        assert isinstance(session.guides, PairGuides)
        objective = objective_of(ends, session.guides, doodl.variant.entropy)
        starts = None if arguments["init"] == "noise" else session.starts(arguments["init"], candidates=1)
        look = doodl.look(arguments["crops"], objective.size, session.size)
        empty = generator.embed_prompts([""])
        return cls(arguments, doodl, session, generator, empty, objective, look, starts, held_out, device)

    def chain(self, items: Sequence[Item]) -> tuple[Any, tuple[Tensor, Tensor]]:
        """The chain of a batch, and the denoiser's conditioning tensors."""
        variant = self.doodl.variant
        constants = {"edict": {"p": self.arguments["p"]}, "bdia": {"gamma": self.arguments["gamma"]}}
        prompts = [generator_prompt(item, self.arguments["model_prompt"]) for item in items]
        chain, conditioning = chain_of(
            self.generator,
            self.generator.embed_prompts(prompts),
            self.empty,
            sampler=variant.sampler,
            steps=variant.chain_steps,
            guidance=variant.guidance,
            constants=constants.get(variant.sampler, {}),
        )
        return Predicted(chain) if self.arguments["method"] == "one-step-noise" else chain, conditioning

    def canvas(self, items: Sequence[Item], chain: Any, conditioning: Sequence[Tensor], number: int = 0) -> ChainStart:
        """x_T of a batch from each picture's seed, or by inversion of --init; `number` indexes further samples."""
        draws = [item.generator("start", *([number] if number else []), device=self.device) for item in items]
        made = self.doodl.canvas(self.generator, chain, conditioning, self.session.size, draws, device=self.device)
        if self.starts is not None:
            made.encode(self.starts(items))
        return made

    def losses(self, items: Sequence[Item], canvas: ChainStart) -> list[tuple[Loss, float]]:
        """Weighted losses of a batch. Raises UsageError, with a number that fits, if crops or the chain exceed
        memory."""
        decoded = len(canvas.chain.pictures)
        evaluations = getattr(canvas.chain, "evaluations", 1)
        report_budget(self.generator, self.session.size, pictures=len(items), evaluations=evaluations, decoded=decoded)
        losses = self.objective.losses(items)
        for loss, _ in losses:
            crops = self.arguments["crops"] * decoded
            check_crops(loss, crops, len(items), self.objective.size, self.device)
        return losses

    def optimise(
        self, canvas: ChainStart, stream: Stream, noise: Sequence[Callback], items: Sequence[Item], watch: Watch
    ) -> Painted:
        """Optimise a batch; a held-out judge may stop it."""
        targets = self.objective.targets(items)
        judges = [] if self.held_out is None else [StopBy(self.held_out, targets, self.arguments["patience"])]
        guides = self.session.guides
        painted = paint_batch(
            canvas, [stream], items=items, guides=guides, steps=self.steps, watch=watch, callbacks=[*noise, *judges]
        )
        images, trace = painted.images, painted.trace
        for judge in judges:
            images = judge.update(images, len(trace.get("loss", [])))
            trace |= {self.arguments["stop_by"]: judge.trace()}
        return replace(painted, images=images, similarity=guides.similarity(images, targets), trace=trace)

    def baseline(self, items: Sequence[Item], watch: Watch) -> Painted:
        """Paint a batch by best-of or one-step guidance."""
        chain, conditioning = self.chain(items)
        canvas, guides, targets = (
            self.canvas(items, chain, conditioning),
            self.session.guides,
            self.objective.targets(items),
        )
        guided = self.arguments["method"] == "one-step"
        losses = self.losses(items, canvas) if guided else self.objective.losses(items)  # sampling needs no gradient

        def stream(one: ChainStart) -> Stream:
            return self.doodl.stream(one, losses, self.look)

        if guided:
            scale = self.arguments["one_step_scale"]
            return one_step_guided(canvas, stream(canvas), scale, items, guides, targets, watch)

        def sample(number: int) -> ChainStart:
            return self.canvas(items, chain, conditioning, number)

        return best_of(sample, stream, self.steps, items, guides, targets, watch)

    @property
    def steps(self) -> int:
        """Steps of a batch, by method."""
        steps = self.doodl.task.steps
        samples = self.arguments["candidates"] or 2 * steps + 1  # a step samples the chain and reverses it
        of_method = {"plain": 0, "best-of": samples, "one-step": self.doodl.variant.chain_steps}
        return of_method.get(self.arguments["method"], steps)

    def paint(self, paint: Any) -> Result:
        """Paint all pictures, batch by batch."""
        return self.session.paint(paint, steps=self.steps)


def faults(
    prompt: list[str],
    prompts: Path | None,
    classifier: str | None,
    class_name: str | None,
    classes: Path | None,
    exemplar: list[str],
    aesthetics: list[str],
    loss: Any,
    sampler: str | None,
    init: str,
    method: str,
    stop_by: str | None,
    referee: list[Any],
) -> Iterator[str | UsageError]:
    """Faults of combinations of arguments."""
    yield from call_faults(prompt, prompts)
    try:
        use_of(classifier, exemplar, aesthetics, loss)
    except UsageError as error:
        yield str(error)
    if (classifier is None) != (class_name is None):
        yield "--classifier and --class-name belong together: give both"
    if marked := [one for one in referee if isinstance(one, str) and one.startswith(MARK)]:
        message = f"--referee {marked[0]} has no part in doodl's losses: give CLIPs or pair readers"
        yield UsageError(message, "other_kind", referee=marked[0])
    if classes is not None and classifier is None:
        yield "--classes needs a --classifier"
    if sampler == "ddim" and init != "noise":
        yield "--init needs a sampler with exact inverse, which ddim has not: give --sampler edict, bdia or o-belm"
    if init != "noise" and method == "best-of":
        yield "--method best-of starts from noise: leave --init out"
    if stop_by is not None and stop_by in [str(one).partition("=")[0] for one in referee]:
        yield f"--stop-by {stop_by} also guides: give a referee that does not"
    if stop_by is not None and method in ("best-of", "one-step", "plain"):
        yield f"--stop-by needs an optimisation, and --method {method} has none: leave it out"


@torch.no_grad()
def best_of(
    canvases: Callable[[int], ChainStart],
    streams: Callable[[ChainStart], Stream],
    count: int,
    items: Sequence[Item],
    guides: Guides,
    targets: Sequence[Prompt],
    watch: Watch,
) -> Painted:
    """The sample of lowest loss of `count` per item, by DOODL's losses.

    `canvases(n)` is the n-th sample's canvas.
    """
    best: Tensor | None = None
    images = torch.empty(0)
    losses = []
    draw = generators_of(items, guides.device)
    for number in range(count):
        canvas = canvases(number)
        terms = streams(canvas).terms
        if not number:
            watch.announce(f"{terms}, by the best of {count} samples")
        rendered = canvas.render()
        found, numbers = terms(rendered, lambda purpose, number=number: draw(purpose, number), 0)  # type: ignore[misc]
        assert found is not None
        better = torch.ones_like(found, dtype=torch.bool) if best is None else found < best
        images = rendered["image"] if best is None else torch.where(better.view(-1, 1, 1, 1), rendered["image"], images)
        best = found if best is None else torch.minimum(found, best)
        losses.append(best)
        watch(number + 1, images, {"similarity": -best, **numbers})
    return Painted(images, guides.similarity(images, targets), {"loss": torch.stack(losses)})


def one_step_guided(
    canvas: ChainStart,
    stream: Stream,
    scale: float,
    items: Sequence[Item],
    guides: Guides,
    targets: Sequence[Prompt],
    watch: Watch,
) -> Painted:
    """DDIM with classifier guidance by the losses of each step's predicted picture."""
    chain = canvas.chain
    assert isinstance(chain, Chain)
    watch.announce(f"{stream.terms}, by one-step guidance at scale {scale:g}")
    draw = generators_of(items, guides.device)
    losses: list[Tensor] = []

    def loss(latents: Tensor) -> Tensor:
        image = clamp_through(canvas.autoencoder[0].decode(latents.float()))
        step = len(losses)
        found, _ = stream.terms({"image": image}, lambda purpose: draw(purpose, step), step)
        assert found is not None
        losses.append(found.detach())
        watch(step + 1, image.detach(), {"similarity": -found.detach()})
        return found

    start = canvas.latent.detach() if canvas.tied else canvas.latent.detach()[:, 0]
    end = guided(chain, start, tuple(canvas.conditioning), loss, scale)
    with torch.no_grad():
        images = canvas.autoencoder[0].decode(end.float()).clamp(0, 1)
    return Painted(images, guides.similarity(images, targets), {"loss": torch.stack(losses)})
