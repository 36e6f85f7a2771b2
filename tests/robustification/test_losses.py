"""Objectives against values by hand and against open_clip's own losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from robustclip.errors import UsageError, coded
from robustclip.robustification.losses import (
    Objective,
    agft,
    anchored,
    clip,
    divergence,
    fare,
    kl,
    refuse_degenerate,
    siglip,
    tecoa,
    text_bank,
    trades,
)


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


IDS = torch.tensor([0, 1])
NO_TEXTS = torch.full((2, 2), torch.nan)


def test_tecoa_is_the_cross_entropy_among_the_texts_of_all_classes(pairs: tuple[Tensor, Tensor]) -> None:
    images, classes = pairs
    labels = torch.tensor([3, 1, 1, 0, 5, 2])
    losses = tecoa(100.0, classes, torch.arange(6))(7 * images, NO_TEXTS, labels)  # any length of the embeddings
    torch.testing.assert_close(losses, F.cross_entropy(100 * images @ classes.T, labels, reduction="none"))


def test_tecoa_takes_one_text_a_class() -> None:
    with pytest.raises(ValueError, match="one text a class"):
        tecoa(100.0, torch.eye(3), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("bank", [torch.eye(3)[:1], torch.ones(4, 3)], ids=["one class", "one name"])
def test_a_bank_of_one_text_is_refused(bank: Tensor) -> None:
    ids = torch.arange(len(bank))
    for make in (text_bank, tecoa):
        with pytest.raises(UsageError, check=coded("one_text")):
            make(100.0, bank, ids)
    for without_ids in (divergence, agft):
        with pytest.raises(UsageError, check=coded("one_text")):
            without_ids(100.0, bank)
    assert text_bank(100.0, torch.eye(3), torch.arange(3)).name == "text-bank"


@pytest.mark.parametrize(
    ("ids", "texts", "part", "check"),
    [
        ([0], torch.eye(1), None, coded("one_pair", part=None)),
        ([0, 1], torch.eye(2), 1, coded("one_pair", part=1)),
        ([3, 3, 3], torch.eye(3), None, coded("one_concept", pairs=3)),
        ([0, 1, 2], torch.ones(3, 4), None, coded("one_text", pairs=3)),
    ],
)
def test_a_contrastive_batch_without_a_contrast_is_refused(
    ids: list[int], texts: Tensor, part: int | None, check: Any
) -> None:
    for objective in (clip(10.0), siglip(10.0, -10.0)):
        with pytest.raises(UsageError, check=check):
            refuse_degenerate(objective, torch.tensor(ids), texts, part=part)
    refuse_degenerate(fare(), torch.tensor(ids), texts, part=part)
    refuse_degenerate(clip(10.0), torch.arange(2), torch.eye(2))


def test_fare_is_a_sum_of_squares_of_embeddings_that_are_not_normalised() -> None:
    features = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    original = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    losses = fare()(features, NO_TEXTS, IDS, original=original)
    torch.testing.assert_close(losses, torch.tensor([2.0**2 + 1.0, 0.0]))  # not the mean over dimensions, 2.5


def test_divergence_is_kl_from_the_clean_answers() -> None:
    # Two texts at right angles, scale log 3: the clean image answers (3/4, 1/4), the attacked one (1/4, 3/4).
    bank, scale = torch.eye(2), math.log(3)
    losses = divergence(scale, bank)(torch.eye(2)[[1, 0]], NO_TEXTS, IDS, clean=torch.eye(2)[[0, 0]])
    expected = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    torch.testing.assert_close(losses, torch.tensor([expected, 0.0]))


def test_kl_is_the_divergence_of_the_first_from_the_second() -> None:
    first, second = torch.tensor([0.5, 0.5]).log()[None], torch.tensor([0.9, 0.1]).log()[None]
    torch.testing.assert_close(kl(first, second), torch.tensor([0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5)]))


def test_agft_is_the_cross_entropy_to_the_originals_softened_answers() -> None:
    # Scale log 9: the attacked image answers (1/10, 9/10). At temperature 2 the original answers (3/4, 1/4), as
    # sqrt(9) = 3, and (9/10, 1/10) at 1; lengths of embeddings do not count.
    bank, scale = torch.eye(2), math.log(9)
    attacked, original = 4 * bank[[1]], 7 * bank[[0]]
    for temperature, right in ((2.0, 0.75), (1.0, 0.9)):
        loss = agft(scale / 1.8, bank, temperature)(attacked, NO_TEXTS, IDS[:1], original=original)
        torch.testing.assert_close(loss, torch.tensor([-right * math.log(0.1) - (1 - right) * math.log(0.9)]))


def test_agft_at_temperature_zero_is_the_loss_of_the_originals_answer(pairs: tuple[Tensor, Tensor]) -> None:
    images, bank = pairs
    original = images.flip(0)
    answers = (original @ bank.T).argmax(1)  # where the original is right, the labels
    losses = agft(30.0, bank, 1e-6, sharpness=1.0)(
        images, NO_TEXTS, torch.zeros(6, dtype=torch.long), original=original
    )
    torch.testing.assert_close(losses, text_bank(30.0, bank, torch.arange(6))(images, NO_TEXTS, answers))


def test_agft_of_the_original_itself_is_its_entropy_and_has_no_gradient(pairs: tuple[Tensor, Tensor]) -> None:
    images, bank = pairs
    images = images.double().requires_grad_()
    losses = agft(5.0, bank, 1.0, sharpness=2.0)(images, NO_TEXTS, IDS, original=images.detach())
    answers = (10 * images @ bank.double().T).softmax(1)
    torch.testing.assert_close(losses, torch.distributions.Categorical(answers).entropy())
    losses.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() < 1e-12


def test_agfts_gradients_are_those_of_its_released_lines(pairs: tuple[Tensor, Tensor]) -> None:
    """With the README's logit_scale 180 and scale_ratio 0.4, of a CLIP of scale 100."""
    images, bank = (one.double() for one in pairs)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    agft(100.0, bank)(ours, NO_TEXTS, IDS, original=3 * images.flip(0)).mean().backward()
    y = (0.4 * 180.0 * images.flip(0) @ bank.T).softmax(dim=1)
    y_hat = 180.0 * (theirs / theirs.norm(dim=1, keepdim=True)) @ bank.T
    torch.nn.CrossEntropyLoss()(y_hat, y).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_trades_is_the_clean_loss_and_beta_times_the_divergence() -> None:
    bank, scale = torch.eye(2), math.log(3)
    named = text_bank(scale, bank, IDS)
    losses = trades(named, scale, bank, beta=6.0)(torch.eye(2)[[1, 1]], NO_TEXTS, IDS, clean=torch.eye(2))
    # Of the clean images both are right with 3/4; the first one's answers turn round, the second's stay.
    right, apart = -math.log(0.75), 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    torch.testing.assert_close(losses, torch.tensor([right + 6 * apart, right]))


def test_trades_sends_gradients_to_both_images() -> None:
    clean, attacked = torch.eye(2).requires_grad_(), torch.eye(2).flip(0).requires_grad_()
    bank = torch.eye(2)
    trades(text_bank(1.0, bank, IDS), 1.0, bank)(attacked, NO_TEXTS, IDS, clean=clean).sum().backward()
    assert clean.grad is not None
    assert attacked.grad is not None
    assert clean.grad.norm() > 0.1
    assert attacked.grad.norm() > 0.1


def test_the_regularisers_keep_an_image_near_the_original_and_near_its_clean_self() -> None:
    bank, scale = torch.eye(2), math.log(3)
    base = text_bank(scale, bank, IDS)
    here, there = torch.eye(2)[[0, 1]], torch.eye(2)[[1, 1]]
    seen = {"clean": 5 * here, "original_here": 2 * there}  # lengths do not count
    apart = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    expected = base(here, NO_TEXTS, IDS) + torch.tensor([3 * math.sqrt(2) + 2 * apart, 0.0])
    losses = anchored(base, features=3.0, logits=2.0, scale=scale, bank=bank)(here, NO_TEXTS, IDS, **seen)
    torch.testing.assert_close(losses, expected)


def test_without_a_bank_answers_are_among_the_captions() -> None:
    base, here, there = text_bank(1.0, torch.eye(2), IDS), torch.eye(2), torch.eye(2).flip(0)
    objective = anchored(base, features=0.0, scale=2.0)
    losses = objective(here, torch.eye(2), IDS, clean=here, original_here=there)
    torch.testing.assert_close(losses - base(here, torch.eye(2), IDS), kl(2 * here, 2 * there))
    assert objective.reads_texts
    assert not base.reads_texts


def test_what_an_objective_reads_must_be_given() -> None:
    with pytest.raises(ValueError, match="fare needs original, which this call lacks"):
        fare()(torch.eye(2), NO_TEXTS, IDS)


@pytest.mark.parametrize(
    "objective",
    [
        fare(),
        agft(5.0, torch.eye(2)),
        divergence(5.0, torch.eye(2)),
        trades(clip(5.0), 5.0, torch.eye(2)),
        anchored(clip(5.0), scale=5.0),
    ],
    ids=lambda objective: objective.name,
)
def test_new_losses_are_float32_under_autocast(objective: Objective) -> None:
    features, other = torch.tensor([[0.3, 0.7], [0.9, 0.2]]), torch.tensor([[0.1, 0.5], [0.4, 0.4]])
    seen = {"clean": other, "original": other.flip(0), "original_here": other.flip(1)}
    expected = objective(features, torch.eye(2), IDS, **seen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = objective(features, torch.eye(2), IDS, **seen)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
