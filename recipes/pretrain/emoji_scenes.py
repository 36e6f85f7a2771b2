"""Train the embedded scene reader (yes/no VQA): objects of a scene with position, colour, texture and number."""

from __future__ import annotations

from typing import Annotated, Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from robustclip.data.composing import SHAPES
from robustclip.data.compositions import compose, sprites
from robustclip.diffusion.fitting import free
from robustclip.evaluation.pair_readers import measure_answers
from robustclip.flags import CommonFlags, flat
from robustclip.referees.card import Card
from robustclip.referees.registry import RefereeName, load_referee
from robustclip.referees.scene_reader import FAMILY, SceneReader, load_scene_reader, save_scene_reader
from robustclip.robustification.scenes import SceneTrainer, calibrate
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator, seeded

SIZES = (64, 96)  # of the scenes, in turns: what is generated here has either

QUICK: Final = {"steps": 4, "batch_size": 4, "measured": 4, "save_every": 2}


def recipe(
    *,
    name: RefereeName = "emoji-scenes",
    tower: Annotated[str, "the CLIP whose image tower it uses"] = "emoji-judge",
    split: Annotated[str, "whose drawings the scenes are made of"] = "guide-styles",
    unseen: Annotated[str, "whose drawings it is measured on"] = "unseen-styles",
    steps: PositiveInt = 260,
    batch_size: PositiveInt = 32,
    lr: PositiveFloat = 2e-3,
    measured: Annotated[PositiveInt, "scenes of each category that it is measured on"] = 200,
    save_every: PositiveInt = 50,
    common: CommonFlags = CommonFlags(),
) -> dict[str, Any]:
    """Train emoji-scenes, which answers "a blue butterfly?", "three fish?" and "a hat to the left of a fish?".

    robustclip robustify pretrain/emoji-scenes

    Ten minutes on a CPU core that does nothing else. The image tower stays frozen; heads on its stages learn middles,
    boxes, colours, nouns and textures from compositions that are drawn on the fly, half of them blurred and noisy. Its
    answers are calibrated on further scenes of the same styles, and measured on scenes of unseen ones.
    """
    arguments = flat(locals())
    device = pick_device(common.device)
    clip = load_referee(tower, device=str(device)).eval().requires_grad_(False)
    nouns = sorted({*sprites(split).nouns, *sprites(unseen).nouns, *SHAPES})
    with seeded(common.seed):
        reader = SceneReader(clip, nouns, Card(name, FAMILY, {}, clip.preprocess.config(), 1.0)).to(device)
    trainer = SceneTrainer(reader, steps=steps, lr=lr, dtype=pick_dtype(common.dtype, device))
    run = Run.start(common.out, common.resume, recipe="emoji-scenes", arguments=arguments, verb="robustify")

    def step(k: int) -> dict[str, float]:
        numbers = range(k * batch_size, (k + 1) * batch_size)
        scenes = [compose(number, split, seed=common.seed, size=SIZES[k % len(SIZES)]) for number in numbers]
        pictures = worn(torch.stack([scene.image for scene in scenes]), generator(common.seed, "worn", k))
        return trainer.step(pictures.to(device), scenes, generator(common.seed, "boxes", k))

    with run:
        trainer.resume(run, device)
        run.note(data={"source": "compositions", "split": split, "sizes": SIZES, "seed": common.seed})
        numbers = trainer.fit(step, run, images=batch_size, save_every=save_every)
        calibrate(reader, split, seed=common.seed + 1, scenes=2 if common.quick else 20)
        folder = free(run.folder / name)
        kept = {key: value for key, value in arguments.items() if key not in ("out", "resume", "device")}
        provenance = {"recipe": "pretrain/emoji-scenes", "arguments": kept, "steps": steps}
        save_scene_reader(reader, folder, tower, provenance=provenance)
        found = measure_answers(load_scene_reader(folder, device), unseen, n=measured)
        figures = {"split": unseen, **found}
        save_scene_reader(reader, folder, tower, provenance=provenance | {"measured": figures})
        run.finish(numbers)
    return {"out": str(run.folder), "reader": str(folder), **numbers, "measured": found}


def worn(images: Float[Tensor, "b 3 s s"], stream: torch.Generator) -> Float[Tensor, "b 3 s s"]:
    """Half of the pictures brought down to half to nine tenths of their size and up again, and noise of 0 to 0.06 on
    them: as little sharp as what generators make."""
    images, side = images.clone(), images.shape[-1]
    for row in torch.randperm(len(images), generator=stream)[: len(images) // 2].tolist():
        scale, noise = torch.rand(2, generator=stream).tolist()
        small = F.interpolate(
            images[row, None], size=round((0.5 + 0.4 * scale) * side), mode="bilinear", antialias=True
        )
        images[row] = F.interpolate(small, size=side, mode="bilinear")[0]
        images[row] += 0.06 * noise * torch.randn(images[row].shape, generator=stream)
    return images.clamp(0, 1)
