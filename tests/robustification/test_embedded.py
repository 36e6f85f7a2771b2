"""What the emoji recipes share: each objective by its name, and a probe of distinct concepts."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from robustclip.data.emoji_batches import EmojiBatches
from robustclip.referees.toy import toy_referee
from robustclip.robustification.embedded import ObjectiveName, emoji_objective, emoji_probe


@pytest.fixture(scope="module")
def data() -> EmojiBatches:
    return EmojiBatches("judge-heldback", batch_size=16, seed=0)


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_an_image_that_is_its_text_is_nearer_than_one_that_is_not(name: ObjectiveName, data: EmojiBatches) -> None:
    referee = toy_referee()
    objective = emoji_objective(name, referee, data)
    assert objective.name == name
    ids = data.samples.labels.unique()[:8]
    texts = referee.embed_texts([data.samples.label_names[label] for label in ids.tolist()])
    right, wrong = objective(texts, texts, ids), objective(texts.roll(1, 0), texts, ids)
    assert right.shape == (8,)
    assert (right < wrong).all()


def test_the_probe_shows_each_concept_once_and_calls_it_by_its_name(data: EmojiBatches) -> None:
    probe = emoji_probe(data, size=20)
    assert len(probe) == len(probe.positives.unique()) == len(probe.captions)
    assert probe.captions == [data.samples.label_names[label] for label in probe.positives.tolist()]
    assert not torch.equal(probe.images[0], data.batch(0).images[0])
