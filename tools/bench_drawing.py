"""`make bench`: speed-up of tiled rasterisation, and CLIPDraw's overhead over its passes."""

from __future__ import annotations

import argparse

import torch
from bench import VIT_B_32, Step, ratio
from bench_synthesis import referee_of
from jaxtyping import Float
from torch import Generator, Tensor

from robustclip.canvases import Strokes
from robustclip.drawing import Drawing, random_strokes, rasterise
from robustclip.drawing.raster import TINY, covered_by_stroke
from robustclip.drawing.shapes import lines_of
from robustclip.losses import Cosine, Target
from robustclip.runs.devices import pick_device
from robustclip.runs.rng import generator
from robustclip.synthesis.loop import optimise
from robustclip.synthesis.terms import Stream, Term, Terms
from robustclip.views import Perspective, RandomResizedCrop, Views

SIZE, STROKES = (224, 224), 256  # CLIPDraw's
VIEWS = 4


def untiled(drawing: Drawing, size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """The same picture of strokes, every pixel asking every line of every stroke, one stroke after the other."""
    lines = lines_of(drawing)
    y, x = torch.meshgrid(*(torch.arange(side, device=lines.starts.device) + 0.5 for side in size), indexing="ij")
    pixels = torch.stack([x, y], -1).flatten(0, 1)[:, None]
    image = torch.ones(len(pixels), 3, device=pixels.device)
    for row in range(drawing.points.shape[1]):
        mine = lines.shape == row
        starts, directions = lines.starts[mine], (lines.ends - lines.starts)[mine]
        place = (((pixels - starts) * directions).sum(-1) / directions.square().sum(-1).clamp(min=TINY)).clamp(0, 1)
        distance = (pixels - starts - place[..., None] * directions).square().sum(-1).amin(1).clamp(min=TINY).sqrt()
        alpha = (covered_by_stroke(distance, drawing.widths[0, row] / 2, 1.0) * drawing.colours[0, row, 3])[:, None]
        image = (1 - alpha) * image + alpha * drawing.colours[0, row, :3]
    return image.T.reshape(1, 3, *size)


def both_rasterisers(width: float, device: torch.device) -> tuple[Step, Step]:
    """Forward and backward, without tiles and with."""
    drawing = random_strokes(STROKES, SIZE, [generator(0, "bench")], width=width, device=device)
    for one in (drawing.points, drawing.widths, drawing.colours):
        one.requires_grad_()
    difference = (untiled(drawing, SIZE) - rasterise(drawing, SIZE)).abs().max().item()
    assert difference < 1e-3, f"they draw different pictures: {difference}"
    return lambda: untiled(drawing, SIZE).sum().backward(), lambda: rasterise(drawing, SIZE).sum().backward()


def loop_and_passes(device: torch.device, dtype: torch.dtype) -> tuple[Step, Step]:
    """(a step of CLIPDraw's loop on ViT-B/32, its bare passes: the gradient of the same cosines to as many images that
    are there already). Ours adds drawing, rasterising, perspective, crops and three groups of Adam."""
    referee = referee_of(VIT_B_32, SIZE[0], device)
    cosine = Cosine(
        [Target(referee, referee.embed_texts(["a prompt"])[:, None], torch.ones(1, 1, device=device))], dtype
    )
    canvas = Strokes(random_strokes(STROKES, SIZE, [generator(0, "bench")], device=device), SIZE)
    look = Views(VIEWS, (Perspective(0.5, padding=1.0), RandomResizedCrop(SIZE)))
    groups = [{"name": name, "params": found} for name, found in canvas.groups().items()]
    stream = Stream(Terms((Term(cosine, look),)), torch.optim.Adam(groups, lr=0.1))
    images = torch.rand(1, VIEWS, 3, *SIZE, device=device, requires_grad=True)

    def generators(purpose: str, step: int) -> list[Generator]:
        return [generator(0, purpose, step, device=device)]

    return (
        lambda: optimise(canvas, [stream], steps=1, generators=generators),
        lambda: torch.autograd.grad(cosine(images).sum(), images),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each side (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    print(f"{device}, {torch.get_num_threads()} threads", flush=True)
    for width in (1.0, 8.0):
        found = ratio(*both_rasterisers(width, device), arguments.rounds, device)
        print(f"{STROKES} strokes {width:g} wide at {SIZE[0]}: tiles are {found:.1f} times as fast", flush=True)
    for dtype in (torch.float32, torch.bfloat16):
        found = ratio(*loop_and_passes(device, dtype), arguments.rounds, device)
        print(f"CLIPDraw on ViT-B/32, {VIEWS} views, {dtype}: a step is {found:.3f} of its bare passes", flush=True)


if __name__ == "__main__":
    main()
