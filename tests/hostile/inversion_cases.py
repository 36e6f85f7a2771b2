"""What was tried on `synthesize referee-can-play` and `convert lavis-blip2`: as in `cases`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from .things import made

NUL, ENDLESS = "a\0b", "x" * 5000  # as in `cases`, which reads this file
PARTS = ("vae", "unet", "scheduler")


def pipeline(**contents: object) -> Callable[[Path], Path]:
    """A maker of a pipeline's folder whose parts have these configs; None for a part that is not there."""

    def make(folder: Path) -> Path:
        place = folder / f"pipeline{len(list(folder.iterdir()))}"
        place.mkdir()
        (place / "model_index.json").write_text("{}")
        for part in PARTS:
            content = contents.get(part, {})
            if content is None:
                continue
            (place / part).mkdir()
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            (place / part / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return place

    return make


VAE = {"_class_name": "AutoencoderKL"}
made("sd_no_vae", pipeline(vae=None))
made("sd_no_scheduler", pipeline(scheduler=None))
made("sd_vq", pipeline(vae={"_class_name": "VQModel"}))
made("sd_list", pipeline(vae=[1, 2]))
made("sd_text", pipeline(vae="no json"))
made("sd_weightless", pipeline(vae=VAE))
made("sd_huge", pipeline(vae=VAE | {"block_out_channels": [2**40]}))
made("sd_schedule", pipeline(scheduler="[1]"))
made("sd_steps", pipeline(scheduler={"num_train_timesteps": -4}))


def models() -> Iterator[tuple[str, str | list[str], int, str]]:
    for given, words in (
        ("nowhere", "there is no diffusion model 'nowhere'"),
        ("{folder}", "there is no diffusion model"),
        ("{file}", "there is no diffusion model"),
        ("{pipe}", "there is no diffusion model"),
        ("emoji-vqgan", "there is no diffusion model 'emoji-vqgan'"),
        (ENDLESS, "there is no diffusion model"),
        (NUL, "holds a zero byte"),
        ("{sd_no_vae}", "has no vae/"),
        ("{sd_no_scheduler}", "has no scheduler/"),
        ("{sd_vq}", "holds a VQModel instead of a AutoencoderKL"),
        ("{sd_list}", "instead of a AutoencoderKL"),
        ("{sd_text}", "config.json"),
        ("{sd_weightless}", "weights are loaded from safetensors only"),
        ("{sd_huge}", "config"),
        ("{sd_schedule}", "is not a config of a scheduler"),
        ("{sd_steps}", "scheduler"),
    ):
        yield "a diffusion model", ["synthesize", "referee-can-play", "a cat", "--quick", "--model", given], 2, words


def flags() -> Iterator[tuple[str, str | list[str], int, str]]:
    for given, words in (
        ("--guidance -1", "would lead away from the text"),
        ("--guidance nan", "finite number"),
        ("--copies -1", "greater than or equal to 0"),
        ("--hardest 9 --copies 4", "--hardest 9 of 4 copies"),
        ("--w1 -2", "greater than or equal to 0"),
        ("--lr 0", "greater than 0"),
        ("--ema-decay 1", "less than 1"),
        ("--ema-period 0", "greater than 0"),
        ("--ema always", "'restart', 'plain' or 'none'"),
        ("--mode loose", "'faithful', 'released' or 'fixed'"),
        ("--optimiser lbfgs", "'adam' or 'sgd'"),
        ("--weighting quick", "'constant' or 'one minus alpha'"),
        ("--no-vlm --no-sds", "leave no gradient"),
        ("--no-sds --steps 4 --sds-only 4", "give --sds-only 0"),
        ("--sds-prompt photo", "has one {} for the prompt"),
        ("--sds-prompt {}{}", "has one {} for the prompt"),
        ("--matching 0 --captioning 0", "are both 0"),
        ("--size 4", "is not a size of a picture"),
        ("--init nowhere.png", "there is no file 'nowhere.png' to start from"),
        ("--referee emoji-blip2 --referee emoji-blip2", "comes twice"),
        ("--referee emoji-blip2=-1", "not a positive number"),
        ("--referee nobody", "nobody"),
    ):
        yield (
            "a flag of referee-can-play",
            ["synthesize", "referee-can-play", "cat", *given.split(), "--quick"],
            2,
            words,
        )
    for text, words in (
        ("a cat:2", "pair readers and diffusion models read one"),
        ("a cat | a dog", "pair readers and diffusion models read one"),
    ):
        yield "a prompt of pairs", ["synthesize", "referee-can-play", text, "--quick"], 2, words


def checkpoints() -> Iterator[tuple[str, str | list[str], int, str]]:
    for given, code, words in (
        ("nowhere.pth", 2, "is not a file"),
        ("{pipe}", 2, "is not a file"),
        ("/dev/zero", 2, "is not a file"),
        ("{taming_payload}", 2, "could run code when opened"),
        ("{taming_half}", 2, "no place for"),
        ("{taming_empty}", 1, "truncated or damaged"),
        ("{taming_number}", 2, "holds int, not weights"),
    ):
        yield "a checkpoint of LAVIS", ["convert", "lavis-blip2", given, "--out", "{out}"], code, words
    yield "a checkpoint of LAVIS", "convert lavis-blip2 {taming_half} --out {folder}", 2, "exists: write elsewhere"
    yield "a checkpoint of LAVIS", "convert lavis-blip2 {taming_half} --vision nowhere --out {out}", 2, "is not a file"


def readers() -> Iterator[tuple[str, str | list[str], int, str]]:
    yield "a pair reader as a CLIP", "synthesize clipag cat --quick --referee emoji-blip2", 2, "emoji-blip2"
    yield "a pair reader as a CLIP", "evaluate emoji-blip2 --limit 1", 2, "emoji-blip2"
    yield "rows that are none", "reproduce inversion --quick --cells bothh", 2, "bothh"


INVERSION = [*models(), *flags(), *checkpoints(), *readers()]
