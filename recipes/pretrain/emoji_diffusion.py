"""Train the embedded text-to-image latent diffusion model, for `synthesize referee-can-play` and `doodl`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from robustclip.data.emoji_batches import DrawingsAndPairs
from robustclip.diffusion.denoiser import SCHEDULE, DenoiserTrainer, encode, new_denoiser
from robustclip.diffusion.fitting import free
from robustclip.diffusion.pipelines import load_diffusion, load_vae, save_diffusion
from robustclip.diffusion.stable import SentenceStates
from robustclip.errors import UsageError
from robustclip.flags import CommonFlags, flat
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator

DROPPED = 0.1  # share of captions that are left out, for guidance

QUICK: Final = {"steps": 4, "batch_size": 8, "channels": [32, 32], "save_every": 2}


def recipe(
    *,
    vae: Annotated[Path, "autoencoder folder from pretrain/emoji-vae"],
    steps: PositiveInt = 2500,
    batch_size: PositiveInt = 128,
    repeat: Annotated[PositiveInt, "noise draws per picture in a batch"] = 2,
    lr: PositiveFloat = 6e-4,
    placed: Annotated[NonNegativeFloat, "weight of the cross-attention supervision"] = 0.02,
    channels: list[PositiveInt] = [96, 192],  # noqa: B006  (never changed)
    start: Annotated[str | None, "diffusion model on the same autoencoder to continue from"] = None,
    save_every: PositiveInt = 100,
    snapshots: Annotated[NonNegativeInt, "number of EMA snapshots saved as folders, including the last"] = 0,
    common: CommonFlags = CommonFlags(),
) -> dict[str, Any]:
    """Train emoji-diffusion: latents of emoji-vae from texts, by cross-attention to MiniLM's token states.

    robustclip robustify pretrain/emoji-diffusion --vae RUN/vae

    About a second a step on one CPU core. Pairs of coloured things (half), compositions and single drawings of the
    guides' styles are drawn and encoded on the fly, never the compositional prompts. The method is Rombach et al. 2022
    with Stable Diffusion's schedule and loss on the noise; sizes, rates, Min-SNR weights, the text tower and the
    supervision of cross-attention (after TokenCompose) are ours. The folder is diffusers', without a text tower: that
    of the package is named in its card.
    """
    arguments = flat(locals())
    device = pick_device(common.device)
    kind = pick_dtype(common.dtype, device)
    autoencoder = load_vae(vae, device).to(memory_format=torch.channels_last)
    texts = SentenceStates().to(device)
    shares = {"single": 0.0, "composed": 0.5} if common.quick else {"single": 0.125, "composed": 0.375}
    data = DrawingsAndPairs("guide-styles", max(batch_size // repeat, 1), common.seed, **shares)
    states, mask = texts.states([""])
    empty = (states[0], mask[0])
    config = autoencoder.config
    model = new_denoiser(
        channels,
        latent=config["latent_channels"],
        size=64 // 2 ** (len(config["block_out_channels"]) - 1),
        text=texts.width,
        seed=common.seed,
    ).to(device)
    if start is not None:
        take_over(model, start)
    trainer = DenoiserTrainer(model, steps=steps, lr=lr, placed=placed, dtype=kind)
    kept = {name: value for name, value in arguments.items() if name not in ("out", "resume", "device", "vae")}

    def save(folder: Path) -> None:
        card = {
            "name": "emoji-diffusion",
            "recipe": "pretrain/emoji-diffusion",
            "arguments": kept,
            "steps": trainer.done,
        }
        save_diffusion(folder, autoencoder, trainer.averaged(), SCHEDULE, card, half=True)

    run = Run.start(common.out, common.resume, recipe="emoji-diffusion", arguments=arguments, verb="robustify")

    wanted = {round(steps * (number + 1) / snapshots) for number in range(snapshots)}

    def step(k: int) -> dict[str, float]:
        stream = generator(common.seed, "noise", k)
        batch = encode(data.labelled(k), autoencoder, texts, kind).drawn(repeat, DROPPED, empty, stream)
        numbers = trainer.step(batch, stream)
        snapshot = run.folder / "snapshots" / f"step-{trainer.done:06d}"
        if trainer.done in wanted and not snapshot.exists():
            save(snapshot)
        return numbers

    with run:
        trainer.resume(run, device)
        numbers = trainer.fit(step, run, images=batch_size, save_every=save_every)
        folder = free(run.folder / "generator")
        save(folder)
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
            f"sizes, as in --channels {' '.join(map(str, theirs))}, and the autoencoder it was trained on",
            "other_network",
            channels=theirs,
            asked=ours,
        )
    model.load_state_dict(other.state_dict())
