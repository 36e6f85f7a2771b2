"""Fréchet distance, CMMD and Inception Score from any network's features, and Inception's features (torch-fidelity).

With the features of Inception these are FID (Heusel et al. 2017) and the Inception Score (Salimans et al. 2016); with a
judge's embeddings they have other names. The values are torchmetrics', computed without a matrix square root, so that
they are exact for fewer pictures than dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.data.pictures import Images
from robustclip.errors import UsageError, require
from robustclip.referees.similarity import batches
from robustclip.referees.weights import check_finite, read_weights
from robustclip.runs.files import sha256

CMMD_SIGMA: Final = 10.0
CMMD_SCALE: Final = 1000.0
CHUNK: Final = 1024
"""Pictures per chunk of the kernel matrix."""


def frechet_distance(features: Float[Tensor, "n d"], others: Float[Tensor, "m d"]) -> float:
    """Fréchet distance of the Gaussians fitted to two sets: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    Computed in float64; covariances are unbiased (n - 1). The trace of the root is the nuclear norm of the product of
    the two centred sets. Biased upwards for few samples, in particular below d + 1. Raises UsageError for fewer than 2
    in a set, and for sets of different width.
    """
    _check(features, others)
    first, second = features.double(), others.double()
    apart = (first.mean(0) - second.mean(0)).square().sum()
    factors = [_factor(one) for one in (first, second)]
    spreads = sum(factor.square().sum() for factor in factors)
    shared = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return max(0.0, float(apart + spreads - 2 * shared))


def _factor(features: Float[Tensor, "n d"]) -> Float[Tensor, "k d"]:
    """A matrix F of at most d rows with F^T F the covariance."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred


def cmmd(embeddings: Float[Tensor, "n d"], others: Float[Tensor, "m d"]) -> float:
    """CMMD (Jayasumana et al. 2024): 1000 times the squared maximum mean discrepancy of unit embeddings under the
    Gaussian kernel of sigma 10, including the diagonal, as in their code. Assumes no Gaussians and needs fewer samples
    than the Fréchet distance. Raises UsageError as `frechet_distance`."""
    _check(embeddings, others)
    first, second = embeddings.double(), others.double()

    def kernel(one: Tensor, other: Tensor) -> float:
        total = sum(
            float(torch.exp(-torch.cdist(rows, other).square() / (2 * CMMD_SIGMA**2)).sum())
            for rows in one.split(CHUNK)
        )
        return total / (len(one) * len(other))

    return CMMD_SCALE * (kernel(first, first) + kernel(second, second) - 2 * kernel(first, second))


def inception_score(logits: Float[Tensor, "n c"]) -> float:
    """exp(mean over pictures of KL(p(class | picture) || p(class))), from 1 to the number of classes.

    Over all pictures at once (torchmetrics' `splits=1`); it depends on their number, so compare sets of equal size.
    `logits` are Inception's without bias, or a judge's cosines with labels times its logit scale.
    """
    if len(logits) < 2:
        raise UsageError(f"the Inception Score needs at least 2 pictures, not {len(logits)}")
    log_each = logits.double().log_softmax(dim=1)
    log_mean = log_each.logsumexp(dim=0) - torch.tensor(len(logits)).double().log()
    return float((log_each.exp() * (log_each - log_mean)).sum(dim=1).mean().exp())


def _check(features: Tensor, others: Tensor) -> None:
    if features.ndim != 2 or others.ndim != 2 or features.shape[1] != others.shape[1]:
        raise UsageError(
            f"features {tuple(features.shape)} and {tuple(others.shape)} do not compare: give (n,d), (m,d)"
        )
    if min(len(features), len(others)) < 2:
        raise UsageError(f"a distance of sets needs at least 2 pictures in each, not {len(features)} and {len(others)}")


NAME: Final = "inception-v3-compat"
RELEASED: Final = "weights-inception-2015-12-05-6726825d.pth"
HOW: Final = (
    f"give {RELEASED} of torch-fidelity's release v0.2.0 (github.com/toshas/torch-fidelity) as --inception-weights FILE"
)


@dataclass(frozen=True)
class Inception:
    """The network on its device, and its file's name and hash."""

    name: str
    sha256: str
    network: nn.Module
    device: torch.device

    @torch.no_grad()
    def __call__(
        self, images: Images, *, batch_size: int = 64, title: str = ""
    ) -> tuple[Float[Tensor, "n 2048"], Float[Tensor, "n 1008"]]:
        """Features of FID and logits of the Inception Score, of [0,1] images, which are rounded to 8 bits and resized
        to 299x299 inside; float32, on the CPU."""
        features, logits = [], []
        for batch in batches(torch.arange(len(images)), batch_size, title):
            pixels = (images[batch].to(self.device).clamp(0, 1) * 255).round().to(torch.uint8)
            pooled, scores = self.network(pixels)
            features.append(pooled.cpu())
            logits.append(scores.cpu())
        return torch.cat(features), torch.cat(logits)


def check_installed() -> None:
    """Raise UsageError if torch-fidelity is not installed."""
    require("torch_fidelity", "evaluation", "Inception")


def load_inception(path: str | Path | None, device: torch.device) -> Inception:
    """torch-fidelity's Inception with the weights of `path`, read without running code.

    Raises UsageError if torch-fidelity is not installed, if no file is given (with its source), and for a file that
    does not fit.
    """
    if path is None:
        raise UsageError(f"FID and the Inception Score need Inception's weights, which do not come with us: {HOW}")
    check_installed()
    from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-untyped,unused-ignore]
        FeatureExtractorInceptionV3,
    )

    path, safe = Path(path), BytesIO()
    torch.save(read_weights(path), safe)
    safe.seek(0)  # its constructor unpickles the file, so it gets weights that were read safely
    try:
        network = FeatureExtractorInceptionV3(NAME, ["2048", "logits_unbiased"], feature_extractor_weights_path=safe)
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit Inception ({str(error).splitlines()[0]}): {HOW}") from error
    check_finite(network, source=str(path))
    return Inception(path.name, sha256(path), network.to(device), device)
