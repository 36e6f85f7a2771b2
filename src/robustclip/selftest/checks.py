"""The checks: functions of a setting, whose numbers are compared with those of float64 on the CPU.

Models are small, with weights drawn on the CPU from fixed seeds. What the library computes in float32 on every device
(resizing, the last products of losses) is float32 in the truth too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils import clip_grad_norm_

from robustclip.attacks.gradient import pgd
from robustclip.attacks.library import Name, library_attack
from robustclip.attacks.threat import ThreatModel
from robustclip.canvases import Canvas, ChainStart, Codes, Latents, Pixels, Pyramid, Strokes, StyleNetwork
from robustclip.data.samples import Batch
from robustclip.drawing import random_strokes
from robustclip.explanation.maps import Mapper
from robustclip.losses import Cosine, Distillation, Target
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.openclip import build_image_tower
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.similarity import cosines
from robustclip.referees.smoothed import smoothed
from robustclip.referees.toy import ToyText
from robustclip.robustification.adversarial import AdversarialGradients, WarmStarts
from robustclip.robustification.losses import Objective, clip
from robustclip.robustification.state import adamw
from robustclip.runs.devices import autocast
from robustclip.runs.rng import generator
from robustclip.selftest.settings import TRUTH, Setting
from robustclip.synthesis.loop import optimise
from robustclip.synthesis.terms import Stream, Term, Terms
from robustclip.views import Views, diffaug

if TYPE_CHECKING:  # diffusers is an extra's
    from robustclip.diffusion.stable import Conditioning, LatentDiffusion

SIDE: Final = 40  # pixels of an image; the referees resize it, to 32 and 64
CELLS: Final = 16  # pixels of a diffusion model's picture, whose latents have half as many
BATCH: Final = 4
PICTURES: Final = 2
WIDTH: Final = 32
TEXTS: Final = ["a cat", "a dog", "a fish", "a green turtle", "a house", "a tree"]
THREAT: Final = ThreatModel("l2", 0.5, SIDE)
Build = Callable[[Setting], TwoTower]


def drawn(*shape: int, purpose: str) -> Tensor:
    """U[0, 1) numbers of the CPU, the same for every setting."""
    return torch.rand(shape, generator=generator(0, f"selftest {purpose}"))


def images(setting: Setting, count: int = BATCH) -> Tensor:
    return setting.put(drawn(count, 3, SIDE, SIDE, purpose="images"))


def vit(setting: Setting) -> TwoTower:
    """A CLIP with a ViT of two layers, at 32 pixels."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
    return referee(setting, build_image_tower({"embed_dim": WIDTH, "vision_cfg": vision}), 32)


def cnn(setting: Setting) -> TwoTower:
    """A CLIP with three strided convolutions and BatchNorm, at 64 pixels.

    GELU, for ReLU's gradient jumps: in a drawn ResNet a half-precision gradient is off by a third, and shows nothing.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((3, 16, 32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.GELU()]
    return referee(setting, nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, WIDTH)), 64)


def referee(setting: Setting, tower: nn.Module, size: int) -> TwoTower:
    """A CLIP of an image tower of drawn weights: matrices N(0, 1/inputs), gains 1, biases N(0, 0.02^2)."""
    stream = generator(0, "selftest weights")
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5, generator=stream)
            elif name.endswith("weight"):
                weight.fill_(1)
            else:
                weight.normal_(std=0.02, generator=stream)
    preprocess = Preprocess(size)
    card = Card(name="drawn", family="drawn", architecture={}, preprocess=preprocess.config(), logit_scale=10.0)
    made = TwoTower(tower, ToyText(WIDTH), preprocess, card=card, logit_scale=10.0).eval().requires_grad_(False)
    made = setting.placed(made)
    if setting.compiled:
        made.image_tower.compile()
    return made


def logits(judge: TwoTower, setting: Setting) -> Callable[[Tensor], Tensor]:
    texts = judge.embed_texts(TEXTS)
    return lambda pixels: judge.logit_scale * cosines(judge, pixels, texts, setting.autocast)


def attacked(setting: Setting, build: Build, threat: ThreatModel = THREAT, steps: int = 1) -> Tensor:
    """PGD on the cross-entropy to the tower's own answers, from a given start."""
    judge, pixels = build(setting), images(setting)
    answer, labels = logits(judge, setting), answers(build).to(setting.device)
    start = setting.put(0.02 * drawn(BATCH, 3, SIDE, SIDE, purpose="start") - 0.01)

    def losses(moved: Tensor) -> Tensor:
        return setting.scale * F.cross_entropy(answer(moved), labels, reduction="none")

    return pgd(pixels, losses, threat, steps=steps, start=start, module=judge, keep="last")


def answers(build: Build) -> Tensor:
    """What the tower takes the images for, in the truth."""
    return logits(build(TRUTH), TRUTH)(images(TRUTH)).argmax(1)


def rise(moved: Tensor, build: Build) -> Tensor:
    """How far an attack raised the loss of each image, measured in the truth."""
    answer, labels = logits(build(TRUTH), TRUTH), answers(build)

    def losses(pixels: Tensor) -> Tensor:
        return F.cross_entropy(answer(pixels), labels, reduction="none")

    return losses(moved.to(TRUTH.device, TRUTH.dtype)) - losses(images(TRUTH))


def pgd_step(setting: Setting, build: Build) -> Tensor:
    """The perturbation after one step."""
    return attacked(setting, build) - images(setting)


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


def streams(purpose: str) -> list[Generator]:
    """One generator of the CPU a picture."""
    return [generator(0, purpose, row) for row in range(PICTURES)]


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


def diffusion(setting: Setting) -> tuple[LatentDiffusion, Conditioning, Conditioning]:
    """A drawn model, and the states of two prompts and of none."""
    from robustclip.diffusion.drawn import drawn_diffusion
    from robustclip.diffusion.stable import Conditioning

    model = setting.placed(drawn_diffusion(setting.autocast))
    given, empty = (Conditioning(setting.put(model.texts.states(texts)[0])) for texts in (TEXTS[:PICTURES], [""]))
    return model, given, empty


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
STORED: Final = 2e-5
"""What float32 pixels and weights cost: a step of 0.01 is the difference of numbers near 1, each rounded by 6e-8."""


def smooth(roundoffs: float = 10, stored: float = STORED) -> Bound:
    """Of a differentiable function, whose error is proportional to the roundoff: a small tower's gradient is off by 3
    roundoffs, so that 10 leaves room for other kernels and shows TF32 or half precision where float32 was asked for."""
    return lambda roundoff: stored + roundoffs * roundoff


def decided(factor: float = 4) -> Bound:
    """Of a search, where comparisons decide: the share that roundoff turns is proportional to it, and the norm of what
    they change to its root."""
    return lambda roundoff: factor * math.sqrt(roundoff)


@dataclass(frozen=True)
class Check:
    """A function of a setting, and how far its numbers may be from the truth's.

    needs: a library and the extra that installs it; compiled: whether its tower is also checked compiled, which takes
    up to a minute each.
    """

    name: str
    run: Callable[[Setting], Tensor]
    bound: Bound
    needs: tuple[str, str] | None = None
    compiled: bool = False


LIBRARY: Final = ("torchattacks", "evaluation")
GENERATORS: Final = ("diffusers", "synthesis")
CAMS: Final = ("pytorch_grad_cam", "explanation")
LINF: Final = ThreatModel("linf", 4 / 255, SIDE)
CHECKS: Final = (
    Check("PGD step, ViT", partial(pgd_step, build=vit), smooth(), compiled=True),
    Check("PGD step, CNN", partial(pgd_step, build=cnn), smooth()),
    Check("update, ViT", partial(update, build=vit), smooth(), compiled=True),
    Check("update, CNN", partial(update, build=cnn), smooth(), compiled=True),
    Check("AdamW", optimizer_steps, smooth(0)),  # in float32 whatever the tower computes in
    Check("attack pgd, L2", partial(pgd_rise, threat=THREAT), decided(1)),  # few signs are in doubt
    Check("attack pgd, L-inf", partial(pgd_rise, threat=LINF), decided(1)),
    Check("attack apgd-ce", partial(library_rise, attack="apgd"), decided(), LIBRARY),
    Check("attack apgd-dlr", partial(library_rise, attack="apgd-dlr"), decided(), LIBRARY),
    Check("attack apgd-t", partial(library_rise, attack="apgd-t", targets=3), decided(), LIBRARY),
    Check("attack fab-t", partial(library_rise, attack="fab-t", targets=3), decided(), LIBRARY),
    Check("attack square", square_fooled, lambda _: 0.5, LIBRARY),  # one image of four
    Check("canvas pixels", partial(canvas_step, build=pixels_of), smooth(), compiled=True),
    Check("canvas pyramid", partial(canvas_step, build=pyramid), smooth()),
    # Differences of coordinates up to 40 decide how a pixel is covered.
    Check("canvas strokes", partial(canvas_step, build=strokes), smooth(stored=2e-4)),
    Check("canvas style network", partial(canvas_step, build=style), smooth()),
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
