"""The checks: functions of a setting, whose numbers are compared with those of float64 on the CPU.

Models are small, with weights drawn on the CPU from fixed seeds. What the library computes in float32 on every device
(resizing, the last products of losses) is float32 in the truth too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from robustclip.attacks.gradient import pgd
from robustclip.attacks.library import Name, library_attack
from robustclip.attacks.threat import ThreatModel
from robustclip.attacks.universal import universal_perturbation
from robustclip.canvases import Canvas, ChainStart, Codes, Implicit, Latents, Pixels, Pyramid, Strokes, StyleNetwork
from robustclip.data.samples import Batch
from robustclip.drawing import random_strokes
from robustclip.explanation.maps import Mapper
from robustclip.losses import Cosine, Distillation, Target
from robustclip.referees.similarity import cosines
from robustclip.referees.smoothed import smoothed
from robustclip.robustification.adversarial import AdversarialGradients, WarmStarts
from robustclip.robustification.losses import Objective, clip
from robustclip.robustification.state import adamw
from robustclip.runs.devices import autocast
from robustclip.runs.rng import each, generator
from robustclip.selftest.models import (
    BATCH,
    CELLS,
    PICTURES,
    SIDE,
    TEXTS,
    THREAT,
    Build,
    cnn,
    diffusion,
    drawn,
    images,
    logits,
    streams,
    vit,
)
from robustclip.selftest.settings import TRUTH, Setting
from robustclip.synthesis.loop import optimise
from robustclip.synthesis.terms import Stream, Term, Terms
from robustclip.views import Views, diffaug

LINF: Final = ThreatModel("linf", 4 / 255, SIDE)
STORED: Final = 2e-5
"""What float32 pixels and weights cost: a step of 0.01 is the difference of numbers near 1, each rounded by 6e-8."""


def attacked(
    setting: Setting, build: Build, threat: ThreatModel = THREAT, steps: int = 1, *, whole: bool = False
) -> Tensor:
    """PGD on the cross-entropy to the tower's own answers, from a given start; `whole` compiles the attack's loss and
    its gradient with the tower in it, in place of the tower alone."""
    judge, pixels = build(replace(setting, compiled=setting.compiled and not whole)), images(setting)
    answer, labels = logits(judge, setting), answers(build).to(setting.device)
    start = setting.put(0.02 * drawn(BATCH, 3, SIDE, SIDE, purpose="start") - 0.01)

    def losses(moved: Tensor) -> Tensor:
        return setting.scale * F.cross_entropy(answer(moved), labels, reduction="none")

    attacks = torch.compile(losses) if setting.compiled and whole else losses
    return pgd(pixels, attacks, threat, steps=steps, start=start, module=judge, keep="last")


def answers(build: Build) -> Tensor:
    """What the tower takes the images for, in the truth."""
    return logits(build(TRUTH), TRUTH)(images(TRUTH)).argmax(1)


def rise(moved: Tensor, build: Build) -> Tensor:
    """How far an attack raised the loss of each image, measured in the truth."""
    answer, labels = logits(build(TRUTH), TRUTH), answers(build)

    def losses(pixels: Tensor) -> Tensor:
        return F.cross_entropy(answer(pixels), labels, reduction="none")

    return losses(moved.to(TRUTH.device, TRUTH.dtype)) - losses(images(TRUTH))


def pgd_step(setting: Setting, build: Build, *, whole: bool = False) -> Tensor:
    """The perturbation after one step."""
    return attacked(setting, build, whole=whole) - images(setting)


def universal_step(setting: Setting) -> Tensor:
    """A universal perturbation after two steps, each on the images of a batch, whose pixels are float32 in the truth
    too."""
    judge, labels = vit(setting), answers(vit).to(setting.device)
    answer = logits(judge, setting)

    def losses(moved: Tensor) -> Tensor:
        return setting.scale * F.cross_entropy(answer(moved), labels, reduction="none")

    batch = (images(setting).float(), [losses])
    return universal_perturbation([batch, batch], THREAT, step_size=0.2)


def starts(setting: Setting) -> Tensor:
    """Whether each random start, which the device's own generators draw in training, is inside the ball and not at its
    centre, and is drawn alike again, (2 B,)."""
    pixels = images(setting).float()
    found = []
    for threat in (THREAT, LINF):
        one, two = (
            threat.random_start(pixels, each(0, "selftest", ids=TEXTS[:BATCH], device=setting.device)) for _ in range(2)
        )
        found.append(threat.contains(one) & (threat.norms(one) > 0) & (one == two).flatten(1).all(1))
    return torch.cat(found).float()


def transferred(setting: Setting) -> Tensor:
    """Images of 8-bit values after their way to the device, where they become float32."""
    values = torch.arange(BATCH * 3 * 64).to(torch.uint8).view(BATCH, 3, 8, 8)  # all 256 of them, three times
    batch = Batch(values, TEXTS[:BATCH], torch.arange(BATCH), TEXTS[:BATCH])
    return batch.to(setting.device, setting.layout).images


def pgd_rise(setting: Setting, threat: ThreatModel) -> Tensor:
    return rise(attacked(setting, vit, threat, steps=10), vit)


def library_moved(
    setting: Setting, attack: Name, steps: int, targets: int | None = None, threat: ThreatModel = THREAT
) -> Tensor:
    """What an attack of torchattacks makes of the images, whose pixels are float32 there in the truth too."""
    judge = vit(setting)
    return library_attack(
        images(setting).float(),
        logits(judge, setting),
        threat,
        labels=answers(vit).to(setting.device),
        attack=attack,
        steps=steps,
        targets=targets,
        module=judge,
        generator=generator(0, "selftest attack"),
    )


def library_rise(setting: Setting, attack: Name, targets: int | None = None) -> Tensor:
    return rise(library_moved(setting, attack, 10, targets), vit)


def square_fooled(setting: Setting) -> Tensor:
    """Which images Square fools, (B,): it ends where it does, so that no loss beyond tells anything."""
    moved = library_moved(setting, "square", 100, threat=ThreatModel("linf", 16 / 255, SIDE))
    found = logits(vit(TRUTH), TRUTH)(moved.to(TRUTH.device, TRUTH.dtype))
    return (found.argmax(1) != answers(vit)).float()


def update(setting: Setting, build: Build) -> Tensor:
    """What one adversarial update changes in the weights: attack in two steps, gradients, clipping, AdamW."""
    made = build(setting)
    tower = made.image_tower.requires_grad_(True).train()
    scaler = torch.amp.GradScaler(setting.device.type, init_scale=setting.scale, enabled=setting.scale != 1)
    objective = scaled(clip(10.0), float(scaler.scale(torch.ones((), device=setting.device))))
    pixels = images(setting)
    ids = [str(row) for row in range(BATCH)]
    warm = WarmStarts()  # known starts: a device's generators draw their own numbers
    warm.keep(0.02 * drawn(BATCH, 3, SIDE, SIDE, purpose="start") - 0.01, ids)

    def embed(moved: Tensor) -> Tensor:
        with autocast(setting.device, setting.autocast):
            return tower(made.preprocess(moved))

    batch = Batch(pixels, TEXTS[:BATCH], torch.arange(BATCH, device=setting.device), ids)
    gradients = AdversarialGradients(tower, embed, objective, THREAT, attack_steps=2, warm=warm)
    optimizer = adamw(tower, lr=1e-3, weight_decay=0.1)
    gradients(0, batch, made.embed_texts(TEXTS[:BATCH]).to(setting.exact))
    scaler.unscale_(optimizer)
    clip_grad_norm_(tower.parameters(), 1.0)
    found = torch.cat([weight.grad.flatten() for weight in tower.parameters() if weight.grad is not None])
    scaler.step(optimizer)
    scaler.update()
    return found


def optimizer_steps(setting: Setting) -> Tensor:
    """What three steps of AdamW along drawn gradients change in weights."""
    weight = nn.Parameter(setting.put(drawn(64, 64, purpose="weights")))
    optimizer = adamw(nn.ParameterList([weight]), lr=1e-2, weight_decay=0.1)
    before = weight.detach().clone()
    for step in range(3):
        weight.grad = setting.put(drawn(64, 64, purpose=f"gradient {step}") - 0.5)
        optimizer.step()
    return weight.detach() - before


def weights(module: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


def scaled(objective: Objective, scale: float) -> Objective:
    return replace(objective, loss=lambda inputs: scale * objective.loss(inputs))


def canvas_step(setting: Setting, build: Callable[[Setting], Canvas]) -> Tensor:
    """What one step of the loop changes in a canvas's parameters."""
    judge = vit(setting)
    canvas = build(setting).to(setting.device)
    canvas = canvas.double() if setting.exact == torch.float64 else canvas
    target = Target(judge, judge.embed_texts(TEXTS[:PICTURES])[:, None], torch.ones(PICTURES, 1, device=setting.device))
    term = Term(Cosine([target], setting.autocast), Views(4, diffaug()), weight=setting.scale)
    stream = Stream(Terms((term,)), torch.optim.SGD(canvas.parameters(), lr=0.01), unit_rms=True)
    before = weights(canvas)
    optimise(canvas, [stream], steps=1, generators=lambda purpose, _: streams(purpose))
    return weights(canvas) - before


def pixels_of(setting: Setting) -> Canvas:
    return Pixels(images(setting, PICTURES), "threshold")


def pyramid(setting: Setting) -> Canvas:
    canvas = Pyramid(PICTURES, (SIDE, SIDE), device=setting.device)
    canvas.encode(images(setting, PICTURES).float())
    return canvas


def strokes(_: Setting) -> Canvas:
    size = (SIDE, SIDE)
    return Strokes(random_strokes(16, size, streams("strokes"), reach=0.8, width=3.0), size)


def style(setting: Setting) -> Canvas:
    return StyleNetwork(images(setting, PICTURES), streams("style"), width=8)


def implicit(setting: Setting) -> Canvas:
    return Implicit((SIDE, SIDE), streams("implicit"), width=16, device=setting.device)


def codes(setting: Setting) -> Canvas:
    from robustclip.diffusion.drawn import drawn_vqgan

    return Codes(setting.placed(drawn_vqgan()), (SIDE, SIDE), streams("codes"))


def latents(setting: Setting) -> Canvas:
    return Latents(diffusion(setting)[0], (CELLS, CELLS), streams("latents"), device=setting.device)


def chain_start(setting: Setting) -> Canvas:
    from robustclip.diffusion.reversible import chain_of

    model, given, empty = diffusion(setting)
    chain, states = chain_of(model, given, empty, steps=2, guidance=2.0)
    return ChainStart(model, chain, states, (CELLS, CELLS), streams("chain"), device=setting.device)


def gradcam(setting: Setting, build: Build) -> Tensor:
    """Heat maps of the images, each for its own text."""
    judge = build(setting)
    texts = judge.embed_texts(TEXTS[:BATCH])
    return Mapper(judge, "gradcam", dtype=setting.autocast)(images(setting), texts, TEXTS[:BATCH]).maps


def smoothing(setting: Setting) -> Tensor:
    """The gradient to the pixels of smoothed embeddings' cosines with the texts."""
    judge = smoothed(vit(setting), sigma=0.25, samples=4, chunk=8)
    pixels = images(setting).requires_grad_()
    texts = judge.embed_texts(TEXTS)
    loss = setting.scale * cosines(judge, pixels, texts, setting.autocast).logsumexp(1).sum()
    return torch.autograd.grad(loss, pixels)[0] / setting.scale


def sds(setting: Setting) -> Tensor:
    """The SDS gradient at latents."""
    model, given, empty = diffusion(setting)
    where = setting.put(drawn(PICTURES, 4, 8, 8, purpose="latents"))
    return Distillation(model, given, empty).gradient(where, streams("sds"))


def reversible(setting: Setting) -> Tensor:
    """The gradient through an EDICT chain by exact reversal, to its start."""
    from robustclip.diffusion.reversible import chain_of, pair

    model, given, empty = diffusion(setting)
    chain, states = chain_of(model, given, empty, steps=2, guidance=2.0)
    exact = torch.float32 if setting.device.type == "mps" else torch.float64
    start = (2 * drawn(PICTURES, 4, 8, 8, purpose="latents") - 1).to(setting.device, exact).requires_grad_()
    return torch.autograd.grad(chain.sample(pair(start), *states).square().sum(), start)[0]


Bound = Callable[[float], float]
"""A difference, relative to the norm of the truth, of the unit roundoff of the products."""


def smooth(roundoffs: float = 10, stored: float = STORED) -> Bound:
    """Of a differentiable function, whose error is proportional to the roundoff: a small tower's gradient is off by 3
    roundoffs, so that 10 leaves room for other kernels and shows TF32 or half precision where float32 was asked for."""
    return lambda roundoff: stored + roundoffs * roundoff


def exact(_: float) -> float:
    """Of numbers that are equal bit for bit, whatever the products are computed in."""
    return 0.0


def decided(factor: float = 4) -> Bound:
    """Of a search, where comparisons decide: the share that roundoff turns is proportional to it, and the norm of what
    they change to its root."""
    return lambda roundoff: factor * math.sqrt(roundoff)


@dataclass(frozen=True)
class Check:
    """A function of a setting, and how far its numbers may be from the truth's.

    needs: a library and the extra that installs it; compiled: whether it is also checked compiled, which takes up to a
    minute each, or that only.
    """

    name: str
    run: Callable[[Setting], Tensor]
    bound: Bound
    needs: tuple[str, str] | None = None
    compiled: Literal["never", "too", "only"] = "never"

    def runs_in(self, setting: Setting) -> bool:
        return self.compiled != "never" if setting.compiled else self.compiled != "only"


LIBRARY: Final = ("torchattacks", "evaluation")
GENERATORS: Final = ("diffusers", "synthesis")
CAMS: Final = ("pytorch_grad_cam", "explanation")
CHECKS: Final = (
    Check("PGD step, ViT", partial(pgd_step, build=vit), smooth(), compiled="too"),
    Check("PGD step, CNN", partial(pgd_step, build=cnn), smooth()),
    Check("PGD step, ViT, with its loss", partial(pgd_step, build=vit, whole=True), smooth(), compiled="only"),
    Check("random start", starts, exact),
    Check("universal step", universal_step, smooth()),
    Check("Batch.to", transferred, exact),
    Check("update, ViT", partial(update, build=vit), smooth(), compiled="too"),
    Check("update, CNN", partial(update, build=cnn), smooth(), compiled="too"),
    Check("AdamW", optimizer_steps, smooth(0)),  # in float32 whatever the tower computes in
    Check("attack pgd, L2", partial(pgd_rise, threat=THREAT), decided(1)),  # few signs are in doubt
    Check("attack pgd, L-inf", partial(pgd_rise, threat=LINF), decided(1)),
    Check("attack apgd-ce", partial(library_rise, attack="apgd"), decided(), LIBRARY),
    Check("attack apgd-dlr", partial(library_rise, attack="apgd-dlr"), decided(), LIBRARY),
    Check("attack apgd-t", partial(library_rise, attack="apgd-t", targets=3), decided(), LIBRARY),
    Check("attack fab-t", partial(library_rise, attack="fab-t", targets=3), decided(), LIBRARY),
    Check("attack square", square_fooled, lambda _: 0.5, LIBRARY),  # one image of four
    Check("canvas pixels", partial(canvas_step, build=pixels_of), smooth(), compiled="too"),
    Check("canvas pyramid", partial(canvas_step, build=pyramid), smooth()),
    # Differences of coordinates up to 40 decide how a pixel is covered.
    Check("canvas strokes", partial(canvas_step, build=strokes), smooth(stored=2e-4)),
    Check("canvas style network", partial(canvas_step, build=style), smooth()),
    Check("canvas implicit", partial(canvas_step, build=implicit), smooth()),
    Check("canvas codes", partial(canvas_step, build=codes), smooth(stored=1e-4), GENERATORS),  # drawn codes are noise
    Check("canvas latents", partial(canvas_step, build=latents), smooth(), GENERATORS),
    # The denoiser runs four times and the tower on top of it.
    Check("canvas chain start", partial(canvas_step, build=chain_start), smooth(30), GENERATORS),
    Check("GradCAM, ViT", partial(gradcam, build=vit), smooth(), CAMS),
    Check("GradCAM, CNN", partial(gradcam, build=cnn), smooth(), CAMS),
    Check("smoothing", smoothing, smooth()),
    # Guidance multiplies the difference of two predictions, and so its error, by 30.
    Check("SDS", sds, smooth(60), GENERATORS),
    Check("reversible gradient", reversible, smooth(30), GENERATORS),
)
