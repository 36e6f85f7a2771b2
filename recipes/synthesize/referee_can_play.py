"""Referee-Can-Play (Liu et al. 2024): optimise diffusion latents by a BLIP-2 or CLIPs under Score Distillation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from robustclip.canvases.latents import Latents
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.stable import Guidance
from robustclip.errors import UsageError
from robustclip.flags import PictureFlags, SynthesisFlags, flat
from robustclip.losses.distillation import REFERENCE, Distillation, Weighting
from robustclip.referees.blip2 import prepared
from robustclip.runs.devices import pick_device
from robustclip.synthesis.guides import PairGuides, text_of
from robustclip.synthesis.inversion import VARIANTS, Algorithm1, Average, Mode, Optimiser
from robustclip.synthesis.items import Item, Seeds
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.pictures import GradientPictures, strip
from robustclip.synthesis.session import BestOf, By, PromptFile, Prompts, Referees, Session, Size, call_faults
from robustclip.synthesis.starts import check_init
from robustclip.synthesis.studio import FRAMES, paint_batch
from robustclip.synthesis.terms import MEAN, Hardest
from robustclip.views import GaussianNoise, Pooled, Views
from robustclip.views.policies import inverted

QUICK: Final = {"steps": 6, "sds_only": 1, "copies": 2, "batch_size": 4}


def recipe(
    prompt: Prompts = [],  # noqa: B006  (not mutated)
    *,
    prompts: PromptFile = None,
    referee: Referees = ["emoji-blip2"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    model: Annotated[str, "diffusion model: a name, or a diffusers pipeline folder"] = "emoji-diffusion",
    size: Size = None,
    mode: Annotated[Mode, "faithful: the paper's text; released: its code; fixed: ours"] = "fixed",
    init: Annotated[str, AfterValidator(check_init), "init: noise, or an image"] = "noise",
    steps: NonNegativeInt = 160,
    sds_only: Annotated[NonNegativeInt, "number of final steps with SDS only"] = 10,
    copies: Annotated[
        NonNegativeInt | None, "augmented views per step; 0: the picture itself; default: the mode's"
    ] = None,
    hardest: Annotated[PositiveInt | None, "use only the copies of highest loss; default: all"] = None,
    noise_scale: Annotated[NonNegativeFloat, "maximum noise deviation of the copies"] = 0.1,
    added_noise: Annotated[
        NonNegativeFloat | None, "deviation of additional noise per copy; default: the mode's"
    ] = None,
    vlm: Annotated[bool, "use the referee's gradient"] = True,
    sds: Annotated[bool, "use the SDS gradient"] = True,
    optimiser: Annotated[Optimiser | None, "optimiser of the referee's stream; default: the mode's"] = None,
    lr: Annotated[
        float | None, Field(gt=0), "initial learning rate of the referee's stream; default: the mode's"
    ] = None,
    w1: Annotated[NonNegativeFloat, "w1: norm of the referee's gradient relative to the SDS gradient"] = 2.0,
    sds_weight: Annotated[NonNegativeFloat, "initial w2, for latents of 64x64 cells"] = 800.0,
    sds_last: Annotated[NonNegativeFloat, "final w2"] = 400.0,
    guidance: Annotated[Guidance | None, "guidance scale of SDS; default: the mode's"] = None,
    weighting: Annotated[Weighting, "weighting w(t) of SDS"] = "constant",
    noise: Annotated[NonNegativeFloat, "deviation of noise added to the latents after each step"] = 0.2,
    ema: Annotated[Average, "moving average: restart from it, end on it, or none"] = "restart",
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.95,
    ema_start: NonNegativeInt = 40,
    ema_period: PositiveInt = 60,
    matching: Annotated[NonNegativeFloat, "weight of the matching loss"] = 1.0,
    captioning: Annotated[NonNegativeFloat, "weight of the captioning loss"] = 1.0,
    sds_prompt: Annotated[str, "prompt template of SDS, with {} for the prompt"] = "A photo exactly contains {}",
    gradients: Annotated[bool, "save visualisations of each gradient"] = False,
    slicing: Annotated[bool, "decode pictures singly to save memory"] = False,
    checkpointing: Annotated[bool, "checkpoint the decoder's activations to save memory"] = False,
    best_of: BestOf = 1,
    by: By = None,
    pictures: PictureFlags = PictureFlags(),
    common: SynthesisFlags = SynthesisFlags(),
) -> Result:
    """Optimise diffusion latents by a pair reader's matching loss and Score Distillation.

    robustclip synthesize referee-can-play "a yellow banana and a blue butterfly"

    Alg. 1 of the paper, with its copies, weights, noise, guidance and averages. The modes are the paper's text, its
    released code (VLMinv), and ours. Real weights: --model FOLDER of Stable Diffusion 1.5, --referee FOLDER of
    robustclip convert lavis-blip2, --size 512.

    Any referee fits: --referee emoji-robust, or --referee emoji-blip2 --referee emoji-robust=0.5, or a diffusion model
    by mutual information, --referee mi:emoji-diffusion (8 evaluations a step, forward and back). Each has its
    own stream, scaled to its weight's share of w1, because losses differ in scale (ours).

    --mode released reproduces VLMinv's loop (tests/golden/vlminv.py); docs/inversion.md lists the differences.
    Iterations are counted from 0; in the other modes the averages restart at 40 and 100 and not at the last.
    """
    variant = VARIANTS[mode]
    copies = variant.copies if copies is None else copies
    added_noise = variant.added_noise if added_noise is None else added_noise
    optimiser, lr = optimiser or variant.optimiser, variant.lr if lr is None else lr
    guidance = variant.guidance if guidance is None else guidance
    variant = replace(variant, optimiser=optimiser, lr=lr, guidance=guidance)
    arguments = flat(locals())
    del arguments["variant"]
    device = pick_device(common.device)
    generator = load_diffusion(model, device, dtype=common.dtype, slicing=slicing, checkpointing=checkpointing)
    session = Session.open("referee-can-play", arguments, views=copies, load=PairGuides.load_all, generator=generator)
    guides = session.guides
    assert isinstance(guides, PairGuides)
    starts = None if init == "noise" else session.starts(init, candidates=1)
    look = views_of(copies, guides.size, noise_scale, added_noise, down_only=variant.as_coded)
    reduce = MEAN if hardest is None else Hardest(hardest)
    cells = session.size[0] * session.size[1] // generator.factor**2
    share = cells / REFERENCE if variant.rescaled else 1.0
    empty = generator.embed_prompts([""])
    algorithm = Algorithm1(
        variant,
        steps=steps,
        sds_only=sds_only,
        w1=w1,
        w2=(share * sds_weight, share * sds_last),
        noise=noise,
        average=ema,
        decay=ema_decay,
        start=ema_start,
        period=ema_period,
    )

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        prompts = [item.prompt for item in items]
        canvas = Latents(
            generator,
            session.size,
            [item.generator("start", device=guides.device) for item in items],
            device=guides.device,
            through=variant.through,
        )
        if starts is not None:
            canvas.encode(starts(items))
        distillation = None
        if sds:
            texts = [text_of(one) for one in prompts]
            sds_texts = [prepared(text) for text in texts] if variant.as_coded else texts
            conditioning = generator.embed_prompts([sds_prompt.replace("{}", text) for text in sds_texts])
            distillation = Distillation(
                generator, conditioning, empty, guidance=variant.guidance, times=variant.times, weighting=weighting
            )
        referees: list[tuple[Any, float, str]] = [
            (loss, weight, loss.reader.card.name)
            for loss, weight in guides.pairings(prompts, matching=matching, captioning=captioning)
        ]
        if guides.referees:
            referees.append((guides.cosine(prompts), sum(guides.weights), "CLIP"))
        referees += guides.informing(prompts, generator)
        rows = [[item.generator(f"latents {row}", device=guides.device) for item in items] for row in range(3)]
        streams = algorithm.streams(canvas, distillation, referees if vlm else [], look, reduce, rows[1])
        callbacks = algorithm.callbacks(canvas, [rows[0], rows[2]])
        shown = GradientPictures(steps, FRAMES if gradients else 0)
        painted = paint_batch(
            canvas,
            streams,
            items=items,
            guides=guides,
            steps=steps,
            watch=watch,
            callbacks=[shown, *callbacks] if gradients else callbacks,
        )
        if shown.pictures:
            painted.others["gradients"] = [strip(shown.of(row), shown.steps) for row in range(len(items))]
        return painted

    return session.paint(paint, steps=steps)


def views_of(
    copies: int, size: tuple[int, int], noise: float, added: float, *, down_only: bool = False
) -> Views | None:
    """The referee's views: augmented copies at its input size or, for 0 copies, the picture with the added noise."""
    if not copies:
        return Views(1, (GaussianNoise(added),), name="noised") if added else None
    shift = (0.1, 0.0) if down_only else (0.1, 0.1)
    return Views(copies, (Pooled(size), *inverted(noise, added, shift)), name="copies")


def faults(
    prompt: list[str],
    prompts: Path | None,
    vlm: bool,
    sds: bool,
    mode: Mode,
    copies: int | None,
    hardest: int | None,
    sds_prompt: str,
    steps: int,
    sds_only: int,
    matching: float,
    captioning: float,
) -> Iterator[UsageError]:
    """Faults of combinations of arguments."""
    yield from call_faults(prompt, prompts)
    if not vlm and not sds:
        yield UsageError("--no-vlm and --no-sds leave no gradient: leave one of them out", "no_gradient")
    copies = VARIANTS[mode].copies if copies is None else copies
    if hardest is not None and hardest > max(copies, 1):
        message = f"--hardest {hardest} of {copies} copies: give --hardest up to --copies"
        yield UsageError(message, "too_many", argument="hardest", given=hardest, most=copies)
    if sds_prompt.count("{}") != 1 or {"{", "}"} & {*sds_prompt.replace("{}", "")}:
        message = "--sds-prompt has one {} for the prompt, as in 'A photo exactly contains {}'"
        yield UsageError(message, "not_a_template", argument="sds_prompt")
    if not matching and not captioning:
        yield UsageError("--matching and --captioning are both 0: give one of them a weight", "no_gradient")
    if not sds and sds_only >= steps > 0:
        yield UsageError("--no-sds with --sds-only for all steps leaves no gradient: give --sds-only 0", "no_gradient")
