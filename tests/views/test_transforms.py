"""Single transforms against values worked out by hand."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from robustclip.errors import UsageError, coded
from robustclip.views import (
    Brightness,
    Clamp,
    Colour,
    Contrast,
    Cutout,
    Draws,
    Erasing,
    GaussianNoise,
    Jitter,
    RandomCrop,
    RandomResizedCrop,
    Rescale,
    Saturation,
    Translation,
    UniformNoise,
    View,
)

from .inputs import pictures, seen, streams

ONE_TO_SIX = torch.arange(1.0, 7).reshape(1, 1, 2, 3).expand(1, 3, 2, 3)


def test_brightness_adds() -> None:
    assert torch.equal(seen(Brightness((0.25, 0.25)), ONE_TO_SIX), ONE_TO_SIX + 0.25)
    changes = seen(Brightness(), torch.zeros(1, 3, 2, 2), 500)
    assert torch.equal(changes, changes[:, :1, :1, :1].expand_as(changes)), "one number a view"
    assert -0.5 <= changes.min() < -0.48
    assert 0.48 < changes.max() <= 0.5


def test_saturation_scales_about_each_pixels_grey() -> None:
    pixel = torch.tensor([0.1, 0.2, 0.6]).reshape(1, 3, 1, 1)
    assert seen(Saturation((0, 0)), pixel).flatten().tolist() == pytest.approx([0.3] * 3)
    assert seen(Saturation((2, 2)), pixel).flatten().tolist() == pytest.approx([-0.1, 0.1, 0.9])


def test_contrast_scales_about_the_mean_of_the_picture() -> None:
    halved = seen(Contrast((0.5, 0.5)), ONE_TO_SIX)  # its mean is 3.5
    assert halved[0, 0].flatten().tolist() == pytest.approx([2.25, 2.75, 3.25, 3.75, 4.25, 4.75])


def test_colour_is_the_three_in_turn() -> None:
    images, draws = pictures(), Draws(streams(), 3)
    in_turn = images.repeat_interleave(3, 0)
    for view in (Brightness(), Saturation(), Contrast()):
        in_turn = view(in_turn, draws)
    torch.testing.assert_close(seen(Colour(), images, 3), in_turn, rtol=0, atol=1e-6)
    changed = (seen(Colour(p=0.5), images, 50) != images.repeat_interleave(50, 0)).any(3).any(2).any(1)
    assert 30 < changed.sum() < 70


def test_translation_shifts_by_whole_pixels_and_brings_in_zeros() -> None:
    image = torch.arange(1.0, 65).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    framed = F.pad(image[0], (1, 1, 1, 1))
    shifts = {(y, x): framed[:, 1 - y : 9 - y, 1 - x : 9 - x] for y in (-1, 0, 1) for x in (-1, 0, 1)}
    found = set()
    for view in seen(Translation(0.125), image, 200):
        matches = [shift for shift, shifted in shifts.items() if torch.equal(view, shifted)]
        assert len(matches) == 1
        found.update(matches)
    assert len(found) == 9, "every shift up to an eighth of 8 pixels comes"


def test_translation_counts_each_side_by_itself() -> None:
    views = seen(Translation(0.25), torch.ones(1, 3, 4, 40), 200)[:, 0]
    lost_rows, lost_columns = (views.amax(2) == 0).sum(1), (views.amax(1) == 0).sum(1)
    assert lost_rows.max() == 1
    assert lost_columns.max() == 10


def test_jitter_is_a_roll_and_a_crop_of_the_centre() -> None:
    image = torch.arange(1.0, 37).reshape(1, 1, 6, 6).expand(1, 3, 6, 6)
    found = set()
    for view in seen(Jitter(1, (4, 2)), image, 100):
        matches = [
            (down, across)
            for down in (-1, 0, 1)
            for across in (-1, 0, 1)
            if torch.equal(image[0].roll((down, across), (1, 2))[:, 1:5, 2:4], view)
        ]
        assert len(matches) == 1
        found.update(matches)
    assert len(found) == 9
    rolled = seen(Jitter(5), image, 20)
    assert torch.equal(rolled.flatten(1).sort().values, image.flatten(1).sort().values.expand(20, -1)), "nothing lost"


def test_cutout_blanks_half_of_each_side() -> None:
    blanked = seen(Cutout(), torch.ones(1, 3, 8, 12), 400)[:, 0] == 0
    rows, columns = blanked.any(2), blanked.any(1)
    assert torch.equal(blanked, rows[:, :, None] & columns[:, None]), "a box"
    assert rows.sum(1).max() == 4
    assert columns.sum(1).max() == 6
    assert rows.sum(1).min() == 2, "the centre may lie on the edge"
    assert blanked.any(0).all(), "every pixel has its turn"
    inside = rows[:, 1:-1].sum(1) == rows.sum(1)
    assert (rows[inside].sum(1) == 4).all(), "a box that does not touch the edge is whole"


def test_erasing_takes_the_area_and_shape_it_drew() -> None:
    blanked = seen(Erasing(area=(0.25, 0.25), ratio=(4, 4), p=0.5), torch.ones(1, 3, 40, 40), 400)[:, 0] == 0
    heights, widths = blanked.any(2).sum(1), blanked.any(1).sum(1)
    erased = heights > 0
    assert 150 < erased.sum() < 250
    assert heights[erased].unique().tolist() == [40]
    assert widths[erased].unique().tolist() == [10]
    sizes = (seen(Erasing(), torch.ones(1, 3, 40, 40), 400)[:, 0] == 0).float().mean((1, 2))
    assert 0.09 < sizes.min() < 0.12
    assert 0.38 < sizes.max() < 0.41


def test_rescale_resizes_into_the_frame_with_one_number_a_picture() -> None:
    images = pictures(2, 10, 20)
    views = seen(Rescale((0.5, 0.5)), images)
    torch.testing.assert_close(views[..., 3:7, 5:15].mean(), images.mean(), rtol=0.05, atol=0)
    half = F.interpolate(images, (5, 10), mode="bilinear")
    assert torch.equal(views[..., 2:7, 5:15], half)
    assert views.count_nonzero() == half.count_nonzero(), "the frame is 0"
    double = F.interpolate(images, (20, 40), mode="bilinear")
    assert torch.equal(seen(Rescale((2, 2)), images), double[..., 5:15, 10:30])
    spans = (seen(Rescale(), torch.ones(2, 3, 50, 50), 5)[:, 0] > 0).sum((1, 2)).reshape(2, 5)
    assert (spans == spans[:, :1]).all(), "shared by the views of a picture"
    assert spans[0, 0] != spans[1, 0]


def test_crops_are_parts_of_the_picture() -> None:
    image = torch.arange(1.0, 21).reshape(1, 1, 4, 5).expand(1, 3, 4, 5)
    corners = set()
    for crop in seen(RandomCrop(3), image, 100):
        top, left = divmod(int(crop[0, 0, 0]) - 1, 5)
        assert torch.equal(crop, image[0, :, top : top + 3, left : left + 3])
        corners.add((top, left))
    assert corners == {(top, left) for top in (0, 1) for left in (0, 1, 2)}
    assert seen(RandomCrop(0.5), pictures(1, 8, 12)).shape == (1, 3, 4, 6)
    crop, larger = seen(RandomCrop(8), pictures(1)), seen(RandomCrop(8, (12, 10)), pictures(1))
    assert torch.equal(larger, F.interpolate(crop, (12, 10), mode="bilinear"))


def test_resized_crops_cover_the_area_they_drew() -> None:
    # Of a picture whose values are its coordinates, the views' corners tell what was cut.
    down, across = torch.meshgrid((torch.arange(64) + 0.5) / 64, (torch.arange(32) + 0.5) / 32, indexing="ij")
    image = torch.stack([down, across, down])[None]
    views = seen(RandomResizedCrop((50, 50), (0.25, 0.5), (1, 1)), image, 300)
    heights = (views[:, 0, -1, 0] - views[:, 0, 0, 0]) * 50 / 49
    widths = (views[:, 1, 0, -1] - views[:, 1, 0, 0]) * 50 / 49
    torch.testing.assert_close(heights, widths, rtol=0, atol=0.01)
    areas = heights * widths
    assert 0.24 < areas.min() < 0.27
    assert 0.47 < areas.max() < 0.51
    tall = seen(RandomResizedCrop((50, 50), (0.25, 0.25), (4, 4)), image, 10)
    assert (tall[:, 0, -1, 0] - tall[:, 0, 0, 0]).tolist() == pytest.approx([63 / 64] * 10, abs=0.02)
    assert (tall[:, 1, 0, -1] - tall[:, 1, 0, 0]).tolist() == pytest.approx([0.25 * 49 / 50] * 10, abs=0.02)


@pytest.mark.parametrize(("noise", "std"), [(GaussianNoise(0.1), 0.1), (UniformNoise((0, 0.2)), 0.2 / 12**0.5)])
def test_noise_is_as_strong_as_it_says(noise: View, std: float) -> None:
    assert seen(noise, torch.zeros(1, 3, 20, 20), 20).std() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("noise", [GaussianNoise((0.1, 0.2), shared=True), UniformNoise(shared=True)])
def test_shared_noise_is_equal_in_all_views_of_a_picture(noise: View) -> None:
    noises = seen(noise, torch.zeros(2, 3, 4, 4), 3).unflatten(0, (2, 3))
    assert torch.equal(noises, noises[:, :1].expand_as(noises))
    assert not torch.equal(noises[0], noises[1])


def test_shared_erasing_is_equal_in_all_views_of_a_picture() -> None:
    boxes = seen(Erasing(shared=True), torch.ones(2, 3, 20, 20), 3).unflatten(0, (2, 3))
    assert torch.equal(boxes, boxes[:, :1].expand_as(boxes))
    assert not torch.equal(boxes[0], boxes[1])


def test_a_noise_of_a_range_is_drawn_by_view() -> None:
    strengths = seen(GaussianNoise((0, 0.1)), torch.zeros(1, 3, 20, 20), 200).std((1, 2, 3))
    assert strengths.min() < 0.01
    assert 0.09 < strengths.max() < 0.11


def test_clamp_cuts() -> None:
    assert seen(Clamp(2, 4.5), ONE_TO_SIX)[0, 0].flatten().tolist() == [2, 2, 3, 4, 4.5, 4.5]


@pytest.mark.parametrize(
    ("call", "check", "works"),
    [
        (
            lambda: Brightness((0.5, -0.5)),
            coded("not_a_range", call="Brightness((0.5, -0.5))"),
            "Brightness((-0.5, 0.5))",
        ),
        (lambda: Contrast(0.5), coded("not_a_range", call="Contrast(0.5)"), "(0.8, 1.2)"),
        (lambda: Saturation((-1, 1)), coded("out_of_range", call="Saturation((-1, 1))"), "Saturation((0, 1))"),
        (
            lambda: Colour(contrast=(1, 0)),
            coded("not_a_range", call="Colour(contrast=(1, 0))"),
            "Colour(contrast=(0, 1))",
        ),
        (lambda: Colour(p=2), coded("out_of_range", call="Colour(p=2)"), "Colour(p=0.5)"),
        (lambda: Translation(8), coded("out_of_range", call="Translation(8)"), "Translation(0.125)"),
        (lambda: Rescale((0, 1)), coded("out_of_range", call="Rescale((0, 1))"), "Rescale((0.01, 1))"),
        (lambda: Cutout(-0.5), coded("out_of_range", call="Cutout(-0.5)"), "Cutout(0.5)"),
        (
            lambda: Erasing(area=(0.1, 4)),
            coded("out_of_range", call="Erasing(area=(0.1, 4))"),
            "Erasing(area=(0.1, 1))",
        ),
        (lambda: RandomCrop(0), coded("not_a_size", size=0), "128"),
        (lambda: RandomCrop(128.0), coded("out_of_range", call="RandomCrop(128.0)"), "RandomCrop(128)"),
        (lambda: RandomCrop(8, 0), coded("not_a_size", size=0), "(224, 224)"),
        (
            lambda: seen(RandomCrop(17), pictures()),
            coded("too_large", size=17, most=16),
            "RandomCrop(16)",
        ),
        (
            lambda: RandomResizedCrop(8, (0.9, 0.7)),
            coded("not_a_range", call="RandomResizedCrop(8, area=(0.9, 0.7))"),
            "RandomResizedCrop(8, area=(0.7, 0.9))",
        ),
        (lambda: Jitter(-1), coded("not_a_size", size=-1), "Jitter(28, size=224)"),
        (lambda: seen(Jitter(2, 18), pictures()), coded("too_large", size=18, most=16), "Jitter(2, size=16)"),
        (
            lambda: GaussianNoise(-0.1),
            coded("out_of_range", call="GaussianNoise((-0.1, -0.1))"),
            "GaussianNoise((0, 0))",
        ),
        (lambda: UniformNoise((1, 0)), coded("not_a_range", call="UniformNoise((1, 0))"), "UniformNoise((0, 1))"),
        (lambda: Clamp(1, 0), coded("not_a_range", call="Clamp(1, 0)"), "Clamp(0, 1)"),
    ],
)
def test_illegal_ranges_are_refused_with_the_call_that_works(call, check, works: str) -> None:
    with pytest.raises(UsageError, match=re.escape(works), check=check):
        call()
