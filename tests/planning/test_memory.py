"""Memory of the plan beside the bytes that are alive while the trainer really makes steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from alive import Alive
from small_clip import OBJECTIVES, SIZE, blueprint_of, train_on_noise

from robustclip.planning import memory
from robustclip.planning.memory import Memory
from robustclip.planning.settings import Settings
from robustclip.planning.towers import Imagined, imagine
from robustclip.referees.openclip import build_image_tower
from robustclip.robustification.state import ready_to_train
from robustclip.runs import devices

BATCH = 64


def imagined(settings: Settings) -> Imagined:
    return imagine(
        blueprint_of(settings.start),
        lambda tower: ready_to_train(
            tower,
            frozen_statistics=False,
            grad_checkpointing=settings.grad_checkpointing,
            accumulate=1,
            channels_last=False,
        ),
    )


def planned(settings: Settings, count: int = 1, *, fsdp: bool = False) -> Memory:
    towers, design = imagined(settings), blueprint_of(settings.start)
    kept = memory.activations(towers, design.size, "float32", grad_checkpointing=settings.grad_checkpointing)
    return memory.memory_of_step(settings, towers, design, kept, count, fsdp=fsdp)


@pytest.mark.parametrize(
    ("tower", "given"),
    [
        ("deep", {}),
        ("deep", {"accumulate": 4}),
        ("deep", {"clean_weight": 1.0}),
        ("deep", {"grad_checkpointing": True}),
        ("resnet", {}),
    ],
    ids=str,
)
def test_the_plan_is_near_the_most_that_is_alive_in_real_steps(
    tower: str, given: dict[str, Any], tmp_path: Path
) -> None:
    plan = planned(Settings(tower, steps=2, batch_size=BATCH, attack_steps=2, **given))
    with Alive() as alive:
        train_on_noise(
            tmp_path / "run", blueprint_of(tower), BATCH, OBJECTIVES["clip"], attack_steps=2, steps=2, **given
        )
    assert plan.peak == pytest.approx(alive.peak, rel=0.15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tower", ["vit", "resnet", "convnext"])
def test_fake_tensors_keep_what_real_ones_do(tower: str, dtype: str) -> None:
    fake = memory.activations(imagined(Settings(tower, 1, 1)), (SIZE, SIZE), dtype, grad_checkpointing=False)
    real_tower = build_image_tower(blueprint_of(tower).model_cfg).train()

    def real(images: int) -> int:
        batch = torch.rand(images, 3, SIZE, SIZE)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return devices.saved_bytes(lambda: real_tower(batch), real_tower.parameters())

    assert fake.update == pytest.approx((real(4) - real(2)) / 2, rel=0.02)


def test_fsdp_splits_weights_gradients_and_moments_and_processes_share_a_batch() -> None:
    alone = planned(Settings("resnet", 1, BATCH, attack_steps=2))
    together = planned(Settings("resnet", 1, BATCH, attack_steps=2), count=4)
    split = planned(Settings("resnet", 1, BATCH, attack_steps=2), count=4, fsdp=True)
    for part in ("weights", "moments of AdamW", "average of the weights"):
        assert together.held[part] == alone.held[part] == 4 * split.held[part]
    quarter = alone.moments["update"]["activations"] / 4  # but for a buffer or two, which are not of an image
    assert together.moments["update"]["activations"] == pytest.approx(quarter, rel=0.01)
    assert together.moments["averaging over GPUs"]["the message"] == 2 * alone.held["weights"]
    assert split.moments["update"]["gradients"] == alone.held["weights"] / 4
    assert "averaging over GPUs" not in split.moments


def test_processes_share_the_probe_and_attack_it_in_parts() -> None:
    settings = Settings("vit", 1, BATCH, attack_steps=2, evaluate_every=10)
    for fsdp in (False, True):
        together = planned(settings, count=4, fsdp=fsdp)
        assert together.moments["probe"]["activations"] == together.moments["attack"]["activations"]
        assert together.held["the probe's images"] == 4 * 3 * SIZE**2 * BATCH / 4
        assert together.moments["probe"]["images"] == 5 * together.held["the probe's images"]
    local = planned(replace(settings, attack_negatives="local"), count=4).moments
    assert local["probe"]["logits"] == 4**2 * local["attack"]["logits"]  # the probe's attack reads all negatives
    assert "probe" not in planned(Settings("vit", 1, BATCH, attack_steps=2)).moments


def test_the_largest_number_that_fits_is_found() -> None:
    assert [memory.largest(lambda number, most=most: number <= most) for most in (0, 1, 2, 3, 4, 1000)] == [
        0,
        1,
        2,
        3,
        4,
        1000,
    ]


def test_logits_grow_with_the_whole_batch_and_local_ones_with_a_part() -> None:
    small, large = (planned(Settings("vit", 1, size, attack_steps=1), count=2) for size in (64, 128))
    assert large.moments["update"]["logits"] == 4 * small.moments["update"]["logits"]
    local = planned(Settings("vit", 1, 64, attack_steps=1, accumulate=2, attack_negatives="local"), count=2)
    assert local.moments["attack"]["logits"] == small.moments["attack"]["logits"] / 16
