"""Train the embedded autoencoder: 64x64 pictures to 8x8 latents, for `pretrain/emoji-diffusion`."""

from __future__ import annotations

from typing import Any, Final

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from robustclip.data.emoji_batches import DrawingsAndPairs
from robustclip.diffusion.fitting import free, save_model, stage_features
from robustclip.diffusion.training import AutoencoderTrainer, latent_deviation, new_autoencoder
from robustclip.flags import CommonFlags, flat
from robustclip.referees.registry import load_referee
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator

QUICK: Final = {"steps": 4, "batch_size": 8, "channels": [16, 16, 16, 16], "save_every": 2}


def recipe(
    *,
    steps: PositiveInt = 3000,
    batch_size: PositiveInt = 32,
    lr: PositiveFloat = 2e-3,
    channels: list[PositiveInt] = [16, 32, 64, 96],  # noqa: B006  (never changed)
    latent: PositiveInt = 8,
    perceptual: NonNegativeFloat = 0.1,
    features: str = "emoji-vanilla",
    save_every: PositiveInt = 100,
    common: CommonFlags = CommonFlags(),
) -> dict[str, Any]:
    """Train emoji-vae, a KL autoencoder: 64x64 pictures as 8x8 latents of 8 channels.

    robustclip robustify pretrain/emoji-vae

    About half an hour on two CPU cores. Sees pairs of coloured things and single drawings of the guides' styles,
    without the held-out concepts and the compositional prompts. The method is Rombach et al. 2022 without an adversary;
    sizes, rates and the perceptual distance (features of emoji-vanilla, for the last third) are ours. Eight channels,
    where Stable Diffusion has 4: a picture of 64 pixels has few cells.
    """
    arguments = flat(locals())
    device = pick_device(common.device)
    referee = load_referee(features, device=str(device)).eval().requires_grad_(False)
    model = new_autoencoder(channels, latent=latent, seed=common.seed).to(device, memory_format=torch.channels_last)
    trainer = AutoencoderTrainer(
        model,
        stage_features(referee),
        steps=steps,
        lr=lr,
        perceptual=perceptual,
        look=steps * 2 // 3,
        dtype=pick_dtype(common.dtype, device),
    )
    data = DrawingsAndPairs("guide-styles", batch_size, common.seed, single=0.0 if common.quick else 0.25)
    run = Run.start(common.out, common.resume, recipe="emoji-vae", arguments=arguments, verb="robustify")

    def step(k: int) -> dict[str, float]:
        images = data.batch(k)[0].to(device, memory_format=torch.channels_last)
        return trainer.step(images, generator(common.seed, "latents", k))

    with run:
        trainer.resume(run, device)
        run.note(data=data.describe())
        numbers = trainer.fit(step, run, images=batch_size, save_every=save_every)
        probe = torch.cat([data.batch(steps + k)[0] for k in range(2 if common.quick else 8)]).to(device)
        model.register_to_config(scaling_factor=1 / latent_deviation(model, probe))
        folder = free(run.folder / "vae")
        save_model(model, folder)
        run.finish(numbers)
    return {"out": str(run.folder), "vae": str(folder), **numbers}
