"""Optimise one batch of pictures: the call that ends every recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from robustclip.canvases.base import Canvas
from robustclip.losses.similarity import Cosine, Directional, Similarity
from robustclip.synthesis.guides import Guides
from robustclip.synthesis.items import Item
from robustclip.synthesis.loop import Callback, Film, KeepBest, Moment, optimise
from robustclip.synthesis.painted import Painted, Watch
from robustclip.synthesis.terms import Stream

FRAMES = 8  # of the way, besides the final picture


def paint_batch(
    canvas: Canvas,
    streams: Sequence[Stream],
    *,
    items: Sequence[Item],
    guides: Guides,
    steps: int,
    watch: Watch,
    keep: KeepBest | None = None,
    callbacks: Sequence[Callback] = (),
) -> Painted:
    """Optimise the canvas; returns the final rendering, or the pictures that `keep` stored."""
    watch.tell(" and ".join(str(stream.terms) for stream in streams))
    film = Film(steps, FRAMES)
    watching = _Watching(watch, streams)
    kept = [] if keep is None else [keep]
    last, trace = optimise(
        canvas,
        streams,
        steps=steps,
        generators=generators_of(items, guides.device),
        callbacks=[watching, film, *kept, *callbacks],
    )
    images = canvas.picture(last if keep is None else keep.images(last))
    similarity = guides.similarity(images, [item.prompt for item in items])
    frames = torch.cat([film.frames(), images[None].cpu()]) if film.steps else images[None].cpu()
    return Painted(images, similarity, trace, frames, [*film.steps, steps])


def generators_of(items: Sequence[Item], device: torch.device) -> Callable[[str, int], list[Generator]]:
    """One generator per picture, keyed by purpose and step."""
    return lambda purpose, step: [item.generator(purpose, step, device=device) for item in items]


class _Watching:
    """Shows each step to a watch, with the similarity that the first term of a referee saw; where its loss does not
    tell, that of the picture itself."""

    def __init__(self, watch: Watch, streams: Sequence[Stream]) -> None:
        self.watch = watch
        terms = [term for stream in streams for term in stream.terms]
        first = next((term for term in terms if not getattr(term.loss, "draws", False)), terms[0])
        self.label = first.label
        self.loss = first.loss

    def __call__(self, moment: Moment) -> None:
        picture = moment.canvas.picture(moment.image)
        self.watch(moment.step + 1, picture, {"similarity": self._similarity(moment, picture), **moment.numbers})

    def _similarity(self, moment: Moment, picture: Tensor) -> Tensor:
        found = moment.numbers.get(self.label, moment.losses)
        if isinstance(self.loss, Cosine):
            return self.loss.targets[0].weights.sum(1) - found
        if isinstance(self.loss, Similarity):  # no number of views says what their cosines were
            return self.loss.similarity(picture.unsqueeze(1))[:, 0]
        return 1 - found if isinstance(self.loss, Directional) else -found
