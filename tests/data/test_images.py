from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from robustclip.data.images import (
    check_range,
    decode,
    from_pil,
    grid,
    load_image,
    on_background,
    picture_size,
    resize,
    save_image,
    titled_grid,
    to_pil,
)
from robustclip.data.loader import Preparation
from robustclip.data.pictures import Stored
from robustclip.errors import Skip, UsageError, coded


def eight_bit(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)) / 255


@pytest.mark.parametrize("outside", [-0.01, 1.01, 255.0, float("nan")])
def test_pixels_outside_the_range_are_reported(outside: float) -> None:
    image = eight_bit(3, 4, 4)
    check_range(image)
    image[0, 0, 0] = outside
    with pytest.raises(UsageError, check=coded("pixels_out_of_range")):
        check_range(image)


def test_png_round_trip_is_exact(tmp_path: Path) -> None:
    image = eight_bit(3, 5, 7)
    save_image(image, tmp_path / "pictures" / "a.png")
    assert torch.equal(load_image(tmp_path / "pictures" / "a.png"), image)


def test_saving_rounds_and_clamps(tmp_path: Path) -> None:
    image = torch.tensor([-0.5, 0.4999 / 255, 0.5001 / 255, 1.5]).reshape(1, 2, 2).expand(3, 2, 2)
    assert np.asarray(to_pil(image))[..., 0].tolist() == [[0, 0], [1, 255]]


def test_transparency_is_laid_on_the_background(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 51)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[:, 0, 0].tolist() == pytest.approx([1, 0.8, 0.8])


def test_photographs_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").shape == (3, 4, 2)


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("no_image")):
        load_image("x" * 300 + ".png")  # longer than a file's name may be
    with pytest.raises(UsageError, check=coded("no_image", path=tmp_path / "absent.png")):
        load_image(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UsageError, check=coded("not_a_picture", path=tmp_path / "text.png", fault="not an image")):
        load_image(tmp_path / "text.png")
    Image.new("I;16", (2, 2)).save(tmp_path / "deep.png")
    with pytest.raises(UsageError, check=coded("not_a_picture", fault="more than 8 bits a channel")):
        load_image(tmp_path / "deep.png")
    with pytest.raises(UsageError, check=coded("unknown_format", ending=".xyz")):
        save_image(eight_bit(3, 2, 2), tmp_path / "a.xyz")


def test_no_decoder_but_the_named_ones_is_ever_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "eps_named.png", "EPS")
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *call, **_: started.append(call))
    for reader in (load_image, picture_size, decode):
        with pytest.raises((UsageError, Skip), match="not an image"):
            reader(tmp_path / "eps_named.png")
    assert not started


@pytest.mark.parametrize("form", ["PNG", "GIF", "JPEG"])
def test_a_small_file_of_many_pixels_is_refused_by_its_header(tmp_path: Path, form: str) -> None:
    side = 8193
    Image.new("L", (side, side - 1)).save(tmp_path / "large.png", form)
    decoded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=r"large\.png .*too many pixels.*67,108,864"):
        load_image(tmp_path / "large.png")
    with pytest.raises(Skip, match="too many pixels"):
        picture_size(tmp_path / "large.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= decoded + 2**16, "kB, against 200 MB of pixels"


def test_one_rule_for_transparent_pictures_whoever_reads_them(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (9, 7, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "a.png")
    white = Image.new("RGBA", (7, 9), "white")
    white.alpha_composite(Image.open(tmp_path / "a.png"))
    right = from_pil(white.convert("RGB"))
    assert torch.equal(load_image(tmp_path / "a.png"), right)
    assert torch.equal(Stored(tmp_path / "a.png").image(), right)
    assert torch.equal(Preparation((9, 7), "center")(tmp_path / "a.png", torch.Generator()) / 255, right)


def test_sizes_are_those_of_upright_pictures(tmp_path: Path) -> None:
    for value in range(9):
        exif = Image.Exif()
        exif[0x0112] = value
        Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
        assert picture_size(tmp_path / "a.jpg") == decode(tmp_path / "a.jpg").size[::-1]


def test_a_background_for_each_image() -> None:
    rgba = torch.tensor([1.0, 0.0, 0.0, 0.25]).reshape(1, 4, 1, 1).repeat(2, 1, 1, 1)
    laid = on_background(rgba, torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    assert laid.flatten(1).tolist() == [[0.25, 0.75, 0.0], [1.0, 0.75, 0.75]]


def test_resize_is_antialiased_differentiable_and_stays_in_range() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 3, 32, 32).clone().requires_grad_()
    small = resize(stripes, 4)
    assert small.shape == (1, 3, 4, 4)
    assert torch.autograd.grad(small.sum(), stripes)[0].abs().min() > 0, "pixels that are skipped alias"
    checks = (torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    large = resize(checks, (9, 7))
    assert large.shape == (1, 3, 9, 7)
    assert large.min() >= 0
    assert large.max() <= 1


def test_grid_reads_row_by_row() -> None:
    images = torch.arange(5).div(10).reshape(5, 1, 1, 1).expand(5, 3, 2, 4)
    sheet = grid(images, columns=3, padding=1)
    assert sheet.shape == (3, 1 + 2 * 3, 1 + 3 * 5)
    centres = [sheet[0, top, left].item() for top in (1, 4) for left in (1, 6, 11)]
    assert centres == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 1.0])
    assert (sheet[:, 0] == 1).all()
    assert grid(images[:1], padding=1).shape == (3, 4, 6)  # make_grid alone would leave out the frame
    with pytest.raises(UsageError, check=coded("too_few", images=0)):
        grid(images[:0])


def test_titles_stand_beside_the_untouched_images() -> None:
    images = eight_bit(6, 3, 48, 48)
    sheet = titled_grid(["vanilla", "robust"], ["a red apple on a tree", "dog", "guitar"], images, padding=4)
    plain = grid(images, columns=3, padding=4)
    top, left = sheet.shape[1] - plain.shape[1], sheet.shape[2] - plain.shape[2]
    assert torch.equal(sheet[:, top:, left:], plain)
    assert (sheet[:, top:, :left] < 0.5).any(), "no row title"
    for column in range(3):
        start = left + 4 + column * 52
        assert (sheet[:, :top, start : start + 48] < 0.5).any(), f"no title of column {column}"
    with pytest.raises(UsageError, check=coded("unequal_counts", rows=2, columns=3, images=5)):
        titled_grid(["a", "b"], ["c", "d", "e"], images[:5])


def test_titles_break_after_hyphens() -> None:
    images = eight_bit(1, 3, 48, 48)
    heights = [
        titled_grid(["a"], [title], images).shape[1] for title in ("flat", "fluent-emoji-flat", "fluent emoji flat")
    ]
    assert heights[0] < heights[1] == heights[2]
