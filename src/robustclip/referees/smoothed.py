"""Randomised smoothing: embeddings averaged over noisy copies of an image.

Cohen et al. 2019 smooth a classifier's predictions to certify them (`evaluation.certification`, which takes the base
referee); here the embedding is smoothed, so that it has a gradient:

    g(x) = 1/n sum_i f(x + delta_i) / |f(x + delta_i)|,    delta_i ~ N(0, sigma^2 I)

and the gradient of g(x) . t is the mean of the copies' gradients of cos(f, t): CLIPAG's Eq. 2, their baseline between a
vanilla and an adversarially trained CLIP (section 3). `normalize` divides by the length of the mean.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustclip.errors import UsageError
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.weights import digest
from robustclip.runs.rng import generator

MARK: Final = "~smooth:"
SAMPLES: Final = 16
AT_ONCE: Final = 64
"""Noisy images per forward pass of a referee named by its spec: evaluate's batch size, so that smoothing takes no more
memory than the base referee."""
LARGEST_SIGMA: Final = 2.0  # twice the range of a pixel; Cohen et al. go to 1
MOST_SAMPLES: Final = 10_000
SPEC: Final = re.compile(r"(\d+(?:\.\d+)?)(?:x(\d{1,9}))?(?:@(\d{1,9}))?(-fresh)?", re.ASCII)


@final
class Unprocessed(Preprocess):
    """Identity preprocessing: the smoothed tower resizes and normalises each noisy copy."""

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """[0,1] pixels of any size, in float32."""
        return images.float()


class WrappedTower(nn.Module):
    """A tower that runs another one, `tower`, on changed images: smoothed, or defended (`referees.defended`)."""

    tower: nn.Module
    preprocess: Preprocess
    kind: str
    """Of the referee, in messages."""

    @property
    def spec(self) -> str:
        """What its referee's name has after that of the base referee: "~smooth:0.25x16"."""
        raise NotImplementedError

    def as_attacked(self) -> WrappedTower:
        """The tower whose gradients an adaptive attack follows: its noise is not this one's (EOT)."""
        raise NotImplementedError


@final
class SmoothedTower(WrappedTower):
    """Images of any size, on the [0,1] scale, to the mean unit embedding of their noisy copies.

    Noise is added at the images' given size, before resizing, and not clipped to [0,1], as in Cohen et al. All images
    of a call share the noise, copy i from the stream (seed, "smoothing", i), so that an embedding depends neither on
    its batch nor on `chunk`, and the tower is deterministic. With `fresh`, call k draws from (seed, "fresh smoothing",
    k, i) instead; with `attacked`, from (seed, "attacked smoothing", k, i).

    `chunk`: noisy images per forward pass (at least one copy of the batch; None: all). With gradients, chunks are
    checkpointed, so that only one chunk's activations are held.
    """

    kind = "smoothed"

    def __init__(
        self,
        tower: nn.Module,
        preprocess: Preprocess,
        smoothing: Smoothing,
        chunk: int | None,
        *,
        attacked: bool = False,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.preprocess = preprocess
        self.smoothing = smoothing
        self.chunk = chunk
        self.attacked = attacked
        self.calls = 0

    @property
    def spec(self) -> str:
        return f"{MARK}{self.smoothing}"

    def as_attacked(self) -> SmoothedTower:
        return SmoothedTower(self.tower, self.preprocess, self.smoothing, self.chunk, attacked=True)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d"]:
        """Mean unit embedding, of length at most 1."""
        noise = self._noise(images)
        samples = self.smoothing.samples
        copies = samples if self.chunk is None else max(1, self.chunk // max(1, len(images)))
        spared = torch.is_grad_enabled() and copies < samples
        total: Tensor | None = None
        for part in noise.split(copies):
            summed = (
                checkpoint(self._summed, images, part, use_reentrant=False) if spared else self._summed(images, part)
            )
            total = summed if total is None else total + summed
        assert total is not None
        return total / samples

    def _summed(self, images: Float[Tensor, "b 3 H W"], noise: Float[Tensor, "k 3 H W"]) -> Float[Tensor, "b d"]:
        """Sum of the unit embeddings of each image's copies."""
        noisy = (images[None] + noise[:, None]).flatten(0, 1)
        return unit(self.tower(self.preprocess(noisy))).unflatten(0, (len(noise), len(images))).sum(0)

    def _noise(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "n 3 H W"]:
        """Noise drawn on the CPU, one stream per copy, so that it is the same on every device."""
        how = self.smoothing
        is_new = how.fresh or self.attacked
        purpose = "attacked smoothing" if self.attacked else "fresh smoothing" if how.fresh else "smoothing"
        keys = (self.calls,) if is_new else ()
        self.calls += is_new
        streams = [generator(how.seed, purpose, *keys, copy) for copy in range(how.samples)]
        drawn = torch.stack([torch.randn(images.shape[1:], generator=stream) for stream in streams])
        return how.sigma * drawn.to(images)


def smoothed(
    referee: TwoTower,
    *,
    sigma: float,
    samples: int = SAMPLES,
    seed: int = 0,
    chunk: int | None = None,
    fresh: bool = False,
) -> TwoTower:
    """Randomised smoothing of `referee`: image embeddings are means over `samples` noisy copies.

    sigma    the noise's standard deviation on the [0,1] scale, at the size the images are given in.
    chunk    noisy images per forward pass; None: all, `samples` times the batch.
    fresh    new noise at each call (for painting); else the same at all calls, for reproducible numbers.

    The weights are shared with `referee`, not copied. The card has the spec in its name (`emoji-robust~smooth:0.25x16`,
    which `load_referee` parses), and neither the base's threat model nor its claims. It cannot be signed, trained or
    saved.

    Raises UsageError for a sigma outside (0, 2], samples outside 1 to 10,000, a chunk below 1, and for a smoothed
    referee.
    """
    if is_smoothed(referee.image_tower):
        raise UsageError(
            f"{referee.card.name} is smoothed already: smooth its base referee, and with independent noise the two "
            "sigmas add up to sqrt(a^2 + b^2)",
            "smoothed_twice",
        )
    smoothing = Smoothing(sigma, samples, seed, fresh)
    smoothing.check()
    if chunk is not None and chunk < 1:
        message = f"chunk={chunk}: give at least 1 noisy image per forward pass, or leave it out for all"
        raise UsageError(message, "too_few", argument="chunk", given=chunk)
    tower = SmoothedTower(referee.image_tower, referee.preprocess, smoothing, chunk)
    return wrapped(referee, tower, asdict(smoothing))


def wrapped(referee: TwoTower, tower: WrappedTower, how: dict[str, Any]) -> TwoTower:
    """`referee` with `tower` around its image tower, and a card without the base's threat model, hashes and claims.

    `how` goes into the card's provenance. Raises UsageError for a referee that is wrapped already.
    """
    refuse_wrapped(referee.image_tower, f"cannot be {tower.kind}", f"give its base, which can be {tower.kind}")
    base = referee.card
    passed_on = Unprocessed.from_config(referee.preprocess.config()).to(referee.device)
    tower.train(referee.image_tower.training)
    trained = None if base.threat is None else base.threat.to_json()
    how = {"base": base.name, **how, "threat of the base's training": trained}
    card = replace(
        base,
        name=f"{base.name}{tower.spec}",
        weights={},
        threat=None,
        provenance={**base.provenance, tower.kind: how},
        claims=[],
    )
    return referee.with_image_tower(tower, passed_on, card)


@dataclass(frozen=True)
class Smoothing:
    """Smoothing spec, the part after "~smooth:" of a referee's name: SIGMA[xSAMPLES][@SEED][-fresh], "0.25x16"."""

    sigma: float
    samples: int = SAMPLES
    seed: int = 0
    fresh: bool = False

    @classmethod
    def parse(cls, text: str) -> Smoothing:
        """Parse a smoothing spec. Raises UsageError for an invalid one."""
        match = SPEC.fullmatch(text)
        if match is None:
            raise UsageError(
                f"cannot read the smoothing {text[:40]!r}: write REFEREE{MARK}SIGMAxSAMPLES, "
                f"e.g. emoji-vanilla{MARK}0.25x16 (sigma on the scale of [0,1] pixels)",
                "not_a_smoothing",
                given=text,
            )
        smoothing = cls(float(match[1]), int(match[2] or SAMPLES), int(match[3] or 0), match[4] is not None)
        smoothing.check()
        return smoothing

    def check(self) -> None:
        """Raise UsageError for a sigma outside (0, 2], and for samples outside 1 to 10,000."""
        check_sigma(self.sigma)
        if not 1 <= self.samples <= MOST_SAMPLES:
            message = f"smoothing takes 1 to {MOST_SAMPLES} noisy copies of an image, not {self.samples}: e.g. 16"
            raise UsageError(message, "out_of_range", argument="samples", given=self.samples)

    def __str__(self) -> str:
        seed = f"@{self.seed}" if self.seed else ""
        sigma = np.format_float_positional(self.sigma, trim="-")  # all digits, and no exponent, which `parse` refuses
        return f"{sigma}x{self.samples}{seed}{'-fresh' if self.fresh else ''}"


def split_spec(name: str) -> tuple[str, Smoothing]:
    """The base referee's name and the smoothing, of "emoji-vanilla~smooth:0.25x16".

    Raises UsageError if one of them is missing or invalid.
    """
    base, _, text = name.rpartition(MARK)
    if not base:
        raise UsageError(
            f"{name[:100]!r} lacks the base referee: write e.g. emoji-vanilla{MARK}0.25x16", "no_base", given=name
        )
    return base, Smoothing.parse(text)


def by_spec(referee: TwoTower, smoothing: Smoothing) -> TwoTower:
    """`smoothed` with a parsed spec, in chunks of `AT_ONCE`."""
    how = smoothing
    return smoothed(referee, sigma=how.sigma, samples=how.samples, seed=how.seed, chunk=AT_ONCE, fresh=how.fresh)


def check_sigma(sigma: float) -> None:
    """Raise UsageError unless `sigma` is in (0, 2]."""
    if not 0 < sigma <= LARGEST_SIGMA:  # so that NaN fails too
        over = f"; {sigma:g}/255 is {sigma / 255:.4g}" if LARGEST_SIGMA < sigma <= 255 and math.isfinite(sigma) else ""
        raise UsageError(
            f"sigma is the noise's standard deviation on [0,1] pixels, above 0 and up to {LARGEST_SIGMA:g}, "
            f"not {sigma:g}{over}: e.g. 0.25",
            "out_of_range",
            argument="sigma",
            given=sigma,
        )


def is_smoothed(tower: nn.Module) -> bool:
    """Whether an image tower is smoothed."""
    return isinstance(tower, SmoothedTower)


def base_tower(tower: nn.Module) -> nn.Module:
    """The underlying tower without smoothing or defence."""
    return tower.tower if isinstance(tower, WrappedTower) else tower


def refuse_wrapped(tower: nn.Module, doing: str, instead: str) -> None:
    """Raise UsageError for a smoothed or defended tower, with the reason and the remedy `instead`."""
    if isinstance(tower, WrappedTower):
        raise UsageError(
            f"a {tower.kind} referee {doing}: {instead} (its spec without {tower.spec})", "wrapped", kind=tower.kind
        )


def fingerprint(referee: TwoTower) -> str:
    """SHA-256 of the image tower's weights, equal for float32 and half-precision copies, and for a smoothed or defended
    referee and its base.
    """
    return digest(base_tower(referee.image_tower).state_dict())


def check_judge(guide: TwoTower, judge: TwoTower) -> None:
    """Raise UsageError if `judge` shares its image tower with `guide`."""
    if guide is judge or fingerprint(guide) == fingerprint(judge):
        raise UsageError(
            f"the judge {judge.card.name!r} and the guide {guide.card.name!r} have the same weights, so its scores "
            "would be biased: judge with another one, e.g. emoji-judge",
            "same_weights",
            judge=judge.card.name,
            guide=guide.card.name,
        )
