"""Input gradients, SmoothGrad (Smilkov et al. 2017), and the low-frequency share of their energy.

The gradient of cos(image, prompt) with respect to the pixels looks like noise for an ordinary CLIP, and follows the
object's outlines for a robust one (CLIPAG, section 3): shown as a picture, and measured by the low-frequency share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.data.images import show_gradients, titled_grid
from robustclip.data.pictures import Images
from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.similarity import batches, cosines, embed_texts
from robustclip.runs.devices import autocast
from robustclip.runs.rng import each

SAMPLES: Final = 16
"""Number of noisy copies (ours); Smilkov et al. see little gain beyond 50."""
SIGMA: Final = 0.1
"""Standard deviation of the noise in pixel units: the lower end of the paper's 10% to 20% of the range."""


def smooth_gradients(
    referee: TwoTower,
    images: Float[Tensor, "b 3 h w"],
    texts: Float[Tensor, "b d"],
    ids: Sequence[str],
    *,
    seed: int,
    samples: int = SAMPLES,
    sigma: float = SIGMA,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b 3 h w"]:
    """Mean over noisy copies of the gradient of each image's cosine with its own text (a unit vector), float32.

    Noisy copies are not clipped to [0,1], so that their mean is the image. Noise is keyed by seed and id.
    """
    streams = each(seed, "SmoothGrad", ids=ids)
    total = torch.zeros_like(images, dtype=torch.float32)
    with torch.enable_grad(), attacking(referee):
        for _ in range(samples):
            noise = torch.stack(
                [torch.randn(image.shape, generator=s) for image, s in zip(images, streams, strict=True)]
            )
            noisy = (images + sigma * noise.to(images)).requires_grad_()
            with autocast(images.device, dtype):
                embeddings = referee.embed_views(noisy)
            cosine = (unit(embeddings) * texts).sum()
            total += torch.autograd.grad(cosine, noisy)[0].float()
    return total / samples


def strength(gradients: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """L2 norm of the gradient over the three channels, per pixel."""
    return gradients.norm(dim=1)


CUTOFF = 1 / 8  # cycles per pixel, i.e. structures of more than 8 pixels; ours
SMALLEST_SHOWN = 96  # pixels; smaller images are enlarged in the picture


def input_gradients(
    referee: TwoTower,
    images: Float[Tensor, "b 3 h w"],
    texts: Float[Tensor, "b d"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b 3 h w"]:
    """Gradient of the cosine of each image with its own text (a unit vector) with respect to the image's pixels."""
    pixels = images.detach().clone().requires_grad_()
    with torch.enable_grad(), attacking(referee):
        (gradient,) = torch.autograd.grad(cosines(referee, pixels, texts, dtype).diagonal().sum(), pixels)
    return gradient.float()


def low_frequency_share(gradients: Float[Tensor, "b 3 h w"], cutoff: float = CUTOFF) -> Float[Tensor, " b"]:
    """Share of the power spectrum's energy at radial frequencies below `cutoff` cycles per pixel, for each image.

    Energies are summed over channels first. The constant component counts as low, so that all energies add up to the
    gradient's squared norm (Parseval). White noise has a share of about pi * cutoff^2 (0.049 for 1/8), a gradient that
    varies over larger structures only about 1. NaN for a gradient that is zero or not finite.
    """
    height, width = gradients.shape[-2:]
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :])
    power = torch.fft.fft2(gradients.cpu().double()).abs().square().sum(1)
    return (power * (radius < cutoff)).sum((-2, -1)) / power.sum((-2, -1))


def gradient_shares(
    referee: TwoTower,
    images: Images,
    prompts: Sequence[str],
    *,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    title: str = "",
) -> Float[Tensor, " n"]:
    """Low-frequency share of each image's gradient towards its own prompt."""
    texts, place = _embed_each_once(referee, prompts)
    shares = []
    for batch in batches(torch.arange(len(images)), batch_size, title):
        here = images[batch].to(texts.device)
        shares.append(low_frequency_share(input_gradients(referee, here, texts[place[batch]], dtype)))
    return torch.cat(shares)


def gradient_picture(
    referees: Sequence[tuple[str, TwoTower]],
    images: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "3 H W"]:
    """Picture of gradients: referees as rows, prompts as columns; the first row shows the images.

    Column i holds image i, its prompt above it, and each referee's gradient of their cosine by `show_gradients`. Save
    it with `images.save_image`.
    """
    if len(images) != len(prompts):
        message = f"{len(images)} images and {len(prompts)} prompts: each image needs its own prompt"
        raise UsageError(message, "unequal_lengths", images=len(images), prompts=len(prompts))
    rows = [images]
    for _, referee in referees:
        texts = embed_texts(referee, list(prompts))
        rows.append(show_gradients(input_gradients(referee, images.to(texts.device), texts, dtype)).cpu())
    tiles = torch.cat(rows)
    factor = -(-SMALLEST_SHOWN // min(tiles.shape[-2:]))  # integer, so that pixels become equal squares
    tiles = tiles.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return titled_grid(["image", *(name for name, _ in referees)], prompts, tiles)


def _embed_each_once(referee: TwoTower, prompts: Sequence[str]) -> tuple[Float[Tensor, "t d"], Int[Tensor, " n"]]:
    place = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    return embed_texts(referee, list(place)), torch.tensor([place[prompt] for prompt in prompts])
