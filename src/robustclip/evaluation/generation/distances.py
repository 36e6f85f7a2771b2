"""Frechet distance, CMMD and Inception Score from any network's features.

With the features of Inception these are FID (Heusel et al. 2017) and the Inception Score (Salimans et al. 2016); with a
judge's embeddings they are other numbers, and are called otherwise. The values are those of torchmetrics; here they
need no square root of a matrix, and stay exact where there are fewer pictures than dimensions.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from robustclip.errors import UsageError

CMMD_SIGMA: Final = 10.0
CMMD_SCALE: Final = 1000.0
CHUNK: Final = 1024
"""Pictures at a time that are compared with all others."""


def frechet_distance(features: Float[Tensor, "n d"], others: Float[Tensor, "m d"]) -> float:
    """Fréchet distance of the Gaussians fitted to two sets: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    Computed in float64; covariances are unbiased (n - 1). The trace of the root is the nuclear norm of the product of
    the two centred sets. Biased upwards by few samples, wholly so below d + 1 of them. Raises UsageError for fewer than
    2 in a set, and for sets of different width.
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
    Gaussian kernel of sigma 10, with the diagonal, as their code has it. Supposes no Gaussians and needs fewer samples
    than Fréchet's distance. Raises UsageError as `frechet_distance`."""
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

    All pictures at once (torchmetrics' `splits=1`): it grows with their number up to many per class, so compare only
    sets of one size. `logits` are Inception's without bias, or a judge's cosines with labels times its logit scale.
    """
    if len(logits) < 2:
        raise UsageError(f"a score of how varied pictures are needs at least 2, not {len(logits)}")
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
