"""Compositions: what their captions claim is true of the picture."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch

from robustclip.data.composing import SHAPES, TEXTURES, shape, tinted
from robustclip.data.compositions import (
    BACKGROUNDS,
    CATEGORIES,
    RATIO,
    SPOKEN,
    Composition,
    compose,
    phrase,
    plural,
    relations,
    sprites,
)
from robustclip.data.pairs import COLOURS
from robustclip.errors import UsageError, coded

SPLIT = "judge-heldback"  # the smallest, of all styles
EACH = 36  # scenes of each category


@pytest.fixture(scope="module")
def scenes() -> list[Composition]:
    return [compose(number, SPLIT, seed=7) for number in range(EACH * len(CATEGORIES))]


def extent(scene: Composition, numbers: list[int]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of these drawings in the mask."""
    rows, columns = torch.isin(scene.mask, torch.tensor(numbers, dtype=torch.uint8)).nonzero().T
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def longer_side(box: tuple[int, int, int, int]) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def drawings_of(scene: Composition) -> list[list[int]]:
    """The numbers in the mask of each item's drawings."""
    numbers = iter(range(1, 256))
    return [[next(numbers) for _ in item.boxes] for item in scene.items]


def nearest_colour(pixels: torch.Tensor) -> str:
    names = list(COLOURS)
    distances = (torch.tensor([COLOURS[name] for name in names]) - pixels.mean(1)).norm(dim=1)
    return names[int(distances.argmin())]


def test_all_categories_are_there_and_a_scene_has_one_to_four_things(scenes: list[Composition]) -> None:
    assert Counter(scene.category for scene in scenes) == dict.fromkeys(CATEGORIES, EACH)
    assert {len(scene.items) for scene in scenes} == {1, 2, 3, 4}
    for scene in scenes:
        assert scene.image.shape == (3, 96, 96)
        assert scene.image.dtype == torch.float32
        assert 0 <= scene.image.min() <= scene.image.max() <= 1


def test_boxes_counts_and_masks_agree(scenes: list[Composition]) -> None:
    for scene in scenes:
        assert scene.mask.unique().tolist() == list(range(sum(item.count for item in scene.items) + 1)), scene.caption
        for item, numbers in zip(scene.items, drawings_of(scene), strict=True):
            assert [extent(scene, [number]) for number in numbers] == list(item.boxes), scene.caption
        counts = {atom.item: int(atom.value) for atom in scene.atoms if atom.kind == "count"}
        assert counts == {number: item.count for number, item in enumerate(scene.items) if item.count > 1}


def test_colours_are_those_of_the_pixels(scenes: list[Composition]) -> None:
    claimed = 0
    for scene in scenes:
        for atom in scene.atoms:
            if atom.kind == "colour":
                numbers = torch.tensor(drawings_of(scene)[atom.item], dtype=torch.uint8)
                assert nearest_colour(scene.image[:, torch.isin(scene.mask, numbers)]) == atom.value, scene.caption
                claimed += 1
    assert claimed > 50


def test_sizes_and_relations_are_those_of_the_mask(scenes: list[Composition]) -> None:
    seen: set[str] = set()
    for scene in scenes:
        boxes = [extent(scene, numbers) for numbers in drawings_of(scene)]
        sides = [longer_side(box) for box in boxes]
        alone = [[longer_side(extent(scene, [one])) for one in numbers] for numbers in drawings_of(scene)]
        sized = {atom.value: alone[atom.item] for atom in scene.atoms if atom.kind == "size"}
        if len(sized) == 2:
            assert min(sized["large"]) > RATIO * max(sized["small"])
        for atom in scene.atoms:
            if atom.other is None:
                continue
            (top, left, bottom, right), other = boxes[atom.item], boxes[atom.other]
            ratio = sides[atom.item] / sides[atom.other]
            holds = {
                "left": right <= other[1],
                "right": left >= other[3],
                "above": bottom <= other[0],
                "below": top >= other[2],
                "bigger": ratio >= RATIO,
                "smaller": ratio <= 1 / RATIO,
                "inside": top > other[0] and left > other[1] and bottom < other[2] and right < other[3],
            }
            assert holds[atom.value], scene.caption
            seen.add(atom.value)
    assert seen == set(SPOKEN)


def test_textures_are_drawing_styles(scenes: list[Composition]) -> None:
    found = set()
    for scene in scenes:
        for atom in scene.atoms:
            if atom.kind == "texture":
                styles = {drawing.partition("-")[2] for drawing in scene.items[atom.item].drawings}
                assert any(name.endswith(TEXTURES[atom.value]) for name in styles), (styles, atom)
                found.add(atom.value)
    assert found == set(sprites(SPLIT).textures)
    assert len(found) >= 2


def test_shapes_fill_as_much_of_their_box_as_geometry_says(scenes: list[Composition]) -> None:
    filled = {"circle": torch.pi / 4, "square": 1.0, "triangle": 0.5, "diamond": 0.5}
    found = set()
    for scene in scenes:
        for atom in scene.atoms:
            if atom.kind == "shape" and not any(one.value == "inside" for one in scene.atoms):
                [number] = drawings_of(scene)[atom.item]
                top, left, bottom, right = extent(scene, [number])
                share = float((scene.mask == number).sum()) / ((bottom - top) * (right - left))
                assert share == pytest.approx(filled[atom.value], abs=0.06)
                found.add(atom.value)
    assert found == set(SHAPES)


def test_named_backgrounds_are_those_of_the_corners_and_none_is_claimed_unseen(scenes: list[Composition]) -> None:
    named = [scene for scene in scenes if scene.atoms[-1].kind == "background"]
    assert 0.2 < len(named) / len(scenes) < 0.6
    for scene in named:
        background = scene.image[:, scene.mask == 0].median(dim=1).values
        torch.testing.assert_close(background, torch.tensor(BACKGROUNDS[scene.atoms[-1].value]), atol=1e-3, rtol=0)


def test_captions_say_all_atoms_and_nothing_else(scenes: list[Composition]) -> None:
    words_of_colour = set(COLOURS)
    for scene in scenes:
        for item in scene.items:
            assert str(item) in scene.caption
        told = [SPOKEN[atom.value] for atom in scene.atoms if atom.other is not None]
        assert all(words in scene.caption for words in told)
        bare = scene.caption.partition(" on a ")[0]
        claimed = {atom.value for atom in scene.atoms if atom.kind == "colour"}
        assert words_of_colour & set(bare.replace(",", "").split()) - claimed <= {item.noun for item in scene.items}
        assert all(scene.question(atom).endswith("?") for atom in scene.atoms)


def test_a_composition_is_a_function_of_its_number_split_and_seed() -> None:
    again, alone = compose(13, SPLIT, seed=2), compose(13, SPLIT, seed=2)
    assert alone.caption == again.caption
    assert torch.equal(alone.image, again.image)
    assert torch.equal(alone.mask, again.mask)
    assert not torch.equal(compose(13, SPLIT, seed=3).image, alone.image)
    assert compose(13, SPLIT, size=64).image.shape == (3, 64, 64)


def test_questions() -> None:
    scene = next(scene for n in range(3, 200, 7) if len((scene := compose(n, SPLIT)).atoms) > 2)
    relation = next(atom for atom in scene.atoms if atom.kind == "spatial")
    first, second = (scene.items[number].noun for number in (relation.item, relation.other or 0))
    asked = scene.question(relation)
    assert first in asked
    assert asked.index(first) < asked.index(SPOKEN[relation.value]) < asked.rindex(second)


@pytest.mark.parametrize(
    ("box", "other", "true"),
    [
        ((0, 0, 10, 10), (0, 10, 10, 20), ["left"]),
        ((0, 12, 10, 20), (3, 0, 9, 10), ["right"]),
        ((0, 0, 10, 10), (30, 5, 40, 15), ["above"]),
        ((30, 0, 40, 10), (0, 0, 10, 10), ["below"]),
        ((0, 0, 10, 10), (20, 20, 30, 30), ["left", "above"]),
        ((0, 0, 10, 10), (5, 5, 15, 15), []),
    ],
)
def test_relations(box: tuple[int, ...], other: tuple[int, ...], true: list[str]) -> None:
    assert relations(box, other) == true  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize(
    ("noun", "many"), [("key", "keys"), ("fish", "fish"), ("bus", "buses"), ("cherry", "cherries")]
)
def test_plurals(noun: str, many: str) -> None:
    assert plural(noun) == many
    assert phrase(noun, 3, colour="red") == f"three red {many}"


def test_articles() -> None:
    assert phrase("umbrella", 1) == "an umbrella"
    assert phrase("unicorn", 1) == "a unicorn"
    assert phrase("key", 1, "small", None, "orange") == "a small orange key"


@pytest.mark.parametrize("colour", list(COLOURS))
def test_a_tint_has_its_colour_as_its_mean(colour: str) -> None:
    gradient = shape("circle", 32).copy()
    gradient[..., :3] = torch.linspace(0, 1, 32)[:, None, None].numpy() * gradient[..., 3:]
    for sprite in (shape("circle", 32), gradient):
        made = tinted(sprite, colour)
        mean = made[..., :3].sum((0, 1)) / made[..., 3].sum()
        assert abs(mean - COLOURS[colour]).max() < 0.05
    assert made[..., :3].std() > 0


def test_splits_that_are_not_there_are_refused() -> None:
    with pytest.raises(UsageError, check=coded("unknown_split", near=["guide-styles"])):
        compose(0, "guide-style")


def test_held_out_concepts_are_in_no_training_scene() -> None:
    trained, held_out = set(sprites("guide-styles").nouns), set(sprites("heldout-concepts").nouns)
    assert held_out
    assert not trained & held_out
    assert len(trained) > 200


def test_all_styles_of_a_texture_word_are_of_one_kind() -> None:
    assert len(set(chain.from_iterable(TEXTURES.values()))) == sum(map(len, TEXTURES.values()))
