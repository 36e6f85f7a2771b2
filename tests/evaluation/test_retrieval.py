"""Recalls that a pencil can check."""

from __future__ import annotations

import pytest
import torch

from robustclip.attacks import AttackSpec
from robustclip.errors import UsageError
from robustclip.evaluation.retrieval import Gallery, best_ranks, recall, retrieve_under_attack
from robustclip.evaluation.similarity import all_cosines
from robustclip.evaluation.templates import embed_texts

#        captions:   cat   kitten  dog   bird
SCORES = [
    [0.9, 0.8, 0.3, 0.1],  # a cat, "cat" and "kitten": first
    [0.2, 0.7, 0.6, 0.5],  # a dog, "dog": second, after "kitten"
    [0.8, 0.7, 0.6, 0.4],  # a bird, "bird": last
]
CAPTIONS = [["cat", "kitten"], ["dog"], ["bird"]]


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
    with pytest.raises(UsageError, match="image 1 has no caption"):
        Gallery.of([["cat"], []])


@pytest.mark.parametrize(("eps", "ranks"), [(1.1, [0, 0]), (1.2, [1, 1])])
def test_images_are_moved_away_from_their_own_captions(colour_referee, plain, eps: float, ranks: list[int]) -> None:
    # As in test_robustness: each image prefers its own caption by a margin that is lost at a distance of 1.131.
    referee = colour_referee(words={"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0)})
    images = plain((0.6, 0.4, 0.0), (0.4, 0.6, 0.0))
    gallery = Gallery.of([["red"], ["green"]])
    texts = embed_texts(referee, gallery.captions)

    clean = recall(all_cosines(referee, images, texts, batch_size=2), gallery.matches)
    attacked = retrieve_under_attack(
        referee, images, gallery, texts, AttackSpec.parse(f"l2:{eps}@40"), batch_size=2, seed=0
    )

    assert clean.image_to_text.tolist() == clean.text_to_image.tolist() == [0, 0]
    assert attacked.image_to_text.tolist() == ranks
    assert attacked.text_to_image.tolist() == ranks


def test_restarts_keep_the_worst(colour_referee) -> None:
    referee = colour_referee()
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    gallery = Gallery.of([[name] for name in ["red", "green", "blue"] * 4])
    texts = embed_texts(referee, gallery.captions)

    def attacked(spec: str):
        return retrieve_under_attack(referee, images, gallery, texts, AttackSpec.parse(spec), batch_size=5, seed=0)

    once, twice = attacked("l2:0.3@2"), attacked("l2:0.3@2x2")
    assert bool((twice.image_to_text >= once.image_to_text).all())
    assert bool((twice.text_to_image >= once.text_to_image).all())
