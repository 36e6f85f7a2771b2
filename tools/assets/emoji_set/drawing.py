"""From an SVG document to the bytes of a small WebP."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

SIZE = 64
OVERSAMPLING = 4
QUALITY = 80
ALPHA_QUALITY = 20  # libwebp then keeps six levels of alpha: a third of the bytes, 3% more error at the edges
METHOD = 4  # 6 takes many times as long for 0.5% fewer bytes


def picture(svg: str) -> bytes | None:
    """The drawing as WebP with alpha, or None where next to nothing is drawn (under 1% of the pixels)."""
    image = draw(svg)
    if sum(image.getchannel("A").histogram()[128:]) < 0.01 * SIZE * SIZE:
        return None
    return webp_with_alpha(image)


def draw(svg: str, size: int = SIZE, oversampling: int = OVERSAMPLING) -> Image.Image:
    """The drawing as an RGBA image of `size` squared: drawn at `oversampling` times the size, then reduced with
    premultiplied alpha."""
    side = size * oversampling
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    large = Image.open(io.BytesIO(png)).convert("RGBA")
    return large.resize((size, size), Image.Resampling.LANCZOS)


def webp_with_alpha(image: Image.Image) -> bytes:
    """Lossy WebP of an RGBA image whose colours run on smoothly under what is transparent.

    The outline then lies in the alpha alone and not a second time in the colours, which saves a quarter of the bytes.
    """
    rgba = np.asarray(image)
    rgb = np.where(rgba[..., 3:] >= 128, rgba[..., :3], spread_colours(rgba))
    buffer = io.BytesIO()
    smooth = Image.fromarray(np.dstack([rgb, rgba[..., 3]]))
    smooth.save(buffer, "WEBP", quality=QUALITY, method=METHOD, alpha_quality=ALPHA_QUALITY, exact=True)
    return buffer.getvalue()


def smallest(image: Image.Image, psnr: float) -> bytes:
    """The fewest bytes of lossless WebP of a palette and of lossy WebP that keep an RGBA image at `psnr` dB (of its
    pictures on white and on grey); if none does, the nearest one."""
    found = []
    for encoded in _encodings(image):
        decoded = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGBA"))
        found.append((quality(np.asarray(image), decoded), encoded))
    good = [encoded for measured, encoded in found if measured >= psnr]
    return min(good, key=len) if good else max(found, key=lambda pair: pair[0])[1]


def quality(image: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    """PSNR in dB of a decoded RGBA image (H, W, 4), over its pictures on white and on grey."""
    error = 0.0
    for ground in (1.0, 0.5):
        one, other = (a[..., :3] / 255 * (a[..., 3:] / 255) + ground * (1 - a[..., 3:] / 255) for a in (image, decoded))
        error += float(((one - other) ** 2).mean()) / 2
    return float(10 * np.log10(1 / max(error, 1e-10)))


def _encodings(image: Image.Image) -> Iterator[bytes]:
    def encoded(picture: Image.Image, **options: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", **options)
        return buffer.getvalue()

    for colours in (8, 16, 32):
        palette = image.quantize(colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        yield encoded(palette.convert("RGBA"), lossless=True, quality=50, method=3)
    rgba = np.asarray(image)
    side = 1 << (len(rgba) - 1).bit_length()
    padded = np.pad(rgba, ((0, side - len(rgba)), (0, side - len(rgba)), (0, 0)))
    spread = spread_colours(padded)[: len(rgba), : len(rgba)]
    smooth = Image.fromarray(np.dstack([np.where(rgba[..., 3:] >= 128, rgba[..., :3], spread), rgba[..., 3]]))
    for level in (40, 55, 70, 85):
        yield encoded(smooth, quality=level, method=METHOD, alpha_quality=ALPHA_QUALITY, exact=True)


def spread_colours(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours (H, W, 3) of an RGBA image (H = W = a power of two), continued into what is transparent.

    Each pixel takes its colour from the finest level of an alpha-weighted pyramid that is covered there.
    """
    weight = rgba[..., 3:].astype(np.float64) / 255
    pyramid = [(rgba[..., :3] * weight, weight)]
    while len(pyramid[-1][0]) > 1:
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    colours = np.zeros((1, 1, 3), np.uint8)
    for level, (premultiplied, weight) in enumerate(reversed(pyramid)):
        side = 2**level
        coarse = np.asarray(Image.fromarray(colours).resize((side, side), Image.Resampling.BILINEAR))
        own = np.divide(premultiplied, weight, out=coarse.astype(np.float64), where=weight > 0)
        covered = np.minimum(weight * (1 if side == len(rgba) else 4), 1)
        colours = np.rint(coarse + (own - coarse) * covered).clip(0, 255).astype(np.uint8)
    return colours


def _halved(array: NDArray[np.float64]) -> NDArray[np.float64]:
    side = len(array) // 2
    return array.reshape(side, 2, side, 2, -1).mean((1, 3))
