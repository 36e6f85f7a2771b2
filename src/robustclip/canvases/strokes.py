"""Canvas of CLIPDraw: vector strokes with optimised points, widths and colours, in a fixed number and order."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustclip.canvases.base import Canvas, check_fit
from robustclip.drawing import Drawing, rasterise
from robustclip.errors import UsageError


@final
class Strokes(Canvas):
    """Vector drawings of P pictures, rendered at `size` (height, width) over `background` (1.0: white).

    After each step widths are clamped to `widths` (pixels) and colours to [0,1]; points may leave the picture.
    CLIPDraw: widths (1, 50) at 224 pixels. `softness` is the blur of edges in pixels, see `rasterise`.

    Raises UsageError for an invalid range of widths.
    """

    curves: Int[Tensor, "p s"]
    filled: Bool[Tensor, "p s"]

    def __init__(
        self,
        drawing: Drawing,
        size: tuple[int, int],
        *,
        widths: tuple[float, float] = (1.0, 50.0),
        background: float = 1.0,
        softness: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= widths[0] <= widths[1]:
            raise UsageError(
                f"widths must be a range such as (1, 50), not {widths}", "not_a_range", argument="widths", given=widths
            )
        self.size = size
        self.limits = widths
        self.background = background
        self.softness = softness
        self.points = nn.Parameter(drawing.points.detach().clone())
        self.widths = nn.Parameter(drawing.widths.detach().clone())
        self.colours = nn.Parameter(drawing.colours.detach().clone())
        self.register_buffer("curves", drawing.curves.clone())
        self.register_buffer("filled", drawing.filled.clone())

    @property
    def drawing(self) -> Drawing:
        """The current drawing, differentiable with respect to the parameters."""
        return Drawing(self.points, self.curves, self.widths, self.colours, self.filled)

    def render(self) -> dict[str, Tensor]:
        image = rasterise(self.drawing, self.size, background=self.background, softness=self.softness)
        return {"image": image, "points": self.points, "widths": self.widths, "colours": self.colours}

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "p 3 h w"]) -> None:
        """Colour each shape by the image at its centre, and make it opaque.

        Ours: curves are not fitted. Raises UsageError for another number or size of images.
        """
        check_fit(images, len(self.points), self.size)
        height, width = self.size
        middle = (3 * self.curves + 1) // 2
        at = self.points.gather(2, middle[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
        x, y = at[..., 0].long().clamp(0, width - 1), at[..., 1].long().clamp(0, height - 1)
        there = images.flatten(2).gather(2, (y * width + x)[:, None].expand(-1, 3, -1))
        self.colours[..., :3] = there.transpose(1, 2)
        self.colours[..., 3] = 1

    @torch.no_grad()
    def project(self) -> None:
        self.widths.clamp_(*self.limits)
        self.colours.clamp_(0, 1)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"points": [self.points], "widths": [self.widths], "colours": [self.colours]}
