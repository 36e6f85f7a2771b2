"""Training batches of the emoji set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from robustclip.data import load_split
from robustclip.data.emoji_batches import Augmentation, Draws, EmojiBatches, augment, has_sides
from robustclip.errors import UsageError, coded
from robustclip.runs.processes import Place

NO_AUGMENTATION = Augmentation(0.0, (1.0, 1.0), 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
SPLIT = "judge-heldback"  # the smallest, 400 images


@pytest.fixture(scope="module")
def source() -> EmojiBatches:
    return EmojiBatches(SPLIT, batch_size=48, seed=3)


def checker(count: int) -> torch.Tensor:
    """Opaque drawings whose left half is red and right half blue, both dull so that light can change them."""
    drawing = torch.full((count, 4, 64, 64), 50, dtype=torch.uint8)
    drawing[:, 0, :, :32] = 200
    drawing[:, 2, :, 32:] = 200
    drawing[:, 3] = 255
    return drawing


def test_rows_are_the_drawings_that_are_taken(source: EmojiBatches) -> None:
    few = EmojiBatches(SPLIT, batch_size=3, seed=3, rows=[7, 2, 9])
    assert len(few) == 3
    assert sorted(few.batch(0).ids) == sorted(source.samples.ids[row] for row in (7, 2, 9))


def test_batch_is_a_function_of_seed_and_index(source: EmojiBatches) -> None:
    again = EmojiBatches(SPLIT, batch_size=48, seed=3)
    later = next(again.batches(start=5))
    source.batch(0)
    batch = source.batch(5)
    assert torch.equal(batch.images, later.images)
    assert (batch.captions, batch.ids) == (later.captions, later.ids)
    assert EmojiBatches(SPLIT, batch_size=48, seed=4).batch(5).ids != batch.ids
    assert source.batch(6).ids != batch.ids


def test_every_image_once_an_epoch_also_across_batches(source: EmojiBatches) -> None:
    n = len(source)
    ids = [id_ for k in range(3 * n // 48 + 1) for id_ in source.batch(k).ids]
    first, second = ids[:n], ids[n : 2 * n]
    assert sorted(first) == sorted(second) == sorted(source.samples.ids)
    assert first != second


def test_a_batch_may_be_larger_than_the_set(source: EmojiBatches) -> None:
    batch = EmojiBatches(SPLIT, batch_size=900, seed=0, augmentation=NO_AUGMENTATION).batch(1)
    assert len(batch) == 900
    assert max(Counter(batch.ids).values()) <= 4


def test_pairs_fit_together(source: EmojiBatches) -> None:
    batch = source.batch(2)
    assert batch.images.shape == (48, 3, 64, 64)
    assert batch.images.dtype == torch.float32
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    for caption, concept, id_ in zip(batch.captions, batch.positives.tolist(), batch.ids, strict=True):
        row = source.samples.ids.index(id_)
        assert caption in source.samples.captions[row]
        assert concept == source.samples.labels[row]


def test_all_forms_of_caption_come(source: EmojiBatches) -> None:
    captions = [caption for k in range(25) for caption in source.batch(k).captions]
    forms = Counter(caption.split(" of ")[0] for caption in captions)
    assert forms["an emoji"] > 50
    assert forms["a drawing"] > 50
    assert sum(caption in source.samples.label_names for caption in captions) > 50


def test_without_augmentation_the_images_are_those_on_white() -> None:
    source = EmojiBatches(SPLIT, batch_size=32, seed=0, augmentation=NO_AUGMENTATION)
    images = load_split("emoji", SPLIT)
    batch = source.batch(0)
    rows = [images.ids.index(id_) for id_ in batch.ids]
    torch.testing.assert_close(batch.images, images.images[rows], atol=1e-5, rtol=0)


def test_backgrounds_and_places_vary(source: EmojiBatches) -> None:
    corners = torch.cat([source.batch(k).images[:, :, 0, 0] for k in range(8)])
    assert len(corners.unique(dim=0)) > 100
    still = replace(NO_AUGMENTATION, white=0.25)
    corners = EmojiBatches(SPLIT, batch_size=400, seed=0, augmentation=still).batch(0).images[:, :, 0, 0]
    white = (corners == 1).all(1).float().mean()
    assert 0.15 < white < 0.5  # a quarter, and drawings that are white in the corner


def draws(count: int) -> Draws:
    return Draws(count, torch.Generator().manual_seed(0))


def test_drawings_are_mirrored_unless_they_have_sides() -> None:
    always = replace(NO_AUGMENTATION, flip=1.0)
    handed = torch.tensor([False, True])
    images = augment(checker(2), always, draws(2), handed=handed)
    assert images[0, 2, 32, 5] > 0.7  # blue on the left: mirrored
    assert images[1, 0, 32, 5] > 0.7  # red on the left: kept


@pytest.mark.parametrize(
    ("label", "sided"),
    [
        ("right arrow", True),
        ("backhand index pointing left", True),
        ("OK button", True),
        ("woman running facing right", True),
        ("down-left arrow", True),
        ("turtle", False),
        ("a bright idea", False),
    ],
)
def test_labels_tell_what_has_sides(label: str, sided: bool) -> None:
    assert has_sides(label) == sided


@pytest.mark.parametrize(
    "change",
    [
        {"rotation": 40.0},
        {"scale": (0.5, 0.5)},
        {"translation": 0.2},
        {"brightness": 0.5},
        {"contrast": 0.5},
        {"saturation": 0.5},
        {"cast": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_augmentation_changes_the_image(change: dict[str, Any]) -> None:
    plain = augment(checker(8), NO_AUGMENTATION, draws(8))
    changed = augment(checker(8), replace(NO_AUGMENTATION, **change), draws(8))
    assert ((plain - changed).abs().amax((1, 2, 3)) > 0.005).all()


def test_scale_is_relative_to_the_drawing() -> None:
    half = augment(checker(1), replace(NO_AUGMENTATION, scale=(0.5, 0.5)), draws(1))
    assert (half[0].amin(0) < 0.5).sum() == pytest.approx(32 * 32, abs=130)


def test_describes_itself_for_the_run_folder(source: EmojiBatches) -> None:
    described = source.describe()
    assert described["split"] == SPLIT
    assert described["samples"] == 400
    assert described["concepts"] == 200
    assert described["augmentation"]["rotation"] == Augmentation().rotation
    assert source.faults == Counter()


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_rows_of_the_very_batch(source: EmojiBatches, world_size: int) -> None:
    whole = source.batch(9)  # runs over the end of an epoch
    for rank in range(world_size):
        place = Place(rank, world_size)
        part = next(EmojiBatches(SPLIT, batch_size=48, seed=3, place=place).batches(9))
        mine = slice(rank, None, world_size)
        assert torch.equal(part.images, whole.images[mine])
        assert torch.equal(part.positives, whole.positives[mine])
        assert (part.captions, part.ids) == (whole.captions[mine], whole.ids[mine])


def test_faults_of_the_call_speak() -> None:
    with pytest.raises(UsageError, check=coded("out_of_range", argument="batch_size", given=0)):
        EmojiBatches(SPLIT, batch_size=0, seed=0)
    with pytest.raises(UsageError, check=coded("not_divisible", given=50, near="48 or 52")):
        EmojiBatches(SPLIT, batch_size=50, seed=0, place=Place(0, 4))
    with pytest.raises(UsageError, match=r"use batch_size=4$"):
        EmojiBatches(SPLIT, batch_size=3, seed=0, place=Place(0, 4))
    with pytest.raises(UsageError, match='did you mean "guide-styles"'):
        EmojiBatches("guide-style", batch_size=8, seed=0)
