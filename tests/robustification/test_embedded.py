"""What the emoji recipes share: each objective by its name, and a probe of distinct concepts."""

from __future__ import annotations

import pytest
import torch

from robustclip.data.emoji_batches import EmojiBatches
from robustclip.errors import UsageError, coded
from robustclip.referees.toy import toy_referee
from robustclip.robustification.embedded import (
    CLASS_TEMPLATE,
    AttackName,
    ObjectiveName,
    emoji_objective,
    emoji_objectives,
    emoji_probe,
    fresh_referee,
    refuse_sizes,
)


def test_sizes_that_a_tower_does_not_take_are_refused() -> None:
    vit, cnn = (fresh_referee("new", tower) for tower in ("vit_mini_patch8", "resnet10t"))
    refuse_sizes(vit, [64], "emoji")
    refuse_sizes(vit, [], "icons")
    refuse_sizes(cnn, [48, 96], "icons")
    for sizes, dataset in (([48, 64], "emoji"), ([64], "icons")):
        with pytest.raises(UsageError, check=coded("other_size", size=48 if 48 in sizes else 96)):
            refuse_sizes(vit, sizes, dataset)


@pytest.fixture(scope="module")
def data() -> EmojiBatches:
    return EmojiBatches("judge-heldback", batch_size=16, seed=0)


@pytest.mark.parametrize("name", ["text-bank", "clip", "siglip", "tecoa"])
def test_an_image_that_is_its_text_is_nearer_than_one_that_is_not(name: ObjectiveName, data: EmojiBatches) -> None:
    referee = toy_referee()
    objective = emoji_objective(name, referee, data)
    assert objective.name == name
    ids = data.samples.labels.unique()[:8]
    names = [data.samples.label_names[label] for label in ids.tolist()]
    texts = referee.embed_texts([CLASS_TEMPLATE.format(one) if name == "tecoa" else one for one in names])
    right, wrong = objective(texts, texts, ids), objective(texts.roll(1, 0), texts, ids)
    assert right.shape == (8,)
    assert (right < wrong).all()


@pytest.mark.parametrize(
    ("name", "attack", "update", "climbed"),
    [
        ("trades", "same", "trades of text-bank", "divergence"),
        ("trades", "text-bank", "trades of text-bank", "text-bank"),
        ("fare", "same", "fare", "fare"),
        ("agft", "same", "agft", "agft"),
        ("clip", "agft", "clip", "agft"),
        ("text-bank", "divergence", "text-bank", "divergence"),
        ("clip", "fare", "clip", "fare"),
    ],
)
def test_attack_and_update_are_chosen_apart(
    name: ObjectiveName, attack: AttackName, update: str, climbed: str, data: EmojiBatches
) -> None:
    found = emoji_objectives(name, toy_referee(), data, attack=attack)
    assert (found[0].name, found[1].name) == (update, climbed)


def test_the_targets_of_agft_are_as_soft_as_asked_in_attack_and_update(data: EmojiBatches) -> None:
    """Of an image that is one of the texts; the softer its target, the further from it."""
    referee, ids = toy_referee(), data.samples.labels.unique()[:1]
    image = referee.embed_texts([data.samples.label_names[int(ids)]])
    losses = [
        [float(one(image, image, ids, original=image)) for one in emoji_objectives("agft", referee, data, **given)]
        for given in ({"temperature": 1.0}, {})
    ]
    assert losses[0][0] == losses[0][1] < losses[1][0] == losses[1][1]


def test_an_anchor_is_of_the_update_only(data: EmojiBatches) -> None:
    update, climbed = emoji_objectives("text-bank", toy_referee(), data, anchor=0.5)
    assert (update.name, climbed.name) == ("anchored text-bank", "text-bank")
    assert not update.reads_texts  # answers are among the names of the bank, as those of the loss


def test_the_probe_shows_each_concept_once_and_calls_it_by_its_name(data: EmojiBatches) -> None:
    probe = emoji_probe(data, size=20)
    assert len(probe) == len(probe.positives.unique()) == len(probe.captions)
    assert probe.captions == [data.samples.label_names[label] for label in probe.positives.tolist()]
    assert not torch.equal(probe.images[0], data.batch(0).images[0])
