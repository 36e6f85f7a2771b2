"""Rehearse synthesis and explanation at full size with drawn weights: time and memory of a step, beside the plan's.

    python tools/rehearse_pictures.py                                 # all parts, 512 pixels of Stable Diffusion 1.5
    python tools/rehearse_pictures.py --parts doodl --size 256        # what a CPU does in minutes

    clipag             a picture of 224x224 with 64 views, guided by ViT-B/32
    explain            a GradCAM report of --images pictures, clean and under PGD-20
    vqgan              a picture of 224x224 by a VQGAN f16 with 16,384 codes, 64 views
    referee-can-play   a picture of --size by Stable Diffusion 1.5, guided by ViT-B/32 through 10 copies and SDS
    doodl              the same through a chain of --chain-steps by BDIA, 16 crops

Every part runs in a process of its own. A step's time is the difference of runs with one step and with three. The plan
of a diffusion model counts FLOPs and stored activations (`diffusion.budget`), without the referee; its time is that of
as many FLOPs at the rate of one evaluation of the denoiser, measured here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel, VQModel
from rehearse import drawn, maximum_resident
from rich.console import Console
from rich.table import Table
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import robustclip
from robustclip.data.images import save_image
from robustclip.diffusion.budget import CONFIGS, Budget, budget
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.referees.openclip import byte_pairs
from robustclip.runs.devices import pick_device, pick_dtype

PARTS: Final = ("clipag", "explain", "vqgan", "referee-can-play", "doodl")
PROMPT: Final = "a yellow banana and a blue butterfly"
UNET: Final = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # of 1.5; the rest is diffusers'
VQGAN: Final = {  # taming-transformers' vqgan_imagenet_f16_16384
    "block_out_channels": [128, 128, 256, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 256,
    "num_vq_embeddings": 16384,
    "vq_embed_dim": 256,
}
SCHEDULE: Final = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--size", type=int, default=512, help="of Stable Diffusion's pictures")
    parser.add_argument("--chain-steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=100, help="of the report")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    asked = parser.parse_args()
    table = Table("", "seconds", "planned", "GB", "planned")
    for part in asked.parts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(rehearse, (part, asked))
        table.add_row(*row)
        print(" | ".join(row), flush=True)
    Console().print(table)


def rehearse(part: str, asked: argparse.Namespace) -> list[str]:
    """A row of the table."""
    device = pick_device(asked.device)
    how: dict[str, Any] = {"device": asked.device, "dtype": asked.dtype}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        referee = drawn("ViT-B-32", folder / "referee")
        if part == "explain":
            return explained(folder, referee, asked.images, how)
        guided: dict[str, Any] = {"referee": referee, "batch_size": 1, "save_frames": False, **how}
        if part == "clipag":
            guided |= {"size": "224", "init": "noise", "views": 64, "augment": "diffaug"}
        elif part == "vqgan":
            guided |= {"model": vqgan(folder / "vqgan"), "size": "224", "init": "codes", "views": 64}
        else:
            guided |= {"model": stable_diffusion(folder / "sd"), "size": str(asked.size)}
        planned = counted = None
        if part == "referee-can-play":
            guided |= {"copies": 10, "sds_only": 0, "ema": "none"}
        if part == "doodl":
            guided |= {"chain_steps": asked.chain_steps, "sampler": "bdia"}
        if part in ("referee-can-play", "doodl"):
            counted = budget(UNET, CONFIGS["vae"], (asked.size, asked.size), dtype=torch.float32)
            evaluations = asked.chain_steps if part == "doodl" else 0
            planned = seconds_of(part, counted, evaluations) * rate(guided["model"], asked, device)
        paint = getattr(robustclip.synthesize, part.replace("-", "_"))
        one, three = (clocked(partial(paint, [PROMPT], steps=n, out=folder / f"run-{n}", **guided)) for n in (1, 3))
    seconds = f"{(three - one) / 2:.1f} a step"
    memory = f"{counted.peak(1) / 1e9:.1f}" if counted else ""
    return [part, seconds, f"{planned:.1f}" if planned else "", f"{peak(device) / 1e9:.1f}", memory]


def seconds_of(part: str, counted: Budget, evaluations: int) -> float:
    """FLOPs of a step. Referee-Can-Play's is one evaluation of the denoiser and a decoding, forward and back."""
    if part == "doodl":
        return counted.step(evaluations)
    return counted.flops + 2 * counted.decoding_flops


def rate(model: str, asked: argparse.Namespace, device: torch.device) -> float:
    """Seconds a FLOP of one evaluation of the denoiser with guidance, the second of two."""
    loaded = load_diffusion(
        model, device, dtype=pick_dtype("float32" if asked.dtype == "auto" else asked.dtype, device)
    )
    cells = asked.size // loaded.factor
    latents = torch.zeros(1, 4, cells, cells, device=device)
    text, no_text = (loaded.embed_prompts([one]) for one in (PROMPT, ""))
    flops = budget(UNET, CONFIGS["vae"], (asked.size, asked.size), dtype=torch.float32).flops

    def evaluate() -> None:
        with torch.no_grad():
            float(loaded.predict_noise(latents, torch.tensor([500], device=device), text, no_text, 5.0).sum())

    evaluate()
    return clocked(evaluate) / flops


def explained(folder: Path, referee: str, images: int, how: dict[str, Any]) -> list[str]:
    (folder / "images").mkdir()
    for number in range(images):
        noise = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(number))
        save_image(noise, folder / "images" / f"{number}.png")
    call: dict[str, Any] = {"referees": [referee], "images": [str(folder / "images")], "texts": [PROMPT]}
    seconds = clocked(lambda: robustclip.explain(**call, out=folder / "report", **how))
    return ["explain", f"{seconds / images:.2f} an image", "", f"{peak(pick_device(how['device'])) / 1e9:.1f}", ""]


def stable_diffusion(folder: Path) -> str:
    """Write Stable Diffusion 1.5 with drawn weights, as diffusers does."""
    tokens, merges = byte_pairs()
    (folder / "tokenizer").mkdir(parents=True)
    marks = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # open_clip's and transformers'
    words = {marks.get(token, token): number for token, number in tokens.items()}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=len(tokens)
    )
    vae, unet = AutoencoderKL.from_config(CONFIGS["vae"]), UNet2DConditionModel.from_config(UNET)
    scheduler = DDIMScheduler.from_config(SCHEDULE)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True, model_max_length=77)
    made: Any = StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    made.save_pretrained(folder, safe_serialization=True)
    return str(folder)


def vqgan(folder: Path) -> str:
    """Write taming's VQGAN f16 with drawn weights, as diffusers does."""
    torch.manual_seed(0)
    VQModel.from_config(VQGAN).save_pretrained(folder, safe_serialization=True)
    return str(folder)


def clocked(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def peak(device: torch.device) -> float:
    """Largest memory so far: allocated on a GPU, resident on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 1024 * maximum_resident()


if __name__ == "__main__":
    main()
