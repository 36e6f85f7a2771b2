"""Scene readers: answers from what is found, worked out by hand; crops; folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustclip.data.composing import TEXTURES
from robustclip.data.compositions import BACKGROUNDS, compose
from robustclip.data.pairs import COLOURS
from robustclip.data.questions import read_question
from robustclip.errors import RunError, UsageError
from robustclip.referees.card import Card
from robustclip.referees.registry import load_referee
from robustclip.referees.scene_reader import (
    FAMILY,
    GRID,
    SceneContent,
    SceneReader,
    background,
    cropped,
    load_scene_reader,
    save_scene_reader,
)
from robustclip.referees.weights import digest
from robustclip.robustification.scenes import IGNORED, SceneTrainer, platt, targets_of
from robustclip.runs.rng import generator

NOUNS = ["circle", "fish", "hat"]


@pytest.fixture(scope="module")
def reader() -> SceneReader:
    torch.manual_seed(0)
    return SceneReader(load_referee("emoji-judge"), NOUNS, Card("tiny-scenes", FAMILY, {}, {}, 1.0)).eval()


def one_hot(names: tuple[str, ...], *chosen: str) -> Tensor:
    return torch.tensor([[float(name == one) for name in names] for one in chosen])


@pytest.fixture
def found() -> SceneContent:
    """Two red fish of which the second is half sure, left of a blue flat hat that is larger, on pink."""
    return SceneContent(
        sure=torch.tensor([1.0, 0.5, 1.0]),
        nouns=one_hot(tuple(NOUNS), "fish", "fish", "hat"),
        colours=one_hot(tuple(COLOURS), "red", "red", "blue"),
        textures=one_hot(tuple(TEXTURES), "shaded", "shaded", "flat"),
        boxes=torch.tensor([[0.4, 0.0, 0.5, 0.1], [0.5, 0.0, 0.6, 0.1], [0.3, 0.5, 0.9, 1.0]]),
        background=one_hot(tuple(BACKGROUNDS), "pink")[0],
    )


@pytest.mark.parametrize(
    ("question", "there", "said"),
    [
        ("a fish?", 1.0, 0.5),
        ("a circle?", 0.0, 0.5),
        ("a red fish?", 1.0, 1.0),
        ("a blue fish?", 1.0, 0.0),
        ("a blue hat?", 1.0, 1.0),
        ("a flat hat?", 1.0, 1.0),
        ("a flat fish?", 1.0, 0.0),
        ("two fish?", 1.0, 0.5),  # the second is there with probability 1/2
        ("three fish?", 1.0, 0.0),
        ("a large hat?", 1.0, 1.0),
        ("a small fish?", 1.0, 1.0),
        ("a large fish?", 1.0, 0.0),
        ("two fish to the left of a hat?", 1.0, 1.0),
        ("a hat to the left of two fish?", 1.0, 0.0),
        ("two fish above a hat?", 1.0, 0.0),
        ("a hat bigger than a fish?", 1.0, 1.0),
        ("a fish bigger than a hat?", 1.0, 0.0),
        ("a fish inside a hat?", 1.0, 0.0),
        ("a pink background?", 1.0, 0.5),
        ("a white background?", 0.0, 0.5),
    ],
)
def test_a_question_is_answered_from_what_was_found(
    reader: SceneReader, found: SceneContent, question: str, there: float, said: float
) -> None:
    assert reader.raw(found, read_question(question)).sigmoid().tolist() == pytest.approx([there, said], abs=0.01)


def test_a_background_is_the_colour_of_the_empty_cells() -> None:
    image = torch.tensor(BACKGROUNDS["light blue"])[:, None, None].expand(3, 64, 64).clone()
    image[:, :32] = 0.0
    empty = torch.ones(GRID, GRID)
    empty[: GRID // 2] = 0.0
    chances = background(image, empty)
    assert tuple(BACKGROUNDS)[int(chances.argmax())] == "light blue"
    assert chances.max() > 0.9


def test_a_noun_it_does_not_know_is_refused(reader: SceneReader, found: SceneContent) -> None:
    with pytest.raises(UsageError):
        reader.raw(found, read_question("a zebra?"))
    with pytest.raises(UsageError):
        reader.yes(torch.rand(1, 3, 64, 64), [["is it nice?"]])


def test_a_crop_is_the_square_around_a_box() -> None:
    images = torch.zeros(1, 3, 128, 128)
    images[:, 0, 32:64, 64:96] = 1.0  # a red square from (1/4, 1/2) to (1/2, 3/4)
    crop = cropped(images, torch.tensor([[0.25, 0.5, 0.5, 0.75]]))[0]
    assert crop.shape == (3, 64, 64)
    # Its margin is 0.05 of the box on each side, so 32 of 35.2 pixels are red: 64 * 32 / 35.2 = 58.2 a side.
    assert crop[0].sum().sqrt().item() == pytest.approx(58.2, abs=0.5)
    assert crop[0, 32, 32] == 1
    assert crop[0, 0, 0] == 0


def test_what_cells_are_to_say_is_where_things_are() -> None:
    scene = compose(0, "guide-styles", seed=1, size=64, categories=("colour",))
    nouns = sorted({item.noun for item in scene.items})
    wanted = targets_of([scene], nouns)
    assert (wanted.middles == 1).sum() == sum(item.count for item in scene.items) == len(wanted.nouns)
    for item, box, noun in zip(scene.items, wanted.around, wanted.nouns, strict=True):
        assert nouns[int(noun)] == item.noun
        assert torch.allclose(box * 64, torch.tensor(item.box).float())
        top, left, bottom, right = (int(edge * GRID / 64) for edge in item.box)
        inside = wanted.colours[0, top : bottom + 1, left : right + 1]
        assert tuple(COLOURS).index(str(item.colour)) in inside.tolist()[len(inside) // 2]
    assert set(wanted.colours.unique().tolist()) <= {IGNORED, *range(len(COLOURS))}


def test_a_drawing_without_an_opaque_pixel_has_its_middle_at_the_centre_of_its_box() -> None:
    scene = compose(0, "guide-styles", seed=1, size=64, categories=("colour",))
    faded = replace(scene, mask=torch.zeros_like(scene.mask))
    wanted = targets_of([faded], sorted({item.noun for item in scene.items}))
    top, left, bottom, right = scene.items[0].boxes[0]
    centre = int((top + bottom) / 128 * GRID), int((left + right) / 128 * GRID)
    assert wanted.middles[0][centre] == 1
    assert not wanted.drawn.any()


def test_training_goes_down() -> None:
    scenes = [compose(n, "guide-styles", seed=1, size=64, categories=("shape",)) for n in range(4)]
    nouns = sorted({item.noun for scene in scenes for item in scene.items})
    torch.manual_seed(0)
    own = SceneReader(load_referee("emoji-judge"), nouns, Card("tiny-scenes", FAMILY, {}, {}, 1.0))
    trainer = SceneTrainer(own, steps=12)
    images = torch.stack([scene.image for scene in scenes])
    losses = [trainer.step(images, scenes, generator(0, "boxes", k))["loss"] for k in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_calibration_puts_a_half_between_no_and_yes() -> None:
    logits = torch.tensor([2.0, 3.0, 3.2, 4.0, 4.0, 5.0])[:, None]
    scales, shift = platt(logits, torch.tensor([False, False, True, False, True, True]))
    assert scales > 0
    assert 2.9 < -shift / scales < 4.1
    low, high = (logits[[0, 5], 0] * scales + shift).sigmoid().tolist()
    assert low < 0.25 < 0.75 < high


def test_a_folder_gives_back_the_reader(reader: SceneReader, tmp_path: Path) -> None:
    save_scene_reader(reader, tmp_path / "own", "emoji-judge", provenance={"recipe": "none"})
    again = load_scene_reader(tmp_path / "own")
    assert digest(again.state_dict()) == digest(reader.state_dict())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    questions = [["a fish?", "two hats?"], ["a pink background?"]]
    for first, second in zip(reader.yes(images, questions), again.yes(images, questions), strict=True):
        assert torch.allclose(first, second, atol=0.02)  # its weights are kept in half precision
    assert [[one.label for one in found] for found in again.detect(images, ["fish"], threshold=1.1)] == [[], []]

    with pytest.raises(UsageError):
        load_scene_reader(tmp_path)
    (tmp_path / "own" / "nouns.json").write_text(json.dumps(["fish"]))
    with pytest.raises((UsageError, RunError)):
        load_scene_reader(tmp_path / "own")
