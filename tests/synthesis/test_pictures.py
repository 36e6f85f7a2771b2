from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from robustclip.data.images import from_pil, load_image, to_pil
from robustclip.errors import UsageError, coded
from robustclip.synthesis import pictures
from robustclip.synthesis.items import Item, items_of
from robustclip.synthesis.pictures import (
    Enlarge,
    captioned_grid,
    contact_sheet,
    enlarged,
    film_strip,
    font_of,
    is_whole,
    overview,
    read_facts,
    write_gif,
    write_picture,
)
from robustclip.synthesis.prompts import Prompt, parse_all


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0))


def test_a_picture_says_how_it_was_made(tmp_path: Path, image: torch.Tensor) -> None:
    facts = {"prompt": "una tortuga\n猫 \x7f\0", "seed": 3, "similarity": 0.25, "odd": float("nan"), "path": Path("x")}
    write_picture(tmp_path / "x.png", image, facts)
    assert read_facts(tmp_path / "x.png") == facts | {"odd": None, "path": "x"}
    torch.testing.assert_close(load_image(tmp_path / "x.png"), image, atol=0.5001 / 255, rtol=0)
    with Image.open(tmp_path / "x.png") as stored:
        text = stored.info["robustclip"]
    assert text.isascii()
    assert text.isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_facts_are_bounded(tmp_path: Path, image: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="at most 1048576"):
        write_picture(tmp_path / "x.png", image, {"prompt": "x" * 2**20})
    assert not list(tmp_path.iterdir())


def with_text(path: Path, key: str, text: str, *, compressed: bool = False) -> Path:
    notes = PngInfo()
    notes.add_text(key, text, zip=compressed)
    Image.new("RGB", (4, 4)).save(path, pnginfo=notes)
    return path


@pytest.mark.parametrize(
    ("key", "text", "code"),
    [
        ("other", "{}", "no_facts"),
        ("robustclip", "{", "not_json"),
        ("robustclip", "[" * 100_000, "not_json"),
        ("robustclip", "[1]", "no_facts"),
        ("robustclip", '"' + "x" * 2**20 + '"', "no_facts"),
    ],
)
def test_other_peoples_notes_are_refused(tmp_path: Path, key: str, text: str, code: str) -> None:
    with pytest.raises(UsageError, check=coded(code)):
        read_facts(with_text(tmp_path / "x.png", key, text))


def test_compressed_notes_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("no_facts")):
        read_facts(with_text(tmp_path / "x.png", "robustclip", "[" * 2**22, compressed=True))


def test_every_cut_and_every_flip_is_seen(tmp_path: Path, image: torch.Tensor) -> None:
    path = tmp_path / "x.png"
    write_picture(path, image, {"seed": 1})
    data = path.read_bytes()
    assert is_whole(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert not is_whole(path), length
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert not is_whole(path), place
    path.unlink()
    assert not is_whole(path)
    assert not is_whole(tmp_path)


def test_the_way_as_a_strip_and_a_loop(tmp_path: Path) -> None:
    frames = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 40, 32)
    strip = film_strip(frames, [0, 5, 10, 15])
    assert strip.shape[2] > 4 * 32
    middle = strip[0, strip.shape[1] - 140]
    assert [round(value.item(), 2) for value in frames[:, 0, 0, 0]] == [0, 0.33, 0.67, 1]
    assert {0.0, 1.0} <= set(middle.tolist())
    write_gif(tmp_path / "x.gif", frames)
    with Image.open(tmp_path / "x.gif") as loop:
        assert (loop.n_frames, loop.info["loop"], loop.size) == (4, 0, (224, 280))
        loop.seek(3)
        assert loop.convert("RGB").getpixel((30, 30)) == (255, 255, 255)
    with pytest.raises(UsageError, check=coded("too_few", frames=0)):
        write_gif(tmp_path / "y.gif", frames[:0])


def colours(count: int, size: tuple[int, int] = (100, 100)) -> torch.Tensor:
    return (torch.arange(1, count + 1) / (count + 1))[:, None, None, None].expand(count, 3, *size)


def test_few_prompts_stand_side_by_side_above_their_seeds() -> None:
    items = items_of(parse_all(["a cat", "a dog", "a fox"]), [0, 1])
    images = colours(6)
    sheet = contact_sheet(items, lambda index: images[index])
    assert sheet.shape[2] > 3 * 300
    assert 600 < sheet.shape[1] < 700
    right, bottom = sheet.shape[2] - 150, sheet.shape[1] - 150
    columns = [right - 608, right - 304, right]
    found = [[round(sheet[0, row, column].item() * 7) for column in columns] for row in (bottom - 304, bottom)]
    assert found == [[1, 3, 5], [2, 4, 6]]


def test_many_prompts_make_a_grid_of_the_first() -> None:
    items = items_of(parse_all([f"prompt number {number}" for number in range(300)]))
    read: list[int] = []

    def image_of(index: int) -> torch.Tensor:
        read.append(index)
        return colours(300, (600, 300))[index]

    sheet = contact_sheet(items, image_of)
    assert read == list(range(pictures.MOST))
    assert max(sheet.shape) < 10 * (256 + 70)
    ragged = [*items_of(parse_all(["a cat", "a dog"]), [0, 1]), Item("x", Prompt.literal("a fox"), 7)]
    assert contact_sheet(ragged, lambda index: colours(5)[index]).shape[2] == 4 + 3 * 304
    with pytest.raises(UsageError, check=coded("too_few", pictures=0)):
        contact_sheet([], image_of)


def test_captions_stand_below_and_are_cut() -> None:
    images = torch.ones(2, 3, 96, 96)
    plain, long = captioned_grid(images, ["a", "b"]), captioned_grid(images, ["a", "word " * 2000 + "x" * 2000])
    assert plain.shape[2] == long.shape[2] == 4 + 2 * 100
    assert long.shape[1] - plain.shape[1] < 60
    assert plain[:, 100:].min() < 0.5  # letters
    assert long[:, :100].min() == 1  # none on the pictures


def test_an_overview_is_small_and_large_enough() -> None:
    assert overview(torch.rand(40, 3, 16, 16)).shape == (3, 2 + 4 * 98, 2 + 4 * 98)
    assert overview(torch.rand(2, 3, 512, 256)).shape == (3, 2 + 258, 2 + 2 * 130)


def test_a_sheet_can_be_stored() -> None:
    sheet = contact_sheet(items_of(parse_all(["猫 🐢"])), lambda _: torch.rand(3, 8, 8))
    buffer = io.BytesIO()
    pictures.to_pil(sheet).save(buffer, "png")
    assert buffer.tell() < 100_000


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (300, 200), (100, 40)])
@pytest.mark.parametrize("how", ["nearest", "bicubic"])
def test_loops_strips_and_sheets_are_no_stamps(size: tuple[int, int], how: Enlarge, tmp_path: Path) -> None:
    frames = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    larger = enlarged(frames, how)
    times = larger.shape[-1] // size[1]
    assert larger.shape[-2:] == (size[0] * times, size[1] * times)
    assert max(larger.shape[-2:]) >= 256 or times == 1
    theirs = to_pil(frames[0]).resize((larger.shape[-1], larger.shape[-2]), Image.Resampling.NEAREST)
    if how == "nearest":
        assert torch.equal(from_pil(to_pil(larger[0])), from_pil(theirs))
    write_gif(tmp_path / "x.gif", frames, how)
    with Image.open(tmp_path / "x.gif") as loop:
        assert loop.size == (larger.shape[-1], larger.shape[-2])
    assert film_strip(frames, [0, 1, 2], how).shape[2] > 3 * larger.shape[-1]
    sheet = contact_sheet(items_of(parse_all(["a cat", "a dog"])), lambda index: frames[index], how=how)
    assert max(sheet.shape[1], sheet.shape[2] / 2) > 256


def test_captions_are_read_where_a_sheet_is_1280_wide() -> None:
    for width in (300, 1280, 2600, 9000):
        assert font_of(width) * min(1, 1280 / width) >= 11.9
