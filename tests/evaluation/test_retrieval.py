"""Recalls that a pencil can check."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustclip.attacks import AttackSpec
from robustclip.errors import UsageError, coded
from robustclip.evaluation.retrieval import Gallery, Recall, best_ranks, recall, retrieve_under_attack
from robustclip.referees.similarity import all_cosines, embed_texts

#        captions:   cat   kitten  dog   bird
SCORES = [
    [0.9, 0.8, 0.3, 0.1],  # a cat, "cat" and "kitten": first
    [0.2, 0.7, 0.6, 0.5],  # a dog, "dog": second, after "kitten"
    [0.8, 0.7, 0.6, 0.4],  # a bird, "bird": last
]
CAPTIONS = [["cat", "kitten"], ["dog"], ["bird"]]


def under_attack(referee, images: Tensor, gallery: Gallery, spec: str, *, batch_size: int) -> Recall:
    texts = embed_texts(referee, gallery.captions)
    clean = all_cosines(referee, images, texts, batch_size=batch_size)
    return retrieve_under_attack(
        referee, images, gallery, texts, AttackSpec.parse(spec), clean=clean, batch_size=batch_size, seed=0
    )


def test_recall_by_pencil() -> None:
    gallery = Gallery.of(CAPTIONS)

    found = recall(torch.tensor(SCORES), gallery.matches)

    assert gallery.captions == ["cat", "kitten", "dog", "bird"]
    assert found.image_to_text.tolist() == [0, 1, 3]
    # "cat" finds the cat first; "kitten" too; "dog" ties between dog and bird, which counts against it; "bird" comes
    # after the dog.
    assert found.text_to_image.tolist() == [0, 0, 1, 1]


def test_a_caption_of_two_images_is_one_caption_with_two_right_answers() -> None:
    gallery = Gallery.of([["a smile"], ["a smile", "joy"]])

    assert gallery.captions == ["a smile", "joy"]
    assert gallery.matches.tolist() == [[True, False], [True, True]]
    # "a smile" is right with either image; "joy" only with the second, which comes second.
    assert recall(torch.tensor([[0.1, 0.9], [0.5, 0.2]]), gallery.matches).text_to_image.tolist() == [0, 1]


def test_other_right_answers_are_not_in_the_way() -> None:
    matches = torch.tensor([[True, True, True, False]])

    assert best_ranks(torch.tensor([[0.7, 0.8, 0.9, 0.6]]), matches).tolist() == [0]
    assert best_ranks(torch.tensor([[0.1, 0.2, 0.3, 0.6]]), matches).tolist() == [1]


def test_nan_finds_nothing() -> None:
    assert best_ranks(torch.full((1, 4), float("nan")), torch.eye(4, dtype=torch.bool)[:1]).tolist() == [3]


def test_an_image_without_a_caption_is_named() -> None:
    with pytest.raises(UsageError, check=coded("no_caption", image=1)):
        Gallery.of([["cat"], []])


@pytest.mark.parametrize(("eps", "ranks"), [(1.1, [0, 0]), (1.2, [1, 1])])
def test_images_are_moved_away_from_their_own_captions(colour_referee, plain, eps: float, ranks: list[int]) -> None:
    # As in test_robustness: each image prefers its own caption by a margin that is lost at a distance of 1.131.
    referee = colour_referee(words={"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0)})
    images = plain((0.6, 0.4, 0.0), (0.4, 0.6, 0.0))
    gallery = Gallery.of([["red"], ["green"]])
    texts = embed_texts(referee, gallery.captions)

    clean = recall(all_cosines(referee, images, texts, batch_size=2), gallery.matches)
    attacked = under_attack(referee, images, gallery, f"l2:{eps}@40", batch_size=2)

    assert clean.image_to_text.tolist() == clean.text_to_image.tolist() == [0, 0]
    assert attacked.image_to_text.tolist() == ranks
    assert attacked.text_to_image.tolist() == ranks


def test_restarts_keep_the_worst(colour_referee) -> None:
    referee = colour_referee()
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    gallery = Gallery.of([[name] for name in ["red", "green", "blue"] * 4])

    once, twice = (under_attack(referee, images, gallery, spec, batch_size=5) for spec in ("l2:0.3@2", "l2:0.3@2x2"))
    assert bool((twice.image_to_text >= once.image_to_text).all())
    assert bool((twice.text_to_image >= once.text_to_image).all())


@pytest.mark.parametrize(("eps", "rank"), [(3.0, 0), (3.3, 1)])
def test_captions_find_other_images_under_an_attack_of_their_own(colour_referee, plain, eps: float, rank: int) -> None:
    # "red" is right for both images, so only "green" can be lost. The first image is 33.7 degrees from green, the
    # second 66.8. To pass it the first, of length 0.721, must turn by 33.1: an L2 distance of 8 * 0.721 * sin(33.1) =
    # 3.15 over 64 pixels. The second, which has no caption to lose, stays: turned towards green, as an attack on its
    # captions turns it, it would need 3.33.
    referee = colour_referee(words={"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0)})
    gallery = Gallery.of([["red", "green"], ["red"]])

    attacked = under_attack(referee, plain((0.4, 0.6, 0.0), (0.7, 0.3, 0.0)), gallery, f"l2:{eps}@60", batch_size=2)

    assert attacked.text_to_image.tolist() == [0, rank]
    assert attacked.image_to_text.tolist() == [0, 1]


def test_an_attack_on_logits_has_none_here(colour_referee, plain) -> None:
    with pytest.raises(UsageError, check=coded("not_pgd", instead="l2:1@20")):
        under_attack(colour_referee(), plain((0.6, 0.4, 0.0)), Gallery.of([["red"]]), "l2:1@apgd-ce", batch_size=2)
