"""Basic inits: noise, grey, or a given image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from robustclip.data.images import resize
from robustclip.errors import RunError, UsageError
from robustclip.referees.base import TwoTower, check_images, unit

Init = Callable[[int, int, Sequence[torch.Generator], torch.device], Float[Tensor, "p 3 h w"]]
"""`init(height, width, generators, device)` -> images in [0,1], one per generator, so that a picture does not
depend on its batch."""

GREY = 0.5


def noise(
    height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "p 3 h w"]:
    """Uniform noise in [0, 1) per pixel and channel."""
    drawn = [torch.rand(3, height, width, generator=one, device=one.device).to(device) for one in generators]
    return torch.stack(drawn) if drawn else torch.empty(0, 3, height, width, device=device)


def grey(
    height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "p 3 h w"]:
    """Uniform grey 0.5, the start of Direct Ascent Synthesis."""
    return torch.full((len(generators), 3, height, width), GREY, device=device)


def gradient(
    height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "p 3 h w"]:
    """Random colour gradients: red horizontally, green and blue vertically, each to a level of U(0, 1).

    A start of VQGAN-CLIP (592d555 generate.py), where blue ends in the darker half.
    """
    drawn = [torch.rand(4, generator=one, device=one.device).to(device) for one in generators]
    levels = torch.stack(drawn) if drawn else torch.empty(0, 4, device=device)
    red, green, first, last = levels[:, :, None, None].unbind(1)
    across, down = torch.linspace(0, 1, width, device=device), torch.linspace(0, 1, height, device=device)[:, None]
    shape = (len(levels), height, width)
    return torch.stack(
        [one.expand(shape) for one in (red * across, green * down, first + (last - first) * down)], dim=1
    )


def from_image(image: Float[Tensor, "3 h w"], strength: float = 1.0) -> Init:
    """`strength * image + (1 - strength) * noise`, with noise per picture.

    `image` is in [0,1], of any size, and is resized (bicubic, antialiased), ignoring its aspect ratio; strength 1
    is the image, 0 noise. Raises UsageError for an invalid image and a strength outside [0, 1].
    """
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3:
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        message = f"the image to start from is {shape}: give one of shape (3,H,W), as images.load_image does"
        raise UsageError(message, "wrong_shape", shape=shape)
    check_images(image[None])
    if not 0 <= strength <= 1:
        message = f"strength {strength}: give a number from 0 (noise) to 1 (the image itself)"
        raise UsageError(message, "out_of_range", argument="strength", given=strength)

    def start(
        height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
    ) -> Float[Tensor, "p 3 h w"]:
        whole = resize(image[None].float().to(device), (height, width)).clamp(0, 1)
        if strength == 1:
            return whole.expand(len(generators), -1, -1, -1).clone()
        return strength * whole + (1 - strength) * noise(height, width, generators, device)

    return start


Score = Callable[[Float[Tensor, "p n 3 h w"]], Float[Tensor, "p n"]]
"""n candidates of each picture of the batch -> scores, higher is better."""


def best_of(init: Init, n: int, score: Score, *, chunk: int = 256) -> Init:
    """Best-of-N init: draw `n` candidates per picture from `init`, keep the one of highest `score`.

    About `chunk` candidates (at least one per picture) are drawn and scored at a time, without gradients. A picture's
    candidates come from its generator in sequence, independent of `chunk` and batch. Among equals the first wins. For
    candidates common to many pictures, see Pool. Raises UsageError for n or chunk below 1, and scores of another shape;
    RunError for scores that are not numbers.
    """
    if n < 1 or chunk < 1:
        raise UsageError(
            f"the best of {n} candidates, {chunk} at a time: both need at least 1", "out_of_range", n=n, chunk=chunk
        )

    @torch.no_grad()
    def start(
        height: int, width: int, generators: Sequence[torch.Generator], device: torch.device
    ) -> Float[Tensor, "p 3 h w"]:
        pictures = len(generators)
        if not pictures:
            return init(height, width, generators, device)
        at_once = max(1, chunk // pictures)
        best = torch.empty(0)
        highest = torch.empty(0)
        for first in range(0, n, at_once):
            count = min(at_once, n - first)
            drawn = init(height, width, [one for one in generators for _ in range(count)], device)
            candidates = drawn.unflatten(0, (pictures, count))
            scores, place = checked(score(candidates), (pictures, count)).max(1)
            chosen = candidates[torch.arange(pictures, device=candidates.device), place.to(candidates.device)]
            if not first:
                best, highest = chosen, scores
                continue
            better = scores > highest
            highest = torch.where(better, scores, highest)
            best = torch.where(better.to(best.device)[:, None, None, None], chosen, best)
        return best

    return start


def checked(scores: Tensor, shape: tuple[int, int]) -> Float[Tensor, "p n"]:
    """Validate scores. Raises UsageError for another shape, and RunError for NaN."""
    if scores.shape != shape:
        message = f"the score gave {tuple(scores.shape)} for {shape[0]} pictures of {shape[1]} candidates"
        raise UsageError(message, "wrong_shape", shape=tuple(scores.shape), expected=shape)
    if scores.isnan().any():
        raise RunError("the score of a candidate is not a number: try dtype float32, or another referee", "not_finite")
    return scores


Embed = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]


@final
@dataclass(frozen=True)
class Pool:
    """N candidate pictures in [0,1] with their embeddings at the size of the canvas.

    Candidates are stored small: 10,000 of 16x16 take 30 MB, of 224x224 six gigabytes.
    """

    candidates: Float[Tensor, "n 3 h w"]
    embeddings: Float[Tensor, "n d"]
    size: tuple[int, int]

    @staticmethod
    @torch.no_grad()
    def of(
        candidates: Float[Tensor, "n 3 h w"],
        embed: Embed,
        height: int,
        width: int,
        *,
        device: str | torch.device = "cpu",
        chunk: int = 256,
    ) -> Pool:
        """Resize (bicubic) and embed the candidates, `chunk` at a time.

        Raises UsageError without candidates.
        """
        if not len(candidates) or chunk < 1:
            message = f"a pool of {len(candidates)} candidates, {chunk} at a time: both need at least 1"
            raise UsageError(message, "out_of_range", candidates=len(candidates), chunk=chunk)
        parts = [embed(resize(part.to(device), (height, width))) for part in candidates.split(chunk)]
        return Pool(candidates, torch.cat(parts), (height, width))

    def best(
        self, score: Callable[[Float[Tensor, "n d"]], Float[Tensor, "p n"]]
    ) -> tuple[Int64[Tensor, " p"], Float[Tensor, " p"]]:
        """Best candidate of each picture, and its score.

        `score` gets all embeddings; cosine with P directions (P,D) is `lambda e: directions @ e.T`. Raises UsageError
        for scores of another shape, RunError for scores that are not numbers.
        """
        scores = score(self.embeddings)
        best = checked(scores, (len(scores), len(self.candidates))).max(1)
        return best.indices, best.values

    def images(self, indices: Int64[Tensor, " p"]) -> Float[Tensor, "p 3 h2 w2"]:
        """Candidates at the canvas's size, in [0,1], on the device of the embeddings."""
        return resize(self.candidates[indices.to(self.candidates.device)].to(self.embeddings.device), self.size)


def embedder(referees: Sequence[TwoTower], *, raw: bool = False) -> Embed:
    """Concatenated unit embeddings (b, d1 + d2 + ...) of [0,1] images by all referees, to fill a Pool.

    A weighted sum of their cosines is one product with concatenated weighted directions. `raw` omits the normalisation
    by mean and std (see raw_embed). Raises UsageError without referees.
    """
    if not referees:
        raise UsageError("candidates are ranked by referees: give at least one", "no_referees")

    def embed(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return torch.cat([raw_embed(one, images) if raw else one.embed_images(images) for one in referees], 1)

    return embed


def raw_embed(referee: TwoTower, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """Unit embeddings of [0,1] images without mean and std normalisation.

    CLIPAG's notebook ranks its candidates so, although its loop normalises: a bug, kept for the faithful recipe only.
    """
    check_images(images)
    return unit(referee.image_tower(referee.preprocess.resize(images.float())))
