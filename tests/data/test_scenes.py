"""Scenes of emoji: what is in them, and where."""

from __future__ import annotations

import pytest
import torch

from robustclip.data.scenes import Scene, compose_scenes
from robustclip.errors import UsageError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return compose_scenes(30)


def test_two_to_four_things_apart_from_each_other(scenes: list[Scene]) -> None:
    counts = set()
    for scene in scenes:
        boxes = [scene.box, *(box for _, box in scene.others)]
        counts.add(len(boxes))
        covered = torch.zeros(64, 64)
        for top, left, bottom, right in boxes:
            assert 0 <= top < bottom <= 64
            assert 0 <= left < right <= 64
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
    assert counts == {2, 3, 4}


def test_images_are_images_and_things_are_drawn_in_their_boxes(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (3, 64, 64)
        assert 0 <= scene.image.min() <= scene.image.max() <= 1
        top, left, bottom, right = scene.box
        background = scene.image.clone()
        for edge in (scene.box, *(box for _, box in scene.others)):
            background[:, edge[0] : edge[2], edge[1] : edge[3]] = torch.nan
        inside = scene.image[:, top:bottom, left:right]
        # A background fades slowly; a drawing does not.
        assert (inside.amax((1, 2)) - inside.amin((1, 2))).max() > 0.2
        steps = (background[:, 1:] - background[:, :-1]).abs()
        assert steps[steps.isfinite()].max() < 0.02


def test_boxes_are_tight(scenes: list[Scene]) -> None:
    """On every side of a box something of the drawing differs from what lies behind the box's corners."""
    for scene in scenes[:10]:
        top, left, bottom, right = scene.box
        outside = scene.image[:, max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1]
        assert outside.shape[1] >= bottom - top
        inner = scene.image[:, top:bottom, left:right]
        for edge in (inner[:, 0], inner[:, -1], inner[:, :, 0], inner[:, :, -1]):
            assert edge.isfinite().all()
        assert max(bottom - top, right - left) >= 0.25 * 64


def test_names_share_no_word(scenes: list[Scene]) -> None:
    for scene in scenes:
        words = [word for name in (scene.text, *(name for name, _ in scene.others)) for word in set(name.split())]
        assert len(words) == len(set(words))


def test_a_scene_is_a_function_of_seed_and_number(scenes: list[Scene]) -> None:
    [again] = compose_scenes(1, start=7)
    assert torch.equal(again.image, scenes[7].image)
    assert (again.id, again.text, again.box, again.others) == (
        scenes[7].id,
        scenes[7].text,
        scenes[7].box,
        scenes[7].others,
    )
    [other] = compose_scenes(1, start=7, seed=1)
    assert not torch.equal(other.image, again.image)


def test_other_sizes_and_splits() -> None:
    [scene] = compose_scenes(1, size=96, split="judge-heldback")
    assert scene.image.shape == (3, 96, 96)
    with pytest.raises(UsageError, match='no split "unseen"'):
        compose_scenes(1, split="unseen")
