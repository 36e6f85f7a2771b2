"""Baselines of DOODL: best of several samples, and one-step guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustclip.canvases.latents import ChainStart
from robustclip.data.images import clamp_through
from robustclip.diffusion.reversible import Chain, guided
from robustclip.synthesis.guides import Guides
from robustclip.synthesis.items import Item
from robustclip.synthesis.painted import Painted, Watch
from robustclip.synthesis.prompts import Prompt
from robustclip.synthesis.studio import generators_of
from robustclip.synthesis.terms import Stream


@torch.no_grad()
def best_of(
    canvases: Callable[[int], ChainStart],
    streams: Callable[[ChainStart], Stream],
    count: int,
    items: Sequence[Item],
    guides: Guides,
    targets: Sequence[Prompt],
    watch: Watch,
) -> Painted:
    """The sample of lowest loss of `count` per item, by DOODL's losses.

    `canvases(n)` is the n-th sample's canvas.
    """
    best: Tensor | None = None
    images = torch.empty(0)
    losses = []
    draw = generators_of(items, guides.device)
    for number in range(count):
        canvas = canvases(number)
        terms = streams(canvas).terms
        if not number:
            watch.announce(f"{terms}, by the best of {count} samples")
        rendered = canvas.render()
        found, numbers = terms(rendered, lambda purpose, number=number: draw(purpose, number), 0)  # type: ignore[misc]
        assert found is not None
        better = torch.ones_like(found, dtype=torch.bool) if best is None else found < best
        images = rendered["image"] if best is None else torch.where(better.view(-1, 1, 1, 1), rendered["image"], images)
        best = found if best is None else torch.minimum(found, best)
        losses.append(best)
        watch(number + 1, images, {"similarity": -best, **numbers})
    return Painted(images, guides.similarity(images, targets), {"loss": torch.stack(losses)})


def one_step_guided(
    canvas: ChainStart,
    stream: Stream,
    scale: float,
    items: Sequence[Item],
    guides: Guides,
    targets: Sequence[Prompt],
    watch: Watch,
) -> Painted:
    """DDIM with classifier guidance by the losses of each step's predicted picture."""
    chain = canvas.chain
    assert isinstance(chain, Chain)
    watch.announce(f"{stream.terms}, by one-step guidance at scale {scale:g}")
    draw = generators_of(items, guides.device)
    losses: list[Tensor] = []

    def loss(latents: Tensor) -> Tensor:
        image = clamp_through(canvas.autoencoder[0].decode(latents.float()))
        step = len(losses)
        found, _ = stream.terms({"image": image}, lambda purpose: draw(purpose, step), step)
        assert found is not None
        losses.append(found.detach())
        watch(step + 1, image.detach(), {"similarity": -found.detach()})
        return found

    start = canvas.latent.detach() if canvas.tied else canvas.latent.detach()[:, 0]
    end = guided(chain, start, tuple(canvas.conditioning), loss, scale)
    with torch.no_grad():
        images = canvas.autoencoder[0].decode(end.float()).clamp(0, 1)
    return Painted(images, guides.similarity(images, targets), {"loss": torch.stack(losses)})
