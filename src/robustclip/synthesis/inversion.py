"""Referee-Can-Play's Algorithm 1 (Liu et al. 2024) as streams and callbacks: faithful, released and fixed modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Generator

from robustclip.canvases.base import Canvas
from robustclip.synthesis.loop import Callback, MovingAverage, Noise, restarts_of
from robustclip.synthesis.terms import MEAN, Looking, Loss, Reduce, Schedule, Stream, Term, Terms, cosine_decay

Optimiser = Literal["adam", "sgd"]
Average = Literal["restart", "plain", "none"]
Mode = Literal["faithful", "released", "fixed"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What the modes differ by.

    optimiser       of the referee's stream; that of SDS is plain SGD at rate 1.
    lr, warm_up     of the referee's stream: its rate at first, and iterations that lead up to it.
    sds_decays      the SDS stream's rate falls as the referee's does.
    weighted_norm   the referee's gradient is brought to w1 times the norm of the weighted SDS gradient.
    gradient_noise  noise is also added to the referee's gradient.
    last_noise      deviation of z's noise in the last steps, of SDS only.
    copies          augmented views of the picture that the referee sees in each step.
    added_noise     deviation of additional noise on each copy.
    times           times of SDS: lower bound and (exclusive) upper bound.
    as_coded        VLMinv's order: the cosine of the rate begins after the warm-up; the average begins as z
                    after the first step, restarts when the number of completed steps reaches `start`, not after the
                    referee's last, and takes the referee's next step then (`MovingAverage.lend`); copies are shifted
                    down only; SDS gets the prompt as prepared for BLIP-2.
    through         gradients pass pixels that were clamped to [0,1].
    rescaled        the SDS weight, meant for a latent of 64x64 cells, is scaled to this latent.
    guidance        classifier-free, of SDS; 30 in the paper's text and in its code.
    """

    optimiser: Optimiser
    lr: float
    warm_up: int = 0
    sds_decays: bool = True
    weighted_norm: bool = False
    gradient_noise: bool = False
    last_noise: float = 0.0
    through: bool = False
    rescaled: bool = False
    guidance: float = 30.0
    copies: int = 30
    added_noise: float = 0.0
    times: tuple[int, int] = (50, 950)
    as_coded: bool = False


VARIANTS: Final[dict[Mode, Variant]] = {
    # The paper's text: Adam; both rates fall from 1.0 to 0.5; Alg. 1 has the norm of the SDS gradient itself.
    "faithful": Variant(optimiser="adam", lr=1.0),
    # VLMinv generate.py's defaults and blip2_sds.py's loop (commit 4dd4c13): SGD without momentum (the flag never
    # reaches it), 10 iterations of warm-up; SDS at a constant rate, its times below 950 - 1; the norm after w2; noise
    # on gradient, latents and copies, and a little to the end. tests/golden/vlminv.py restates it.
    "released": Variant(
        optimiser="sgd",
        lr=1.0,
        warm_up=10,
        sds_decays=False,
        weighted_norm=True,
        gradient_noise=True,
        last_noise=0.01,
        copies=10,
        added_noise=0.2,
        times=(50, 949),
        as_coded=True,
    ),
    # Ours: a rate of Adam for latents of few cells and unit variance (at 1.0 each number moves by 1 a step), and the
    # SDS weight scaled to the latent. Rate and guidance are chosen on the small embedded model, whose colours saturate
    # at a guidance of 30.
    "fixed": Variant(optimiser="adam", lr=0.3, warm_up=10, through=True, rescaled=True, guidance=5.0),
}


@dataclass(frozen=True)
class Algorithm1:
    """Settings of Algorithm 1; iterations are counted from 0."""

    variant: Variant
    steps: int = 160
    sds_only: int = 10  # the last iterations, without the referee
    w1: float = 2.0
    w2: tuple[float, float] = (800.0, 400.0)  # at first, and at the end of half a cosine
    noise: float = 0.2
    average: Average = "restart"
    decay: float = 0.95
    start: int = 40
    period: int = 60

    def streams(
        self,
        canvas: Canvas,
        sds: Loss | Any | None,
        referees: Sequence[tuple[Any, float, str]],
        look: Looking | None = None,
        reduce: Reduce = MEAN,
        generators: Sequence[Generator] = (),
    ) -> list[Stream]:
        """Streams of SDS, if any, and of each referee (loss, weight, name), whose gradient is scaled to its share of w1
        times the norm of the SDS gradient. One referee is Alg. 1; several are ours. `generators`, one per picture, draw
        the variant's noise on the first referee's gradient.
        """
        falling = cosine_decay(self.steps, 0.5)
        streams: list[Stream] = []
        if sds is not None:  # g_sds = w2 grad SDS; z <- z - beta g_sds
            term = Term(sds, reads="latent", weight=self.weight, name="sds")
            descent = torch.optim.SGD(canvas.parameters(), lr=1.0)
            schedule = falling if self.variant.sds_decays else None
            streams.append(Stream(Terms((term,)), descent, schedule=schedule, name="sds"))
        total = sum(weight for _, weight, _ in referees)
        kind = torch.optim.Adam if self.variant.optimiser == "adam" else torch.optim.SGD
        gradient_noise = (
            Noise(self.noise, generators, self.steps - self.sds_only).drawn if self.variant.gradient_noise else None
        )
        for row, (loss, weight, name) in enumerate(referees):  # g = w1 grad L ||grad SDS|| / ||grad L||
            share = weight / total
            # The share of a gradient that is scaled to it must not count twice; Adam's steps do not depend on a scale.
            scaled = sds is not None and kind is torch.optim.SGD
            streams.append(
                Stream(
                    Terms((self._term(loss, look, reduce),)),
                    kind(canvas.parameters(), lr=self.variant.lr * (1.0 if scaled else share)),
                    match=None if sds is None else (streams[0], self._norms(share)),
                    schedule=self.rate,
                    noise=gradient_noise if row == 0 else None,
                    name=name,
                )
            )
        return streams

    def callbacks(self, canvas: Canvas, generators: Sequence[Sequence[Generator]]) -> list[Callback]:
        """Noise on z, and the moving average, which restarts z at `start` and every `period` steps after it.
        `generators`: two rows of one per picture."""
        calm, variant = self.steps - self.sds_only, self.variant
        restarts = restarts_of(self.start, self.period, self.steps)
        if variant.as_coded:
            restarts = [step - 1 for step in restarts_of(self.start, self.period, calm + 1) if step]
        average = MovingAverage(
            None if variant.as_coded else list(canvas.parameters()),
            self.decay,
            restarts if self.average == "restart" else [],
            last=self.average == "plain",
        )
        found: list[Callback] = [average.lend] if variant.as_coded else []
        found.append(Noise(self.noise, generators[0], calm))
        if variant.last_noise:
            found.append(Noise(lambda step: variant.last_noise if step >= calm else 0.0, generators[1]))
        return found if self.average == "none" else [*found, average]

    def weight(self, step: int) -> float:
        """w2 at an iteration."""
        first, last = self.w2
        return last + (first - last) * cosine_decay(self.steps)(step)

    def rate(self, step: int) -> float:
        """The factor of the referee's rate."""
        warm_up = self.variant.warm_up
        if self.variant.as_coded:
            after = step - warm_up
            return (step + 1) / warm_up if after < 0 else cosine_decay(self.steps - warm_up, 0.5)(after)
        return min(1.0, (step + 1) / max(warm_up, 1)) * cosine_decay(self.steps, 0.5)(step)

    def _term(self, loss: Loss | Any, look: Looking | None, reduce: Reduce) -> Term:
        """Term of a loss: views of the picture, or the rendering that the loss `reads` (mutual information)."""
        if hasattr(loss, "reads"):
            return Term(loss, reads=loss.reads, weight=self._active)
        return Term(loss, look, reduce=reduce, weight=self._active)

    def _active(self, step: int) -> float:
        return 1.0 if step < self.steps - self.sds_only else 0.0

    def _norms(self, share: float) -> Schedule:
        """Factor of the SDS gradient's norm, which includes w2."""
        return lambda step: share * self.w1 / (1.0 if self.variant.weighted_norm else max(self.weight(step), 1e-12))
