from __future__ import annotations

import pytest
import torch

from robustclip.errors import UsageError, coded
from robustclip.evaluation.zeroshot import Candidates, predictions, ranks
from robustclip.referees.similarity import all_cosines, class_embeddings


def test_ranks_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.3, 0.4]])

    assert ranks(scores, torch.tensor([0, 2, 1])).tolist() == [0, 2, 1]


def test_ties_and_nan_count_against_the_referee() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.5], [float("nan")] * 3, [0.5, float("nan"), 0.1]])

    assert ranks(scores, torch.tensor([0, 0, 0])).tolist() == [2, 2, 1]


def test_the_first_answers_are_kept() -> None:
    found = predictions(torch.tensor([[0.1, 0.9, 0.5, 0.3, 0.2, 0.0, 0.8]]), torch.tensor([2]))

    assert found.top.tolist() == [[1, 6, 2, 3, 4]]
    assert found.ranks.tolist() == [2]


def test_images_are_named_by_the_nearest_text(colour_referee, plain) -> None:
    referee = colour_referee()
    classes = class_embeddings(referee, ["red", "green", "blue"])
    images = plain((0.8, 0.1, 0.0), (0.2, 0.3, 0.1), (0.3, 0.2, 0.1))

    scores = all_cosines(referee, images, classes, batch_size=2)

    torch.testing.assert_close(scores[0], torch.tensor([0.8, 0.1, 0.0]) / 0.65**0.5)
    assert predictions(scores, torch.tensor([0, 1, 2])).ranks.tolist() == [0, 0, 2]


def test_batches_change_nothing(colour_referee) -> None:
    referee = colour_referee()
    images = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    classes = class_embeddings(referee, ["red", "green"])

    one = all_cosines(referee, images, classes, batch_size=7)
    torch.testing.assert_close(all_cosines(referee, images, classes, batch_size=3), one)


def test_cosines_stay_float32_where_the_tower_is_bfloat16(colour_referee, plain) -> None:
    words = {"nearly": (1.0, 0.001, 0.0), "exactly": (1.0, 0.0, 0.0)}  # bfloat16 cannot tell them apart
    referee = colour_referee(words=words)
    classes = class_embeddings(referee, list(words))

    scores = all_cosines(referee, plain((1.0, 0.0, 0.0)), classes, batch_size=1, dtype=torch.bfloat16)

    assert scores.dtype == torch.float32
    assert predictions(scores, torch.tensor([1])).ranks.tolist() == [0]


def test_candidates_are_all_labels_or_those_present() -> None:
    labels = torch.tensor([3, 1, 3])
    names = ["ant", "bee", "cow", "dog"]

    everything = Candidates.among(names, labels)
    present = Candidates.among(names, labels, present_only=True)

    assert (everything.names, everything.targets.tolist()) == (names, [3, 1, 3])
    assert (present.names, present.targets.tolist()) == (["bee", "dog"], [1, 0, 1])


def test_labels_of_one_name_are_one_candidate() -> None:
    found = Candidates.among(["crane", "bee", "crane"], torch.tensor([0, 1, 2]))

    assert found.names == ["crane", "bee"]
    assert found.targets.tolist() == [0, 1, 0]


def test_a_label_without_a_name_is_refused() -> None:
    with pytest.raises(UsageError, check=coded("too_few_names", labels=3, names=2)):
        Candidates.among(["ant", "bee"], torch.tensor([0, 2]))


@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_a_number_of_candidates_has_the_right_ones_among_them(count: int) -> None:
    names = ["ant", "bee", "cow", "dog", "bee", "eel", "fox", "gnu"]
    labels = torch.tensor([4, 7, 1])

    found = Candidates.among(names, labels, count=count, seed=3)

    assert len(set(found.names)) == len(found.names) == count
    assert [found.names[target] for target in found.targets] == ["bee", "gnu", "bee"]
    assert found.names == sorted(found.names)  # in the set's order
    assert Candidates.among(names, labels, count=count, seed=3).names == found.names
    others = {tuple(Candidates.among(names, labels, count=count, seed=seed).names) for seed in range(20)}
    assert (len(others) > 1) == (2 < count < 7)


def test_a_number_of_candidates_that_does_not_fit() -> None:
    names, labels = ["ant", "bee", "cow"], torch.tensor([0, 1])

    with pytest.raises(UsageError, check=coded("too_few_labels", labels=1, least=2)):
        Candidates.among(names, labels, count=1)
    with pytest.raises(UsageError, check=coded("too_many_labels", labels=4, most=3)):
        Candidates.among(names, labels, count=4)
