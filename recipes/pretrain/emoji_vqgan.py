"""Train the embedded VQGAN on drawings, for `synthesize vqgan`."""

from __future__ import annotations

from typing import Any, Final

import torch
from pydantic import PositiveFloat, PositiveInt

from robustclip.data.emoji_batches import AUGMENTATION, EmojiBatches
from robustclip.diffusion.fitting import free, stage_features
from robustclip.diffusion.training import VQGANTrainer, discriminator, new_vqgan
from robustclip.diffusion.vqgan import save_vqgan
from robustclip.flags import CommonFlags, flat
from robustclip.referees.registry import load_referee
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator

QUICK: Final = {"steps": 4, "batch_size": 8, "channels": [16, 16, 16], "codes": 32, "save_every": 2}


def recipe(
    *,
    steps: PositiveInt = 1400,
    batch_size: PositiveInt = 32,
    lr: PositiveFloat = 2e-3,
    channels: list[PositiveInt] = [16, 32, 64],  # noqa: B006  (never changed)
    codes: PositiveInt = 512,
    features: str = "emoji-vanilla",
    save_every: PositiveInt = 100,
    common: CommonFlags = CommonFlags(),
) -> dict[str, Any]:
    """Train emoji-vqgan: 64x64 pictures as 16x16 codes of 512.

    robustclip robustify pretrain/emoji-vqgan

    About half an hour on two CPU cores. Sees the drawings of the guides' styles, without the held-out concepts. The
    method is Esser et al. 2021; sizes, rates and the perceptual distance (features of emoji-vanilla, for there is no
    VGG here) are ours. The adversary joins for the last third.
    """
    arguments = flat(locals())
    split = "judge-heldback" if common.quick else "guide-styles"
    device = pick_device(common.device)
    referee = load_referee(features, device=str(device)).eval().requires_grad_(False)
    model = new_vqgan(channels, codes=codes, seed=common.seed).to(device, memory_format=torch.channels_last)
    trainer = VQGANTrainer(
        model,
        discriminator(seed=common.seed).to(device).to(memory_format=torch.channels_last),
        stage_features(referee),
        steps=steps,
        lr=lr,
        start_gan=steps * 2 // 3,
        dtype=pick_dtype(common.dtype, device),
    )
    data = EmojiBatches(split, batch_size=batch_size, seed=common.seed, augmentation=AUGMENTATION)
    run = Run.start(common.out, common.resume, recipe="emoji-vqgan", arguments=arguments, verb="robustify")

    def step(k: int) -> dict[str, float]:
        images = data.batch(k).images.to(device, memory_format=torch.channels_last)
        return trainer.step(images, generator(common.seed, "codes", k))

    with run:
        trainer.resume(run, device)
        run.note(data=data.describe())
        numbers = trainer.fit(step, run, images=batch_size, save_every=save_every)
        folder = free(run.folder / "generator")
        kept = {name: value for name, value in arguments.items() if name not in ("out", "resume", "device")}
        card = {"name": "emoji-vqgan", "recipe": "pretrain/emoji-vqgan", "arguments": kept, "steps": steps}
        save_vqgan(model, folder, card, half=True)
        run.finish(numbers)
    return {"out": str(run.folder), "generator": str(folder), **numbers}
