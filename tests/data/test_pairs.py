"""Pairs of coloured things: what is drawn, what it is called, and what is held out."""

from __future__ import annotations

import pytest
import torch

from robustclip.data import emoji_batches
from robustclip.data import pairs as module
from robustclip.data.emoji_batches import DrawingsAndPairs, composition
from robustclip.data.pairs import (
    COLOURS,
    OBJECTS,
    Pair,
    PairBatches,
    Thing,
    compose_pair,
    compositional_prompts,
    draw_pair,
    tinted,
)
from robustclip.errors import UsageError, coded
from robustclip.runs.rng import generator

BUTTERFLY = "a yellow banana and a blue butterfly"


def test_a_pair_says_what_it_shows_and_is_read_back() -> None:
    pair = Pair.parse(BUTTERFLY)
    assert pair == Pair(Thing("yellow", "banana"), Thing("blue", "butterfly"))
    assert str(pair) == BUTTERFLY
    assert str(pair.swapped()) == "a blue banana and a yellow butterfly"
    assert str(Pair(Thing("orange", "key"), Thing(None, "anchor"))) == "an orange key and an anchor"


@pytest.mark.parametrize(
    "text", ["", "a cat", "a mauve cat and a red dog", "a red cat and a blue cat", "a red cat and"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, check=coded("not_a_pair", text=text)):
        Pair.parse(text)


def test_sixty_prompts_each_once_in_many_things_and_all_colours() -> None:
    prompts = compositional_prompts()
    assert len({pair.things for pair in prompts}) == 60
    assert str(prompts[0]) == BUTTERFLY
    things = [thing for pair in prompts for thing in (pair.first, pair.second)]
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.name for thing in things} == set(OBJECTS)
    assert all(pair.first.colour != pair.second.colour for pair in prompts)


def test_no_training_sees_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """With so few nouns and colours that one pair in two would be one."""
    monkeypatch.setattr(module, "OBJECTS", ("banana", "butterfly"))
    monkeypatch.setattr(module, "COLOURS", {"yellow": COLOURS["yellow"], "blue": COLOURS["blue"]})
    stream = generator(0, "test")
    drawn = {str(draw_pair(stream)) for _ in range(60)}
    assert "a blue banana and a yellow butterfly" in drawn
    assert not drawn & {BUTTERFLY, "a blue butterfly and a yellow banana"}


def test_a_split_without_the_nouns_is_refused() -> None:
    with pytest.raises(UsageError, check=coded("no_drawings", split="heldout-concepts")):
        PairBatches("heldout-concepts", 4)


def test_batches_are_pictures_with_their_captions() -> None:
    data = PairBatches("unseen-train", 6, seed=3)
    batch, again = data.batch(5), PairBatches("unseen-train", 3, seed=3).batch(10)
    assert torch.equal(batch.images[:3], again.images)
    assert batch.captions[:3] == again.captions
    assert batch.images.shape == (6, 3, 64, 64)
    assert 0 <= batch.images.min() < batch.images.max() <= 1
    for caption, swapped, pair in zip(batch.captions, batch.swapped, batch.pairs, strict=True):
        for thing in (pair.first, pair.second):
            assert str(thing) in caption
        assert str(pair.swapped().first) in swapped
    assert not torch.equal(data.batch(6).images, batch.images)


def test_each_thing_has_its_colour() -> None:
    """Where a picture on white is red and where it is green, both things are found."""
    pair = Pair(Thing("red", "heart"), Thing("green", "apple"))
    image = next(
        one
        for number in range(20)
        if (one := compose_pair(pair, split="unseen-train", number=number))[:, 0].eq(1).all()
    )
    red, green, _ = image
    assert ((red - green) > 0.4).float().mean() > 0.03
    assert ((green - red) > 0.2).float().mean() > 0.03


def test_a_tint_keeps_shape_and_light() -> None:
    drawing = torch.cat([torch.linspace(0, 1, 5).expand(3, 1, 5), torch.tensor([[[0.0, 0.2, 0.5, 0.9, 1.0]]])])
    found = tinted(drawing, "blue")
    assert torch.equal(found[3], drawing[3])
    light = found[:3].sum(0)[0]
    assert (light.diff() > 0).all()
    assert (found[2] > found[0]).all()


def test_a_mask_tells_the_first_thing_from_the_second() -> None:
    """By the mean colour of each thing's pixels, which is nearer to its own colour than to the other's."""
    batch = PairBatches("guide-styles", 40).batch(0)
    right = []
    for image, mask, pair in zip(batch.images, batch.masks, batch.pairs, strict=True):
        assert mask.unique().tolist() == [0, 1, 2]
        for number, (own, other) in enumerate(((pair.first, pair.second), (pair.second, pair.first)), start=1):
            if own.colour and other.colour:
                mean = image[:, mask == number].mean(1)
                far, near = (mean.dist(torch.tensor(COLOURS[one.colour])) for one in (other, own) if one.colour)
                right.append(bool(near < far))
    assert len(right) > 40
    assert sum(right) / len(right) > 0.95


def test_compositions_come_among_them_without_the_held_out_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DrawingsAndPairs("guide-styles", 16, single=0.25, composed=0.5)
    batch = data.labelled(1)
    assert len(batch.captions) == len(batch.swapped) == len(batch.phrases) == len(batch.masks) == 16
    assert data.describe()["compositions"] == 8
    for caption, phrases, mask in zip(batch.captions[:12], batch.phrases, batch.masks, strict=False):
        assert all(phrase in caption for phrase in phrases)
        assert set(mask.unique().tolist()) == set(range(len(phrases) + 1))
    assert batch.phrases[12:] == [[]] * 4
    scene = composition(3, "guide-styles", 0)
    shown = Pair(*(Thing(item.colour, item.noun) for item in scene.items[:2]))
    monkeypatch.setattr(emoji_batches, "compositional_prompts", lambda: [shown])
    other = composition(3, "guide-styles", 0)
    assert other.category == scene.category
    assert not shown.things <= {Thing(item.colour, item.noun) for item in other.items}


def test_single_drawings_come_among_them() -> None:
    data = DrawingsAndPairs("guide-styles", 8, single=0.25)
    batch = data.labelled(0)
    assert batch.images.shape == (8, 3, 64, 64)
    assert [text is None for text in batch.swapped] == [False] * 6 + [True] * 2
    alone = DrawingsAndPairs("guide-styles", 8, single=0.0)
    assert None not in alone.labelled(0).swapped
    assert alone.describe()["drawings"] is None
    torch.testing.assert_close(data.batch(0)[0], batch.images)
