"""FLOPs of the plan beside those that torch counts while the trainer really makes a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import BANK, ENERGY_STEPS, OBJECTIVES, Noise, blueprint_of, train_on_noise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from robustclip.planning import costs
from robustclip.planning.costs import FlopCounter, counted, gradient_to_pixels
from robustclip.planning.settings import LOG_EVERY, Settings
from robustclip.planning.towers import imagine
from robustclip.referees.openclip import build_image_tower
from robustclip.robustification.monitor import STRONG_STEPS
from robustclip.robustification.state import ready_to_train

BATCH = 8

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("vit", {"attack_steps": 1}),
    ("vit", {"attack_steps": 3, "clean_weight": 0.5}),
    ("vit", {"attack_steps": 0}),
    ("vit", {"attack_steps": 2, "accumulate": 2}),
    ("vit", {"attack_steps": 2, "accumulate": 4, "clean_weight": 1.0}),
    ("vit", {"attack_steps": 2, "accumulate": 2, "attack_negatives": "local"}),
    ("vit", {"attack_steps": 2, "accumulate": 2, "objective": "text-bank"}),
    ("vit", {"attack_steps": 2, "objective": "siglip"}),
    ("vit", {"attack_steps": 2, "objective": "fare"}),
    ("vit", {"attack_steps": 2, "objective": "agft"}),
    ("vit", {"attack_steps": 2, "objective": "agft", "locked_groups": 3}),
    ("vit", {"attack_steps": 2, "objective": "trades"}),
    ("vit", {"attack_steps": 2, "objective": "trades", "accumulate": 2}),
    ("vit", {"attack_steps": 2, "energy": 0.5, "energy_steps": ENERGY_STEPS}),
    ("vit", {"attack_steps": 2, "energy": 0.5, "energy_steps": ENERGY_STEPS, "accumulate": 2}),
    ("vit", {"attack_steps": 2, "energy": 0.5, "energy_steps": ENERGY_STEPS, "objective": "text-bank"}),
    ("vit", {"attack_steps": 2, "grad_checkpointing": True}),
    ("vit", {"attack_steps": 2, "grad_checkpointing": True, "accumulate": 2}),
    ("resnet", {"attack_steps": 2, "objective": "text-bank"}),
    ("resnet", {"attack_steps": 2, "accumulate": 2, "frozen_statistics": True}),
    ("resnet", {"attack_steps": 2, "locked_groups": 2}),
    ("convnext", {"attack_steps": 2}),
]


@pytest.mark.parametrize(("tower", "given"), CALLS, ids=lambda value: str(value).replace("'", ""))
def test_the_formula_is_what_torch_counts_in_a_real_step(tower: str, given: dict[str, Any], tmp_path: Path) -> None:
    settings = Settings(tower, steps=1, batch_size=BATCH, **given)
    objective = OBJECTIVES["energetic " * (settings.energy > 0) + settings.objective]
    planned = Planned(settings)
    logged = 2 * BATCH * planned.tower.forward + BATCH * planned.tower.caption * (not objective.reads_texts)
    names = (
        "accumulate",
        "attack_negatives",
        "grad_checkpointing",
        "frozen_statistics",
        "clean_weight",
        "locked_groups",
    )
    changes: dict[str, Any] = {name: getattr(settings, name) for name in names}
    if settings.attack_steps:
        changes["attack_steps"] = settings.attack_steps
    else:
        changes["threat"] = None
    real = counted(lambda: train_on_noise(tmp_path / "run", blueprint_of(tower), BATCH, objective, **changes))
    first_look = planned.tower.forward  # the referee looks at its width once
    # Of a part torch computes again only what gradients need, and so not the tower's last product.
    rounding = 1e-3 if settings.accumulate > 1 else 0
    assert planned.step.total - planned.step.watching + logged + first_look == pytest.approx(real, rel=rounding, abs=0)
    assert planned.step.watching == pytest.approx(logged / LOG_EVERY)


def test_the_probe_is_counted_too(tmp_path: Path) -> None:
    planned = Planned(Settings("vit", steps=1, batch_size=BATCH, attack_steps=2, evaluate_every=1))
    without = Planned(Settings("vit", steps=1, batch_size=BATCH, attack_steps=2))
    batch = next(Noise(BATCH).batches())
    real = [
        counted(
            lambda probe=probe: train_on_noise(
                tmp_path / str(len(probe)), blueprint_of("vit"), BATCH, OBJECTIVES["clip"], attack_steps=2, **probe
            )
        )
        for probe in ({"probe": batch, "evaluate_every": 1}, {})
    ]
    captions = BATCH * planned.tower.caption  # of the probe, embedded once a run
    judged = 3 * 2 * BATCH**2 * 16  # similarities, counted by torch and left out by the plan
    assert planned.step.watching - without.step.watching == pytest.approx(real[0] - real[1] - captions - judged)
    assert STRONG_STEPS == 20


class Planned:
    """What the plan says of a small CLIP."""

    def __init__(self, settings: Settings) -> None:
        design = blueprint_of(settings.start)

        def prepare(tower: nn.Module) -> None:
            ready_to_train(
                tower,
                frozen_statistics=settings.frozen_statistics,
                grad_checkpointing=settings.grad_checkpointing,
                accumulate=settings.accumulate,
                channels_last=False,
                locked_groups=settings.locked_groups,
            )

        self.tower = costs.of_towers(imagine(design, prepare), design.size)
        self.step = costs.of_step(settings, self.tower, design, count=1, bank=BANK)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_our_counter_is_torchs_where_no_convolution_is_grouped(tower: str) -> None:
    module = build_image_tower(blueprint_of(tower).model_cfg)
    images = torch.rand(2, 3, 32, 32)
    with FlopCounterMode(display=False) as theirs:
        module(images).sum().backward()
    assert counted(lambda: module(images).sum().backward()) == theirs.get_total_flops()


def test_a_grouped_convolutions_gradients_cost_what_its_forward_pass_does() -> None:
    images, kernel = torch.rand(2, 8, 6, 6, requires_grad=True), torch.rand(8, 1, 3, 3, requires_grad=True)
    with FlopCounter() as counter:
        result = F.conv2d(images, kernel, padding=1, groups=8)
        forward = counter.get_total_flops()
        result.sum().backward()
    assert forward == 2 * 9 * 2 * 8 * 36
    assert counter.get_total_flops() == 3 * forward


def test_the_counter_sees_through_inferences_fused_attention() -> None:
    tower = build_image_tower(blueprint_of("vit").model_cfg).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        inference = counted(lambda: tower(images))
    assert inference == counted(lambda: tower(images))
    assert torch.backends.mha.get_fastpath_enabled(), "it is switched on again"


def test_the_counter_allows_gradients_to_a_modules_own_input() -> None:
    tower = build_image_tower(blueprint_of("vit").model_cfg)
    images = torch.rand(2, 3, 32, 32)
    assert counted(lambda: gradient_to_pixels(tower, images)) > counted(lambda: tower(images))
