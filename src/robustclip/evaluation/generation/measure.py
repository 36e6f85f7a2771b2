"""Compute one judge's metrics of one set of pictures.

Fréchet distance, CMMD and Inception Score are of any network's features: with those of Inception (torch-fidelity) FID
(Heusel et al. 2017) and the Inception Score (Salimans et al. 2016); with a judge's embeddings they have other names.
The values are torchmetrics', computed without a matrix square root, so that they are exact for fewer pictures than
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustclip.data.pictures import Images
from robustclip.errors import UsageError, require
from robustclip.evaluation import intervals
from robustclip.evaluation.generation.embeddings import (
    PREFIX,
    RPrecision,
    Texts,
    clip_score,
    cosine,
    embed,
    embed_texts,
    r_precision,
)
from robustclip.evaluation.generation.judgement import Figure
from robustclip.evaluation.generation.pictures import Pictures
from robustclip.evaluation.intervals import Interval, jackknife, preference
from robustclip.referees.base import TwoTower
from robustclip.referees.image_judges import Aesthetics
from robustclip.referees.similarity import batches
from robustclip.referees.smoothed import fingerprint
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
        raise UsageError(
            f"the Inception Score needs at least 2 pictures, not {len(logits)}", "too_few", given=len(logits)
        )
    log_each = logits.double().log_softmax(dim=1)
    log_mean = log_each.logsumexp(dim=0) - torch.tensor(len(logits)).double().log()
    return float((log_each.exp() * (log_each - log_mean)).sum(dim=1).mean().exp())


def _check(features: Tensor, others: Tensor) -> None:
    if features.ndim != 2 or others.ndim != 2 or features.shape[1] != others.shape[1]:
        raise UsageError(
            f"features {tuple(features.shape)} and {tuple(others.shape)} do not compare: give (n,d), (m,d)",
            "wrong_shape",
        )
    if min(len(features), len(others)) < 2:
        message = f"a distance of sets needs at least 2 pictures in each, not {len(features)} and {len(others)}"
        raise UsageError(message, "too_few", given=(len(features), len(others)))


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
        raise UsageError(
            f"{path} does not fit Inception ({str(error).splitlines()[0]}): {HOW}", "does_not_fit", path=path
        ) from error
    check_finite(network, source=str(path))
    return Inception(path.name, sha256(path), network.to(device), device)


Metric = Literal[
    "r-precision", "cosine", "clipscore", "aesthetics", "frechet", "cmmd", "label-score", "fid", "inception-score"
]

TO_REFERENCE: Final = ("frechet", "cmmd", "fid")
"""Distances to real pictures."""
INCEPTION: Final = "Inception"
"""The judge's name in reports."""
OF_INCEPTION: Final = ("fid", "inception-score")


@dataclass(frozen=True)
class JudgeOptions:
    """Metrics of a judgement and their settings.

    candidates  of R-Precision; None: all different prompts of all sets.
    aesthetics, inception   only needed by the metrics of that name.
    """

    metrics: Sequence[str]
    candidates: int | None = None
    aesthetics: Aesthetics | None = None
    inception: Inception | None = None
    seed: int = 0
    batch_size: int = 64
    dtype: torch.dtype = torch.float32


@dataclass
class JudgeScores:
    """Scores (n,) of N pictures by metric, ranks among candidates, and features, by one judge."""

    pictures: Pictures
    judge: str
    fingerprint: str
    scores: dict[str, Float[Tensor, " n"]]
    ranking: RPrecision | None = None
    features: Float[Tensor, "n d"] | None = None
    logits: Float[Tensor, "n c"] | None = None

    def of_picture(self, place: int) -> dict[str, Any]:
        """The values of one picture, as plain values."""
        of_one: dict[str, Any] = {metric: float(values[place]) for metric, values in self.scores.items()}
        if self.ranking is not None:
            of_one |= {"rank": int(self.ranking.ranks[place]), "picked": self.ranking.picked[place]}
        return of_one


class RefereeScorer:
    """Scores sets of pictures by one CLIP-like judge; prompts are embedded once."""

    def __init__(self, name: str, judge: TwoTower, prompts: Sequence[str], options: JudgeOptions) -> None:
        self.name, self.judge, self.options = name, judge, options
        self.fingerprint = fingerprint(judge)
        self.texts = embed_texts(judge, prompts)
        self.depicts: Texts | None = None
        if "clipscore" in options.metrics:
            self.depicts = embed_texts(judge, prompts, prefix=PREFIX)

    def score(self, pictures: Pictures, embeddings: Float[Tensor, "n d"] | None = None) -> JudgeScores:
        """Per-picture scores, and the features that set metrics need. `embeddings`: precomputed ones, if any."""
        options, prompts = self.options, pictures.prompts
        embeddings = self.embed(pictures) if embeddings is None else embeddings
        scored = JudgeScores(pictures, self.name, self.fingerprint, {}, features=embeddings)
        if "r-precision" in options.metrics:
            scored.ranking = r_precision(
                embeddings, prompts, self.texts, ids=pictures.keys, candidates=options.candidates, seed=options.seed
            )
        if "cosine" in options.metrics:
            scored.scores["cosine"] = cosine(embeddings, self.texts.of(prompts))
        if self.depicts is not None:
            scored.scores["clipscore"] = clip_score(embeddings, self.depicts.of(prompts))
        if options.aesthetics is not None and "aesthetics" in options.metrics:
            scored.scores["aesthetics"] = options.aesthetics(embeddings)
        if "label-score" in options.metrics:
            scored.logits = self.judge.logit_scale * embeddings @ self.texts.embeddings.T
        return scored

    def embed(self, pictures: Pictures) -> Float[Tensor, "n d"]:
        """`embeddings.embed` with progress on stderr."""
        options, title = self.options, f"{self.name} looks at {pictures.name}"
        return embed(self.judge, pictures.images, batch_size=options.batch_size, dtype=options.dtype, title=title)

    def features(self, pictures: Pictures) -> JudgeScores:
        """Features of a reference set, without scores."""
        return JudgeScores(pictures, self.name, self.fingerprint, {}, features=self.embed(pictures))


def values(scored: JudgeScores, options: JudgeOptions) -> Iterator[Figure]:
    """Figures of per-picture metrics of one set."""
    for metric in options.metrics:
        if metric == "r-precision" and scored.ranking is not None:
            yield _figure(scored, options, metric, intervals.rate(scored.ranking.hits))
        elif metric in scored.scores:
            interval = intervals.mean(scored.scores[metric].numpy(), seed=options.seed)
            yield _figure(scored, options, metric, interval)


def comparisons(scored: JudgeScores, others: JudgeScores, options: JudgeOptions) -> Iterator[Figure]:
    """Differences of two sets on their shared prompts and seeds; none if they share none."""
    mine, theirs = shared(scored.pictures, others.pictures)
    if not mine:
        return
    against = others.pictures.name
    for metric in options.metrics:
        if metric == "r-precision" and scored.ranking is not None and others.ranking is not None:
            hits, other_hits = scored.ranking.hits[mine], others.ranking.hits[theirs]
            interval = intervals.difference(hits, other_hits, seed=options.seed)
            yield _figure(scored, options, metric, interval, "difference", against)
        elif metric in scored.scores:
            scores, other_scores = scored.scores[metric][mine].numpy(), others.scores[metric][theirs].numpy()
            interval = intervals.mean(scores - other_scores, seed=options.seed)
            yield _figure(scored, options, metric, interval, "difference", against)
            yield _figure(scored, options, metric, preference(scores, other_scores), "preference", against)


def of_sets(scored: JudgeScores, real: JudgeScores | None, options: JudgeOptions) -> Iterator[Figure]:
    """Figures of set metrics, from a judge's embeddings or Inception's features."""
    for metric, statistic, sets in _set_statistics(scored, real, options):
        low = 1.0 if metric in ("label-score", "inception-score") else 0.0
        interval = jackknife(statistic, *sets, seed=options.seed, low=low)
        yield _figure(scored, options, metric, interval, reference=real)


def set_comparisons(
    scored: JudgeScores, others: JudgeScores, real: JudgeScores | None, options: JudgeOptions
) -> Iterator[Figure]:
    """Differences of two sets in set metrics, on their shared prompts and seeds."""
    mine, theirs = shared(scored.pictures, others.pictures)
    if len(mine) < 3:
        return
    pairs = zip(_set_statistics(scored, real, options), _set_statistics(others, real, options), strict=True)
    for (metric, statistic, (first, *rest)), (_, _, (second, *_)) in pairs:
        side_by_side = torch.stack([first[mine], second[theirs]], dim=1)
        interval = jackknife(partial(_apart, statistic), side_by_side, *rest, seed=options.seed)
        yield _figure(scored, options, metric, interval, "difference", others.pictures.name, real)


def shared(pictures: Pictures, others: Pictures) -> tuple[list[int], list[int]]:
    """Indices of the pictures with the same prompt and seed in both sets; by prompt alone if seeds are unknown."""
    sets = (pictures, others)
    if not all(any(seed is not None for seed in one.seeds) for one in sets):
        sets = (replace(pictures, seeds=[]), replace(others, seeds=[]))
    keys, theirs = (one.keys for one in sets)
    places = {key: place for place, key in enumerate(theirs)}
    mine = [place for place, key in enumerate(keys) if key in places]
    return mine, [places[keys[place]] for place in mine]


Statistic = Callable[..., float]


def _set_statistics(
    scored: JudgeScores, real: JudgeScores | None, options: JudgeOptions
) -> Iterator[tuple[str, Statistic, list[Tensor]]]:
    """(metric, statistic, its sets), the pictures' own set first."""
    distances: dict[str, Statistic] = {"frechet": frechet_distance, "fid": frechet_distance, "cmmd": cmmd}
    for metric in options.metrics:
        if (metric in OF_INCEPTION) != (scored.judge == INCEPTION):
            continue
        if metric in distances and real is not None and scored.features is not None and real.features is not None:
            yield metric, distances[metric], [scored.features, real.features]
        elif metric in ("label-score", "inception-score") and scored.logits is not None:
            yield metric, inception_score, [scored.logits]


def inception_features(pictures: Pictures, inception: Inception, options: JudgeOptions) -> JudgeScores:
    """Inception's features and logits of a set."""
    features, logits = inception(
        pictures.images, batch_size=options.batch_size, title=f"Inception looks at {pictures.name}"
    )
    return JudgeScores(pictures, INCEPTION, inception.sha256, {}, features=features, logits=logits)


def _apart(statistic: Statistic, pairs: Float[Tensor, "n 2 d"], *rest: Tensor) -> float:
    return statistic(pairs[:, 0], *rest) - statistic(pairs[:, 1], *rest)


def _figure(
    scored: JudgeScores,
    options: JudgeOptions,
    metric: str,
    interval: Interval,
    kind: Literal["value", "difference", "preference"] = "value",
    against: str = "",
    reference: JudgeScores | None = None,
) -> Figure:
    ranking = scored.ranking if metric == "r-precision" else None
    head = options.aesthetics if metric == "aesthetics" else None
    return Figure(
        pictures=scored.pictures.name,
        judge=scored.judge,
        fingerprint=scored.fingerprint,
        metric=metric,
        kind=kind,
        against=against,
        **vars(interval),
        seed=options.seed,
        candidates=None if ranking is None else ranking.candidates,
        chance=None if ranking is None else ranking.chance,
        reference=reference.pictures.name if reference is not None and metric in TO_REFERENCE else None,
        head=None if head is None else head.describe(),
    )
