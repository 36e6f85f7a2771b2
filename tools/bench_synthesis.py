"""`make bench`: overhead of synthesis over its passes, and gain of batching.

With --quality also what a pass buys: R-Precision of the paper's recipe and of ours against the view passes of a picture
(some 12 minutes on two cores for 40 prompts).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import rich
import torch
from bench import VIT_B_32, Step, ratio, timm_cfg
from torch import Generator

from robustclip.canvases import Pixels
from robustclip.data.emoji import embedded_prompts, some_prompts
from robustclip.evaluation.generation.grids import PromptRecognition
from robustclip.evaluation.generation.results import Results
from robustclip.evaluation.named import load_named
from robustclip.losses import Cosine, Target
from robustclip.recipes import run
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.openclip import build_image_tower
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.toy import ToyText
from robustclip.runs.devices import pick_device
from robustclip.runs.rng import generator
from robustclip.synthesis.loop import optimise
from robustclip.synthesis.terms import Stream, Term
from robustclip.views import Clamp, GaussianNoise, RandomCrop, Views, diffaug


def referee_of(model_cfg: dict, size: int, device: torch.device) -> TwoTower:
    """A CLIP with random weights: its time is that of any other's."""
    preprocess = Preprocess(size)
    card = Card(name="bench", family="toy", architecture={}, preprocess=preprocess.config(), logit_scale=100.0)
    tower = build_image_tower(model_cfg)
    made = TwoTower(tower, ToyText(model_cfg["embed_dim"]), preprocess, card=card).to(device).eval()
    return made.requires_grad_(False)


def synthesis_steps(
    referee: TwoTower, pictures: int, views: int, patches: int, device: torch.device, dtype: torch.dtype
) -> tuple[Step, Step]:
    """(a step of CLIPAG's loop, the bare passes): the latter take the gradient of the same cosines to as many images
    that are there already, through the frozen tower. Ours adds drawing, noise, DiffAugment, crops, clipping, AdamW and
    dynamic thresholding."""
    size = referee.image_size[0]
    texts = referee.embed_texts([f"prompt {number}" for number in range(pictures)])
    cosine = Cosine([Target(referee, texts[:, None], torch.ones(pictures, 1, device=device))], dtype)
    canvas = Pixels(torch.rand(pictures, 3, size, size, device=device), "threshold")
    whole = Views(views, (GaussianNoise(0.01), *diffaug()), name="diffaug")
    crops = Views(
        patches, (GaussianNoise(0.01, shared=True), RandomCrop(128 / 224, size), Clamp(), *diffaug()), name="patches"
    )
    stream = Stream(
        Term(cosine, whole) + Term(cosine, crops, weight=5.0),
        torch.optim.AdamW(canvas.parameters(), lr=0.0175),
        clip_norm=1e-3,
    )
    ready = [torch.rand(pictures, count, 3, size, size, device=device) for count in (views, patches)]

    def generators(purpose: str, step: int) -> list[Generator]:
        return [generator(0, purpose, step, row, device=device) for row in range(pictures)]

    def ours() -> None:
        optimise(canvas, [stream], steps=1, generators=generators)

    def bare() -> None:
        leaves = [images.requires_grad_() for images in ready]
        torch.autograd.grad(torch.stack([cosine(leaf).mean() for leaf in leaves]).sum(), leaves)

    return ours, bare


def cost(arguments: argparse.Namespace, device: torch.device) -> None:
    """A step over its bare passes, and pictures painted together over one by one."""
    towers = {
        "resnet10t at 64, 16 pictures x 8+8 views": (timm_cfg("resnet10t", 64), 64, 16, 8),
        "resnet10t at 64, 1 picture x 32+32 views": (timm_cfg("resnet10t", 64), 64, 1, 32),
        "ViT-B/32 at 224, 1 picture x 32+32 views": (VIT_B_32, 224, 1, 32),
    }
    for name, (model_cfg, size, pictures, views) in towers.items():
        referee = referee_of(model_cfg, size, device)
        for dtype in (torch.float32, torch.bfloat16):
            found = ratio(*synthesis_steps(referee, pictures, views, views, device, dtype), arguments.rounds, device)
            print(f"{name}, {dtype}: a step is {found:.3f} of its bare passes", flush=True)
    referee = referee_of(timm_cfg("resnet10t", 64), 64, device)
    together, _ = synthesis_steps(referee, 16, 4, 4, device, torch.float32)
    alone, _ = synthesis_steps(referee, 1, 4, 4, device, torch.float32)

    def one_by_one() -> None:
        for _ in range(16):
            alone()

    print(
        f"16 pictures together are {ratio(one_by_one, together, arguments.rounds, device):.2f} times as fast",
        flush=True,
    )


def quality(count: int, device: str) -> None:
    """R-Precision among 40 by both judges, of pictures of emoji-robust, against the view passes of a picture."""
    texts = some_prompts(count)
    judges = load_named(["emoji-judge", "emoji-judge-disjoint"], device=pick_device(device))
    recognised, results = PromptRecognition([one.prompt for one in embedded_prompts()], judges, [40]), Results()
    settings = [("clipag", steps, 8 * steps) for steps in (8, 16, 32)]
    settings += [("clipag-faithful", steps, 64 * steps) for steps in (25, 100)]
    for recipe, steps, passes in settings:
        with tempfile.TemporaryDirectory() as folder:
            made = run(
                recipe,
                "synthesize",
                {"prompt": texts, "steps": steps, "out": Path(folder) / "run", "save_frames": False},
            )
            results.add(f"{recipe}, {passes} passes", texts, recognised(made.images, texts))
        rich.print(results.table())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each side (default: %(default)s)")
    parser.add_argument("--quality", type=int, default=0, metavar="N", help="measure what a pass buys, on N prompts")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    if arguments.quality:
        quality(arguments.quality, str(device))
        return
    print(f"{device}, {torch.get_num_threads()} threads", flush=True)
    cost(arguments, device)


if __name__ == "__main__":
    main()
