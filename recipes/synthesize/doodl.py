"""DOODL (Wallace et al. 2023): end-to-end optimisation of the initial latents of a diffusion chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.diffusion.samplers import SamplerName
from robustclip.flags import PictureFlags, SynthesisFlags, flat
from robustclip.runs.devices import pick_device
from robustclip.synthesis.doodl import Aim, ChainGuidance, Doodl, Ends, Function, Method, Mode
from robustclip.synthesis.doodl_session import DoodlSession, Init
from robustclip.synthesis.doodl_session import faults as faults
from robustclip.synthesis.items import Item, Seeds
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.session import PromptFile, Prompts, Referees, Size

QUICK: Final = {"steps": 2, "chain_steps": 4, "crops": 2, "batch_size": 4}


def recipe(
    prompt: Prompts = [],  # noqa: B006  (not mutated)
    *,
    prompts: PromptFile = None,
    referee: Referees = ["emoji-robust"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    model: Annotated[str, "diffusion model: a name, or a diffusers folder"] = "emoji-diffusion",
    model_prompt: Annotated[str, "prompt template of the diffusion model, with {} for the prompt"] = "{}",
    size: Size = None,
    mode: Annotated[Mode, "faithful: the paper's text; released: its code; fixed: ours"] = "fixed",
    method: Annotated[Method, "method: doodl, or a baseline"] = "doodl",
    init: Init = "noise",
    sampler: Annotated[SamplerName | None, "sampler of the chain; default: the mode's"] = None,
    chain_steps: Annotated[PositiveInt | None, "steps of the chain; default: the mode's"] = None,
    guidance: ChainGuidance = None,
    p: Annotated[float, Field(gt=0.5, le=1), "mixing coefficient of EDICT"] = 0.93,
    gamma: Annotated[float, Field(gt=0, le=1), "weight of BDIA's older latent"] = 0.9,
    steps: Annotated[NonNegativeInt | None, "optimisation steps; default: the use's"] = None,
    crops: Annotated[NonNegativeInt, "views per picture and step; 0: the picture itself"] = 16,
    scale: Annotated[PositiveFloat | None, "factor of the loss, before clipping; default: the use's"] = None,
    clip: Annotated[PositiveFloat | None, "maximum absolute value of gradient elements; default: the use's"] = None,
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
    noise: Annotated[NonNegativeFloat | None, "deviation of noise after each step; default: the use's"] = None,
    tied: Annotated[bool | None, "one noise of constant norm for both latents; default: the use's"] = None,
    classifier: Annotated[str | None, "timm model, torchvision:NAME, folder, or WS-DAN checkpoint"] = None,
    class_name: Annotated[str | None, "class of the classifier, by name or number"] = None,
    classes: Annotated[Path | None, "file of the classifier's class names, one per line"] = None,
    exemplar: Annotated[list[str], "pictures whose similarity is the objective"] = [],  # noqa: B006
    aesthetics: Annotated[list[str], "aesthetic heads on the referees' embeddings, FILE=WEIGHT"] = [],  # noqa: B006
    aim: Aim = "up",
    loss: Function = None,
    candidates: Annotated[PositiveInt | None, "samples of best-of; default: doodl's evaluations"] = None,
    one_step_scale: Annotated[PositiveFloat, "scale of one-step guidance"] = 300.0,
    stop_by: Annotated[str | None, "referee that selects the best step and ends the batch; it does not guide"] = None,
    patience: Annotated[PositiveInt, "steps without improvement after which --stop-by stops"] = 5,
    checkpointing: Annotated[bool, "checkpoint the decoder's activations to save memory"] = False,
    pictures: PictureFlags = PictureFlags(),
    common: SynthesisFlags = SynthesisFlags(),
) -> Result:
    """Optimise a diffusion model's noise by a referee's gradient through the whole sampling chain.

    robustclip synthesize doodl "a yellow banana and a blue butterfly" --referee emoji-robust

    Gradients pass the chain by exact reversal at the memory of one step. Other uses: --classifier and --class-name,
    --exemplar, --aesthetics (with --init, to edit a picture), and in Python loss=. Baselines: --method
    plain, best-of, one-step (classifier guidance) and one-step-noise. Real weights: --model FOLDER of Stable Diffusion
    1.x or 2.x, --size 512; cost: robustclip plan doodl. Deviations: docs/doodl.md.
    """
    arguments = flat(locals()) | {"loss": loss and str(loss)}
    ends = Ends.read(pick_device(common.device), classifier, class_name, classes, exemplar, aesthetics, aim, loss)
    doodl = Doodl.of(ends.use, **arguments)
    work = DoodlSession.open(arguments, doodl, ends)

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        if method in ("best-of", "one-step"):
            return work.baseline(items, watch)
        chain, conditioning = work.chain(items)
        # The canvas holds x_T, decodes the pair, and averages and renormalises it after a step.
        canvas = work.canvas(items, chain, conditioning)
        losses = work.losses(items, canvas)  # of the crops of each picture of the pair
        stream = doodl.stream(canvas, losses, work.look)  # gradient by reversal, clip, momentum, step
        perturbation = doodl.callbacks([item.generator("latents", device=work.device) for item in items])
        return work.optimise(canvas, stream, perturbation, items, watch)

    return work.paint(paint)
