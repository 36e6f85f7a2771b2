"""Objectives against values by hand and against open_clip's own losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from robustclip.robustification.losses import clip, siglip, text_bank


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(F.normalize(torch.randn(6, 8, generator=generator), dim=1) for _ in range(2))  # type: ignore[return-value]


def test_clip_is_open_clips_loss_when_all_ids_differ(pairs: tuple[Tensor, Tensor]) -> None:
    images, texts = pairs
    ours = clip(scale=30.0)(images, texts, torch.arange(6)).mean()
    theirs = ClipLoss()(images, texts, torch.tensor(30.0))
    torch.testing.assert_close(ours, theirs)


def test_siglip_is_open_clips_loss_when_all_ids_differ(pairs: tuple[Tensor, Tensor]) -> None:
    images, texts = pairs
    ours = siglip(scale=10.0, bias=-10.0)(images, texts, torch.arange(6)).mean()
    theirs = SigLipLoss()(images, texts, torch.tensor(10.0), torch.tensor(-10.0))
    torch.testing.assert_close(ours, theirs)


def test_equal_ids_share_the_target() -> None:
    # Two images of the same concept and one other, orthogonal embeddings, scale 1. Row 0 has logits (1, 1, 0) and
    # matches 0 and 1: cross-entropy to (1/2, 1/2, 0) is log(2e + 1) - 1. Row 2 has (0, 0, 1): log(e + 2) - 1.
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    losses = clip(scale=1.0)(embeddings, embeddings, torch.tensor([7, 7, 9]))
    same, other = math.log(2 * math.e + 1) - 1, math.log(math.e + 2) - 1
    torch.testing.assert_close(losses, torch.tensor([same, same, other]))


def test_text_bank_reads_the_bank_and_not_the_captions() -> None:
    bank = torch.eye(3)
    images = bank[:2]
    objective = text_bank(scale=2.0, bank=bank, bank_ids=torch.tensor([10, 20, 30]))
    losses = objective(images, texts=torch.full((2, 3), torch.nan), ids=torch.tensor([10, 30]))
    # Image 0 is its own text: log(e^2 + 2) - 2. Image 1 is another's: log(e^2 + 2).
    torch.testing.assert_close(losses, torch.tensor([math.log(math.e**2 + 2) - 2, math.log(math.e**2 + 2)]))


def test_text_bank_shares_the_target_among_several_captions() -> None:
    objective = text_bank(scale=1.0, bank=torch.eye(3), bank_ids=torch.tensor([0, 0, 1]))
    loss = objective(torch.eye(3)[:1], torch.empty(1, 3), torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor([math.log(math.e + 2) - 0.5]))


def test_text_bank_refuses_an_id_it_has_no_text_for() -> None:
    objective = text_bank(scale=1.0, bank=torch.eye(3), bank_ids=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="match no text"):
        objective(torch.eye(3)[:1], torch.empty(1, 3), torch.tensor([5]))


def test_losses_are_float32_under_autocast(pairs: tuple[Tensor, Tensor]) -> None:
    images, texts = pairs
    ids = torch.arange(6)
    expected = clip(scale=30.0)(images, texts, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = clip(scale=30.0)(images, texts, ids)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)


def test_coupled_says_whether_the_batch_matters(pairs: tuple[Tensor, Tensor]) -> None:
    images, texts = pairs
    ids = torch.arange(6)
    for objective in (clip(30.0), siglip(10.0, -10.0), text_bank(30.0, texts, ids)):
        alone = objective(images[:1], texts[:1], ids[:1])
        together = objective(images, texts, ids)[:1]
        assert objective.coupled != torch.allclose(alone, together), objective.name
