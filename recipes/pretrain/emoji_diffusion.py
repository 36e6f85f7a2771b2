"""The embedded world's text-to-image diffusion model, for `synthesize referee-can-play`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import PositiveFloat, PositiveInt

from robustclip.data.drawings_and_pairs import DrawingsAndPairs
from robustclip.diffusion.conditioning import SentenceStates
from robustclip.diffusion.denoiser import SCHEDULE, DenoiserTrainer, LatentPool, new_denoiser
from robustclip.diffusion.fitting import fit, free, go_on
from robustclip.diffusion.pipelines import load_diffusion, load_vae, save_diffusion
from robustclip.errors import UsageError
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.folder import ResumeFrom, Run, RunFolder
from robustclip.runs.rng import generator


def recipe(
    *,
    vae: Annotated[Path, "the autoencoder's folder, of pretrain/emoji-vae"],
    pictures: Annotated[PositiveInt, "encoded once, and drawn from"] = 24000,
    steps: PositiveInt = 2500,
    batch_size: PositiveInt = 64,
    lr: PositiveFloat = 1e-3,
    channels: list[PositiveInt] = [96, 192],  # noqa: B006  (never changed)
    start: Annotated[str | None, "a diffusion model on the same autoencoder, whose denoiser is trained on"] = None,
    save_every: PositiveInt = 250,
    resume: ResumeFrom | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    out: RunFolder | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Train emoji-diffusion: latents of emoji-vae from texts, by cross-attention to MiniLM's token states.

    robustclip robustify pretrain/emoji-diffusion --vae RUN/vae

    About half an hour on two CPU cores. Sees pairs of coloured things and single drawings of the guides' styles, never
    the compositional prompts. The method is Rombach et al. 2022 with Stable Diffusion's schedule and loss on the noise;
    sizes, rates, Min-SNR weights and the text tower are ours. The folder is diffusers', without a text tower: that of
    the package is named in its card.
    """
    if quick:
        pictures, steps, batch_size, channels, save_every = 16, 4, 8, [32, 32], 2
    arguments = dict(locals())
    place = pick_device(device)
    autoencoder = load_vae(vae, place)
    texts = SentenceStates().to(place)
    data = DrawingsAndPairs("guide-styles", 8 if quick else 64, seed, single=0.0 if quick else 0.25)
    pool = encoded(data, pictures, autoencoder, texts)
    config = autoencoder.config
    model = new_denoiser(
        channels,
        latent=config["latent_channels"],
        size=64 // 2 ** (len(config["block_out_channels"]) - 1),
        text=texts.width,
        seed=seed,
    ).to(place, memory_format=torch.channels_last)
    if start is not None:
        take_over(model, start)
    trainer = DenoiserTrainer(model, steps=steps, lr=lr, dtype=pick_dtype(dtype, place))
    run = Run.start(out, resume, recipe="emoji-diffusion", arguments=arguments, room="robustify")
    if resume is not None:
        go_on(trainer, run, place)

    def step(k: int) -> dict[str, float]:
        stream = generator(seed, "noise", k)
        latents, states, mask = (part.to(place) for part in pool.batch(batch_size, stream))
        return trainer.step(latents, states, mask, stream)

    with run:
        numbers = fit(
            trainer,
            step,
            run,
            images=batch_size,
            save_every=save_every,
            title="training a denoiser",
            shown=("loss", "error"),
        )
        folder = free(run.folder / "generator")
        kept = {name: value for name, value in arguments.items() if name not in ("out", "resume", "device", "vae")}
        card = {"name": "emoji-diffusion", "recipe": "pretrain/emoji-diffusion", "arguments": kept, "steps": steps}
        save_diffusion(folder, autoencoder, trainer.averaged(), SCHEDULE, card, half=True)
        run.finish(numbers)
    return {"out": str(run.folder), "generator": str(folder), **numbers}


def take_over(model: Any, start: str) -> None:
    """The weights of another model's denoiser. Raises UsageError where it has other sizes."""
    other = load_diffusion(start).unet
    sizes = [{name: part.shape for name, part in one.state_dict().items()} for one in (other, model)]
    if sizes[0] != sizes[1]:
        theirs, ours = (list(one.config["block_out_channels"]) for one in (other, model))
        raise UsageError(
            f"the denoiser of {start!r} is another network (channels {theirs}, and {ours} are asked for): give its "
            f"sizes, as in --channels {' '.join(map(str, theirs))}, and the autoencoder it was trained on"
        )
    model.load_state_dict(other.state_dict())


@torch.no_grad()
def encoded(data: DrawingsAndPairs, pictures: int, vae: Any, texts: SentenceStates) -> LatentPool:
    """So many pictures' scaled latents, and the states of their captions."""
    latents, states, masks = [], [], []
    for k in range(-(-pictures // data.batch_size)):
        images, captions = data.batch(k)
        latents.append(vae.encode(images.to(vae.device) * 2 - 1).latent_dist.mean.half().cpu())
        found, mask = texts.states(captions)
        states.append(found.half().cpu())
        masks.append(mask.cpu())
    empty, none = texts.states([""])
    scaled = torch.cat(latents) * vae.config["scaling_factor"]
    return LatentPool(scaled, torch.cat(states), torch.cat(masks), (empty[0].cpu(), none[0].cpu()))
