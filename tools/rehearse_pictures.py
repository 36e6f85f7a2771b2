"""Rehearse synthesis and explanation at full size with drawn weights: time and memory of a step, beside the plan's.

    python tools/rehearse_pictures.py                                 # all parts, 512 pixels of Stable Diffusion 1.5
    python tools/rehearse_pictures.py --parts doodl --size 256        # what a CPU does in minutes

    clipag             a picture of 224x224 with 64 views, guided by ViT-B/32
    explain            a GradCAM report of --images pictures, clean and under PGD-20
    vqgan              a picture of 224x224 by a VQGAN f16 with 16,384 codes, 64 views
    referee-can-play   a picture of --size by Stable Diffusion 1.5, guided by ViT-B/32 through 10 copies and SDS
    doodl              the same through a chain of --chain-steps by BDIA, 16 crops

Every part runs in a process of its own. A step's time is the difference of runs with one step and with three, an
image's that of reports of two and of all. Planned is the time of as many FLOPs at a measured rate: of Stable
Diffusion's steps by `diffusion.budget` at the rate of one evaluation of the denoiser, of the others as torch counts
them in a run, at the rate of the referee's passes. Planned memory is of weights and stored activations, with those of
the referee and its text tower; it stands beside what the process took from the start of the part.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel, VQModel
from rehearse import drawn, memory_taken
from rich.console import Console
from rich.table import Table
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import robustclip
from robustclip.data.images import save_image
from robustclip.diffusion.budget import CONFIGS, Budget, budget
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.planning.costs import counted, gradient_to_pixels
from robustclip.planning.memory import activations
from robustclip.planning.towers import blueprint, imagine
from robustclip.referees.openclip import byte_pairs
from robustclip.runs.devices import autocast, pick_device, pick_dtype, saved_bytes

PARTS: Final = ("clipag", "explain", "vqgan", "referee-can-play", "doodl")
BATCH: Final = 16  # images at once of the report
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
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--architecture", default="ViT-B-32", help="of the referee")
    parser.add_argument("--quick", action="store_true", help="a small referee, few views and images, 64 pixels")
    asked = parser.parse_args()
    if asked.quick:
        asked.architecture, asked.views, asked.images, asked.size, asked.chain_steps = "ViT-S-32-alt", 4, 4, 64, 2
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
        referee = drawn(asked.architecture, folder / "referee")
        judge = of_referee(asked.architecture)
        if part == "explain":
            return explained(folder, referee, judge, asked, how)
        guided: dict[str, Any] = {"referee": referee, "batch_size": 1, "save_frames": False, **how}
        if part == "clipag":
            guided |= {"size": "224", "init": "noise", "views": asked.views, "augment": "diffaug"}
        elif part == "vqgan":
            guided |= {"model": vqgan(folder / "vqgan"), "size": "224", "init": "codes", "views": asked.views}
        else:
            guided |= {"model": stable_diffusion(folder / "sd"), "size": str(asked.size)}
        memory = judge.held + asked.views * judge.kept
        if part == "vqgan":
            memory += sum(decoding(VQGAN, 224))
        if part == "referee-can-play":
            guided |= {"copies": 10, "sds_only": 0, "ema": "none"}
        if part == "doodl":
            guided |= {"chain_steps": asked.chain_steps, "sampler": "bdia"}
        if part in ("referee-can-play", "doodl"):
            of_model = budget(UNET, CONFIGS["vae"], (asked.size, asked.size), dtype=torch.float32)
            evaluations = asked.chain_steps if part == "doodl" else 0
            planned = seconds_of(part, of_model, evaluations) * rate(guided["model"], asked, device)
            copies = 16 if part == "doodl" else 10
            memory = judge.held + of_model.weights
            memory += max(of_model.evaluation, of_model.decoding + copies * judge.kept)
        paint = getattr(robustclip.synthesize, part.replace("-", "_"))

        def painted(steps: int, name: str) -> None:
            paint([PROMPT], steps=steps, out=folder / f"{name}-{steps}", **guided)

        taken = memory_taken(device)
        if part in ("clipag", "vqgan"):  # counted first, which also warms up what is timed
            flops = counted(lambda: painted(2, "counted")) - counted(lambda: painted(1, "counted"))
        one, three = (clocked(partial(painted, n, "run")) for n in (1, 3))
        most = taken()
        if part in ("clipag", "vqgan"):
            planned = flops * referee_rate(referee, asked, device)
    return [part, f"{(three - one) / 2:.1f} a step", f"{planned:.1f}", f"{most / 1e9:.1f}", f"{memory / 1e9:.1f}"]


@dataclass(frozen=True)
class OfReferee:
    """Bytes of a referee: `held` by the weights of both towers, `kept` per view for the gradient to its pixels."""

    held: float
    kept: float


def of_referee(architecture: str) -> OfReferee:
    design = blueprint("drawn.pt", architecture)
    imagined = imagine(design, lambda tower: tower.eval().requires_grad_(False))  # type: ignore[arg-type]
    kept = activations(imagined, design.size, "float32", grad_checkpointing=False)
    towers = [imagined.image_tower, *([imagined.text_tower] if imagined.text_tower else [])]
    return OfReferee(
        sum(4.0 * one.numel() for tower in towers for one in tower.parameters()), kept.attack + kept.working
    )


def decoding(config: dict[str, Any], size: int) -> tuple[int, int]:
    """Bytes of a VQModel's weights, and of what it keeps of a picture that it decodes."""
    with torch.device("meta"):
        model: Any = VQModel.from_config(config).eval().requires_grad_(False)
        cells = size // 2 ** (len(config["block_out_channels"]) - 1)
        latents = torch.zeros(1, config["latent_channels"], cells, cells, requires_grad=True)
        kept = saved_bytes(lambda: model.decode(latents, force_not_quantize=True).sample, model.parameters())
    return sum(one.nbytes for one in model.parameters()), kept


def referee_rate(referee: str, asked: argparse.Namespace, device: torch.device) -> float:
    """Seconds a FLOP of a forward pass of the referee's tower and the gradient to its views, the second of two."""
    tower = robustclip.load_referee(referee, device=str(device)).image_tower.eval().requires_grad_(False)
    side = blueprint("drawn.pt", asked.architecture).size
    views = torch.rand(min(asked.views, 64), 3, *side, device=device)

    def passes() -> None:
        with autocast(device, pick_dtype(asked.dtype, device, tower=tower)):
            float(gradient_to_pixels(tower, views).sum())

    flops = counted(passes)
    return clocked(passes) / flops


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


def explained(
    folder: Path, referee: str, judge: OfReferee, asked: argparse.Namespace, how: dict[str, Any]
) -> list[str]:
    (folder / "images").mkdir()
    for number in range(asked.images):
        noise = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(number))
        save_image(noise, folder / "images" / f"{number}.png")
    paths = sorted(str(path) for path in (folder / "images").iterdir())

    def reported(images: int, name: str) -> None:
        call: dict[str, Any] = {"referees": [referee], "images": paths[:images], "texts": [PROMPT]}
        robustclip.explain(**call, batch_size=BATCH, out=folder / f"{name}-{images}", **how)

    device = pick_device(how["device"])
    taken = memory_taken(device)
    flops = counted(lambda: reported(2, "counted")) - counted(lambda: reported(1, "counted"))
    few, whole = (clocked(partial(reported, n, "report")) for n in (2, asked.images))
    most = taken()
    seconds = (whole - few) / (asked.images - 2)
    planned = flops * referee_rate(referee, asked, device)
    memory = judge.held + min(BATCH, asked.images) * judge.kept
    return ["explain", f"{seconds:.2f} an image", f"{planned:.2f}", f"{most / 1e9:.1f}", f"{memory / 1e9:.1f}"]


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


if __name__ == "__main__":
    main()
