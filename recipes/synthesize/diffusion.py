"""Sample a diffusion model by DDIM (Song et al. 2021), with best-of-N selection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import PositiveInt

from robustclip.diffusion.adapters import load_adapter
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.stable import Guidance
from robustclip.flags import Enlarge, SynthesisFlags, flat
from robustclip.runs.devices import pick_device
from robustclip.synthesis.guides import PairGuides
from robustclip.synthesis.items import Item, Seeds
from robustclip.synthesis.painted import Painted, Result, Watch
from robustclip.synthesis.session import BestOf, By, PromptFile, Prompts, Referees, Session, Size, call_faults

QUICK: Final = {"steps": 2, "batch_size": 4}


def recipe(
    prompt: Prompts = [],  # noqa: B006  (not mutated)
    *,
    prompts: PromptFile = None,
    referee: Annotated[Referees, "referees whose similarity is reported (no guidance)"] = ["emoji-robust"],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    model: Annotated[str, "diffusion model: a name, or a diffusers pipeline folder"] = "emoji-diffusion",
    adapter: Annotated[Path | None, "LoRA folder, from robustclip align or any of load_lora_weights"] = None,
    size: Size = None,
    steps: Annotated[PositiveInt, "DDIM steps"] = 50,
    guidance: Guidance = 5.0,
    best_of: BestOf = 1,
    by: By = None,
    batch_size: PositiveInt = 16,
    save_frames: Annotated[bool | None, "save film strips and GIFs (empty for this recipe)"] = False,
    enlarge: Annotated[Enlarge, "interpolation of small pictures in the contact sheet"] = "nearest",
    channels_last: bool = True,
    compile: bool = False,
    common: SynthesisFlags = SynthesisFlags(),
) -> Result:
    """Sample a diffusion model; with --best-of N keep the best of N by mutual information or a referee.

    robustclip synthesize diffusion "a yellow banana and a blue butterfly" --best-of 50 --by mi

    mi is the model's own score, a measure of confidence rather than correctness (agreement with judges:
    docs/mutual-information.md).
    """
    arguments = flat(locals())
    device = pick_device(common.device)
    generator = load_diffusion(model, device, dtype=common.dtype)
    if adapter is not None:
        load_adapter(generator, adapter)
    session = Session.open("diffusion", arguments, load=PairGuides.load_all, generator=generator)

    def paint(items: Sequence[Item], watch: Watch) -> Painted:
        images = generator.sample(
            [item.prompt.wanted for item in items],
            size=session.size,
            steps=steps,
            guidance=guidance,
            generators=[item.generator("sample", device=generator.device) for item in items],
        )
        similarity = session.guides.similarity(images, [item.prompt for item in items])
        watch(1, images, {"similarity": similarity})
        return Painted(images, similarity)

    return session.paint(paint, steps=1)


faults = call_faults
