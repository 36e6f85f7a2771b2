"""Wrapper of pytorch-grad-cam: class activation maps of an image tower, and ROAD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, neighbors_weights
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.attacks.gradient import attacking
from robustclip.explanation.layers import Layer
from robustclip.runs.devices import autocast
from robustclip.runs.rng import each

PERCENTILES: Final = (20, 40, 60, 80)
"""Percentages of an image that ROAD removes; its authors use nine from 10 to 90."""


class ClassTokenGradCAM(BaseCAM):
    """GradCAM for ViTs as in gScoreCAM: channels weighted by the gradient at the class token.

    After the last block only that token reaches the embedding, so the patches' gradients are zero and plain GradCAM
    has no weights. The token is passed as an extra row below the grid.
    """

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        """ReLU follows in the engine: the sum over channels of weight x activation, patches only."""
        return (grads[:, :, -1, :1, None] * activations[:, :, :-1]).sum(axis=1)


CAMS: Final[dict[str, type[BaseCAM]]] = {
    "gradcam": GradCAM,  # Selvaraju et al. 2017
    "gradcam-cls": ClassTokenGradCAM,  # gScoreCAM's for ViTs, which CLIPAG App. B follows
    "gradcam++": GradCAMPlusPlus,  # Chattopadhay et al. 2018
    "layercam": LayerCAM,  # Jiang et al. 2021
    "eigencam": EigenCAM,  # Muhammad and Yeasin 2020; reads no text
    "scorecam": ScoreCAM,  # Wang et al. 2020; a forward pass for every channel
}


def activation_maps(
    tower: nn.Module,
    pixels: Float[Tensor, "b 3 h w"],
    texts: Float[Tensor, "b d"],
    layer: Layer,
    method: str,
    *,
    logit_scale: float = 100.0,
    among: Float[Tensor, "t d"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b h w"]:
    """Class activation map of each image for its text (a unit vector): in [0, 1], float32, on the CPU.

    `pixels` are normalised, of the tower's size, as are the maps. The target is `logit_scale` times the cosine of image
    and text; with `among`, the text's softmax probability over these unit vectors. Maps are min-max scaled each, as in
    pytorch-grad-cam; constant ones are 0, non-finite ones stay so. The tower is restored, also after an error.
    """
    wrapped = _Tower(tower, pixels.device, dtype)
    read = layer.as_map if method != "gradcam-cls" else lambda output: _with_class_token(layer, output)
    with attacking(tower), torch.enable_grad(), redirect_stderr(StringIO()):  # ScoreCAM prints a progress bar
        cam = CAMS[method](wrapped, [layer.module], reshape_transform=read)
        try:
            targets = [_Target(text, logit_scale, among) for text in texts]
            maps = cam(pixels, targets=targets)
        finally:
            cam.activations_and_grads.release()
            cam.outputs = None
    return torch.from_numpy(np.asarray(maps, dtype=np.float32))


def road(
    score: Callable[[Tensor], Tensor],
    images: Float[Tensor, "b 3 h w"],
    maps: Float[Tensor, "b h w"],
    *,
    ids: Sequence[str],
    seed: int,
    percentiles: Sequence[int] = PERCENTILES,
) -> Float[Tensor, " b"]:
    """Remove and Debias (Rong et al. 2022), least minus most relevant first, halved: higher is more faithful.

    Pixels are imputed from their neighbours (the paper's noisy linear imputation), so that the mask's shape carries no
    information. `score` maps images in [0,1] to (B,); the result is in its units, on the CPU. The formula is that of
    pytorch-grad-cam's ROADCombined, applied to images rather than model inputs. Noise is keyed by seed and id.
    """
    streams = each(seed, "ROAD", ids=ids)
    change = torch.zeros(len(images))
    for percent in percentiles:
        for sign, order in ((-1.0, maps), (1.0, 1 - maps)):
            kept = order < torch.quantile(order.flatten(1), 1 - percent / 100, dim=1)[:, None, None]
            filled = [_impute(*one) for one in zip(images.cpu(), kept, streams, strict=True)]
            with torch.no_grad():
                change += sign * score(torch.stack(filled).clamp(0, 1).to(images.device)).float().cpu()
    return change / (2 * len(percentiles))


def _impute(image: Float[Tensor, "3 h w"], kept: Bool[Tensor, "h w"], noise: torch.Generator) -> Float[Tensor, "3 h w"]:
    """The image with removed pixels imputed by pytorch-grad-cam's linear system, with its noise of 0.01."""
    missing = ~kept.flatten()
    if not bool(missing.any()):
        return image
    system, right = NoisyLinearImputer.setup_sparse_system(
        kept.numpy().astype("float32"), image.numpy(), neighbors_weights
    )
    solved = torch.from_numpy(spsolve(csc_matrix(system), right)).float().reshape(-1, 3).T
    filled = image.flatten(1).clone()
    filled[:, missing] = solved + 0.01 * torch.randn(solved.shape, generator=noise)
    return filled.view_as(image)


class _Tower(nn.Module):
    """A frozen tower as pytorch-grad-cam takes it: computes in `dtype` and exposes no parameters.

    The library clears the gradients of all parameters it finds and sets their mode; it finds an empty one only.
    """

    def __init__(self, tower: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0, device=device))
        self.dtype = dtype
        self.run = lambda pixels: tower(pixels)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        with autocast(pixels.device, self.dtype):
            return self.run(pixels.detach().requires_grad_()).float()


class _Target:
    """Target of pytorch-grad-cam: a text's logit, or its softmax probability, for one image's embedding."""

    def __init__(self, text: Float[Tensor, " d"], scale: float, among: Float[Tensor, "t d"] | None) -> None:
        self.text, self.scale, self.among = text, scale, among

    def __call__(self, embedding: Float[Tensor, " d"]) -> Float[Tensor, ""]:
        logit = self.scale * F.cosine_similarity(embedding, self.text.to(embedding), dim=-1)
        if self.among is None:
            return logit
        logits = self.scale * F.cosine_similarity(embedding[None], self.among.to(embedding), dim=-1)
        return (logit - logits.logsumexp(0)).exp()


def _with_class_token(layer: Layer, output: Tensor) -> Float[Tensor, "b c h+1 w"]:
    grid = layer.as_map(output)
    token = layer.class_token(output)[:, :, None, None].expand(-1, -1, 1, grid.shape[-1])
    return torch.cat([grid, token], dim=2)
