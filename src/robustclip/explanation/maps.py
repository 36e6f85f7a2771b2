"""Heat maps of a referee by one method and layer, and their measures: rank correlation, overlap, centre shift,
pointing game, energy in a box, RISE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from robustclip.errors import UsageError, require
from robustclip.explanation.gradients import input_gradients, smooth_gradients, strength
from robustclip.explanation.layers import BLOCK, Layer, choose_layer
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import cosines

Method = Literal["gradcam", "gradcam-cls", "gradcam++", "layercam", "eigencam", "scorecam", "gradient", "smoothgrad"]
METHODS: Final[tuple[str, ...]] = get_args(Method)
Target = Literal["cosine", "logit", "softmax"]
TARGETS: Final[tuple[str, ...]] = get_args(Target)
OF_PIXELS: Final = ("gradient", "smoothgrad")
PIXELS: Final = "pixels"
"""Layer name of the methods that map input pixels."""

# Ten even steps of inferno (Smith and van der Walt, matplotlib, CC0), which is perceptually uniform, also in greyscale
# and for the colour-blind.
SCALE: Final = (
    *("#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60"),
    *("#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"),
)
LEVELS: Final = 64  # colours of a map's palette


def check_method(method: str) -> None:
    """Raise UsageError if the method needs grad-cam, as all but those of pixels do, and it is not installed."""
    if method in METHODS and method not in OF_PIXELS:
        require("pytorch_grad_cam", "explanation", f"the method {method!r}")


@dataclass(frozen=True)
class HeatMaps:
    """Maps of the images' own size, float32 on the CPU, each scaled to [0,1].

    `empty` marks constant or non-finite maps, which are set to zero.
    """

    maps: Float[Tensor, "b H W"]
    empty: Bool[Tensor, " b"]


class Mapper:
    """Computes heat maps of a referee. Raises UsageError for an unsupported method or layer, and for a method whose
    library, grad-cam, is not installed.

    `layer` is a path below `referee.image_tower`; the default is chosen by `choose_layer`. `dtype` is the tower's
    compute dtype; `seed` keys SmoothGrad's noise.

    `target` is the scalar that layer maps differentiate: the "cosine" of image and text; its "logit" (the default), the
    cosine times the referee's logit scale; or the "softmax" of the logits over all texts. Only gradcam++ and scorecam
    differ between cosine and logit. Pixel maps are of the cosine, and eigencam ignores the text: both refuse a target.
    """

    def __init__(
        self,
        referee: TwoTower,
        method: str = "gradcam",
        layer: str | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
        seed: int = 0,
        target: Target | None = None,
    ) -> None:
        if target is not None and target not in TARGETS:
            raise UsageError(
                f"there is no target {target!r}; there are {', '.join(TARGETS)}", "unknown_target", given=target
            )
        if target is not None and method in (*OF_PIXELS, "eigencam"):
            of = "reads no text" if method == "eigencam" else "is of the cosine"
            message = f"the method {method!r} {of}: leave out the target {target!r}, or take gradcam"
            raise UsageError(message, "unneeded_target", method=method, target=target)
        if method not in METHODS:
            raise UsageError(
                f"there is no method {method!r}; there are {', '.join(METHODS)}", "unknown_method", given=method
            )
        if method in OF_PIXELS and layer is not None:
            message = f"the method {method!r} maps pixels, not a layer: leave out {layer!r}, or take gradcam"
            raise UsageError(message, "unneeded_layer", method=method, layer=layer)
        check_method(method)
        self.referee = referee
        self.method = method
        self.dtype = dtype
        self.batch_size = batch_size
        self.seed = seed
        self.target: Target | None = None if method in (*OF_PIXELS, "eigencam") else target or "logit"
        self.layer: Layer | None = None
        if method not in OF_PIXELS:
            self.layer = choose_layer(referee, layer, at_output=method == "gradcam-cls")
            if method == "gradcam-cls" and not self.layer.class_tokens:
                raise UsageError(
                    f"{referee.card.name} has no class token at {self.layer.name!r}, which gradcam-cls needs: use "
                    "gradcam",
                    "no_class_token",
                    layer=self.layer.name,
                )

    @property
    def layer_name(self) -> str:
        """The layer's path, or "pixels"."""
        return self.layer.name if self.layer else PIXELS

    @property
    def grid(self) -> tuple[int, int] | None:
        """Height and width of the layer's grid in cells; None for maps of pixels."""
        return self.layer.grid if self.layer else None

    @property
    def target_in_words(self) -> str:
        """The differentiated scalar, e.g. "logit (30 x cosine)"; "" for methods without text."""
        scale = f"{self.referee.logit_scale:.4g} x cosine"
        names = {"cosine": "cosine", "logit": f"logit ({scale})", "softmax": f"softmax of logits ({scale})"}
        return "cosine" if self.method in OF_PIXELS else names.get(self.target or "", "")

    def __call__(
        self,
        images: Float[Tensor, "b 3 H W"],
        texts: Float[Tensor, "b d"],
        ids: Sequence[str],
        among: Float[Tensor, "t d"] | None = None,
    ) -> HeatMaps:
        """Each image's map for its own text, a unit vector. Noise is keyed by `ids`, independent of the batch. `among`
        are the distinct texts of a softmax (default: those of `texts`).

        Raises UsageError for a softmax over fewer than two texts, which is always 1.
        """
        if self.target == "softmax":
            among = texts.unique(dim=0) if among is None else among
            if len(among) < 2:
                raise UsageError(
                    "a softmax over one text is always 1: give two texts or more, or --target logit", "one_text"
                )
        parts = [
            self._maps(images[start:end].to(self.referee.device), texts[start:end], ids[start:end], among)
            for start in range(0, len(images), self.batch_size)
            for end in [start + self.batch_size]
        ]
        maps = torch.cat(parts) if parts else torch.zeros(0, *images.shape[-2:])
        greatest = maps.amax((1, 2), keepdim=True)
        flat = greatest - maps.amin((1, 2), keepdim=True) <= 0
        empty = flat | ~maps.isfinite().all(2, keepdim=True).all(1, keepdim=True)
        return HeatMaps(torch.where(empty, 0, maps / greatest), empty[:, 0, 0])

    @torch.no_grad()
    def scores(self, images: Float[Tensor, "b 3 H W"], texts: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Cosine of each image with its own text, float32, on the CPU."""
        pairs = zip(images.split(self.batch_size), texts.split(self.batch_size), strict=True)
        found = [
            cosines(self.referee, some.to(self.referee.device), theirs, self.dtype).diagonal().cpu()
            for some, theirs in pairs
        ]
        return torch.cat(found) if found else torch.zeros(0)

    def gradients(
        self, images: Float[Tensor, "b 3 H W"], texts: Float[Tensor, "b d"], ids: Sequence[str]
    ) -> Float[Tensor, "b 3 H W"]:
        """Input gradients of each image's cosine with its own text: SmoothGrad's for that method, else raw ones."""
        if self.method == "smoothgrad":
            return smooth_gradients(self.referee, images, texts, ids, seed=self.seed, dtype=self.dtype)
        return input_gradients(self.referee, images, texts, self.dtype)

    def why_empty(self) -> str:
        """Reason for a map that is zero everywhere."""
        if self.layer is not None and self.layer.class_tokens and BLOCK.fullmatch(self.layer.name):
            return (
                f"zero everywhere: after {self.layer.name} only the class token may reach the embedding, so no patch "
                "has a gradient; use the method gradcam-cls, or leave the layer out"
            )
        return f"zero everywhere: nothing at {self.layer_name} supports the text"

    def _maps(
        self,
        images: Float[Tensor, "b 3 H W"],
        texts: Float[Tensor, "b d"],
        ids: Sequence[str],
        among: Float[Tensor, "t d"] | None,
    ) -> Float[Tensor, "b H W"]:
        if self.layer is None:
            return strength(self.gradients(images, texts, ids)).cpu()
        from robustclip.explanation.gradcam import activation_maps  # needs an extra, which maps of pixels do not

        preprocess = self.referee.preprocess
        with torch.no_grad():
            pixels = preprocess(images)
        maps = activation_maps(
            self.referee.image_tower,
            pixels,
            texts,
            self.layer,
            self.method,
            logit_scale=1.0 if self.target == "cosine" else self.referee.logit_scale,
            among=among if self.target == "softmax" else None,
            dtype=self.dtype,
        )
        return preprocess.placed_back(maps, (images.shape[-2], images.shape[-1])).clamp(min=0)


def palette() -> bytes:
    """RGB bytes of a map's levels: `SCALE`, linearly interpolated."""
    stops = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in SCALE], dtype=np.float64)
    places = np.linspace(0, len(stops) - 1, LEVELS)
    colours = np.stack([np.interp(places, np.arange(len(stops)), stops[:, channel]) for channel in range(3)], axis=1)
    return colours.round().astype(np.uint8).tobytes()


def overlay(
    images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b h w"], strength: float = 0.65
) -> Float[Tensor, "b 3 h w"]:
    """Maps in [0,1] in the colours of `SCALE`, blended with their images, as on a report's page."""
    colours = torch.from_numpy(np.frombuffer(palette(), dtype=np.uint8).copy()).float().view(LEVELS, 3) / 255
    levels = (maps.float().nan_to_num(0).clamp(0, 1) * (LEVELS - 1)).round().long().cpu()
    return (1 - strength) * images + strength * colours[levels].permute(0, 3, 1, 2).to(images)


TOP = 0.2  # share of the pixels


def rank_correlation(maps: Float[Tensor, "b h w"], others: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Spearman's correlation over the pixels, with mean ranks of ties. NaN for constant maps."""
    first, second = (torch.from_numpy(rankdata(part.flatten(1).cpu().numpy(), axis=1)) for part in (maps, others))
    first, second = (ranks - ranks.mean(1, keepdim=True) for ranks in (first, second))
    return ((first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))).float()


def top_iou(maps: Float[Tensor, "b h w"], others: Float[Tensor, "b h w"], share: float = TOP) -> Float[Tensor, " b"]:
    """Intersection over union of the brightest `share` of both maps' pixels, from 0 to 1; for independent maps about
    share / (2 - share), 0.11 for 20%. NaN for constant maps."""
    first, second = (brightest(part, share) for part in (maps, others))
    overlap = (first & second).sum((1, 2)) / (first | second).sum((1, 2))
    flat = torch.stack([part.amax((1, 2)) == part.amin((1, 2)) for part in (maps, others)]).any(0)
    return overlap.masked_fill(flat, torch.nan)


def brightest(maps: Float[Tensor, "b h w"], share: float) -> Tensor:
    """Mask of the brightest `share` of each map's pixels, (B,H,W) bool: exactly that many, ties in reading order."""
    return rank(maps) < max(1, round(share * maps.shape[-2] * maps.shape[-1]))


def centre_shift(maps: Float[Tensor, "b h w"], others: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Distance of the maps' centres of mass as a share of the image's diagonal. NaN for zero maps."""
    height, width = maps.shape[-2:]
    first, second = centre(maps), centre(others)
    return (first - second).norm(dim=1) / (height**2 + width**2) ** 0.5


def centre(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b 2"]:
    """Centre of mass (row, column) in pixels. NaN for zero maps."""
    height, width = maps.shape[-2:]
    mass = maps.sum((1, 2))
    rows = (maps.sum(2) * torch.arange(height, dtype=maps.dtype)).sum(1) / mass
    columns = (maps.sum(1) * torch.arange(width, dtype=maps.dtype)).sum(1) / mass
    return torch.stack([rows, columns], dim=1)


def pointing_hit(maps: Float[Tensor, "b h w"], boxes: Int[Tensor, "b 4"]) -> Bool[Tensor, " b"]:
    """Pointing game (Zhang et al. 2016): whether a map's maximum lies in its box (top, left, bottom, right; half open).

    Of several maximal pixels (coarse grids have plateaus at the edge) the mean position counts; a zero map misses.
    """
    brightest = (maps == maps.amax((1, 2), keepdim=True)).float()
    top, left, bottom, right = boxes.unbind(1)
    row, column = centre(brightest).unbind(1)
    within = (top <= row) & (row <= bottom - 1) & (left <= column) & (column <= right - 1)
    return within & (maps.amax((1, 2)) > 0)


def energy_in_box(maps: Float[Tensor, "b h w"], boxes: Int[Tensor, "b 4"]) -> Float[Tensor, " b"]:
    """Share of a map's sum in its box (Wang et al. 2020, ScoreCAM). NaN for zero maps."""
    within = inside(boxes, maps.shape[-2], maps.shape[-1])
    return (maps * within).sum((1, 2)) / maps.sum((1, 2))


def inside(boxes: Int[Tensor, "b 4"], height: int, width: int) -> Bool[Tensor, "b h w"]:
    """Mask of the pixels in each box."""
    top, left, bottom, right = (edge[:, None, None] for edge in boxes.unbind(1))
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)


def centre_blob(height: int, width: int) -> Float[Tensor, "h w"]:
    """Centre-bias baseline: a Gaussian with a standard deviation of a quarter of each side (ours) and a peak of 1."""
    rows = (torch.arange(height) - (height - 1) / 2) / (height / 4)
    columns = (torch.arange(width) - (width - 1) / 2) / (width / 4)
    blob = torch.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / 2)
    return blob / blob.max()


PARTS: Final = 16
"""Steps from the whole image to none of it; RISE uses hundreds, which changes the area little."""
BLUR: Final = 1 / 12
"""Standard deviation of insertion's initial blur as a share of the shorter side (ours): removes shapes, keeps colours.
RISE uses 5 at 224 pixels; objects on small images need more."""

Score = Callable[[Tensor], Tensor]  # images (B,3,H,W) -> (B,)


def deletion(score: Score, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Deletion (RISE, Petsiuk et al. 2018), lower is better: area under the score while pixels are removed, the map's
    brightest first.

    RISE sets them to the data set's mean colour; here, to the image's own. In the score's units.
    """
    empty = images.mean((2, 3), keepdim=True).expand_as(images)
    return _area(score, images, empty, maps)


def insertion(score: Score, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Insertion (RISE), higher is better: area under the score while pixels are restored in a blurred copy, the map's
    brightest first."""
    from torchvision.transforms.functional import gaussian_blur  # imported here: takes a second

    sigma = max(0.5, BLUR * min(images.shape[-2:]))
    kernel = 2 * round(2 * sigma) + 1
    most = min(images.shape[-2:]) * 2 - 1  # maximum for reflection padding
    return _area(score, gaussian_blur(images, [min(kernel, most)] * 2, [sigma] * 2), images, maps)


@torch.no_grad()
def _area(
    score: Score,
    before: Float[Tensor, "b 3 h w"],
    after: Float[Tensor, "b 3 h w"],
    maps: Float[Tensor, "b h w"],
) -> Float[Tensor, " b"]:
    """Area under the score from `before` to `after`, changing pixels in the map's order (trapezoidal rule)."""
    places = rank(maps).to(before.device)[:, None]
    pixels = maps.shape[-2] * maps.shape[-1]
    scores = [
        score(torch.where(places < round(step / PARTS * pixels), after, before)).float().cpu()
        for step in range(PARTS + 1)
    ]
    return torch.trapezoid(torch.stack(scores), dim=0) / PARTS


def rank(maps: Float[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """Rank of each pixel by brightness, 0 the brightest, ties in reading order."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1]).expand_as(order)
    return torch.zeros_like(order).scatter_(1, order, places).view(maps.shape)
