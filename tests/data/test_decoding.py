from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IFDRational
from torchvision.transforms import InterpolationMode, v2

from robustclip.data.images import BROKEN_METADATA, MAX_PIXELS, decode
from robustclip.data.loader import Preparation, center_crop, pixels, random_box
from robustclip.errors import Skip, UsageError
from robustclip.runs import rng


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "mode"),
    [("JPEG", "RGB"), ("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("WEBP", "RGB")],
)
def test_every_kind_becomes_rgb_of_its_colour(form: str, mode: str) -> None:
    grey = Image.new("RGB", (20, 10), (255, 255, 255)).convert(mode)
    picture = decode(encoded(grey, form))
    assert (picture.mode, picture.size) == ("RGB", (20, 10))
    assert np.asarray(picture).min() > 250


def test_of_a_moving_picture_the_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        red, green, blue = np.asarray(decode(data))[4, 4].tolist()
        assert red > 240
        assert green < 15
        assert blue < 15


def test_transparent_parts_show_the_background() -> None:
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 255, 128))
    shown = np.asarray(decode(encoded(half), (255, 0, 0)))
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[0, 1].tolist() == pytest.approx([127, 0, 128], abs=1)
    assert np.asarray(decode(encoded(half)))[0, 0].tolist() == [255, 255, 255]


def test_a_palette_with_transparency_shows_the_background() -> None:
    drawing = Image.new("P", (4, 4), 0)
    drawing.putpalette([0, 0, 0, 255, 0, 0])
    assert np.asarray(decode(encoded(drawing, transparency=0))).min() == 255


def test_upright_by_its_exif_note() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    assert decode(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (10, 20)


BROKEN_EXIF = b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03"
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>\xa8\xff</x:xmpmeta>"


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_whole_pixels_with_broken_metadata_are_decoded_and_counted(form: str) -> None:
    noise = Image.effect_noise((40, 30), 90).convert("RGB")
    data = encoded(noise, form, exif=BROKEN_EXIF)
    remarks: Counter[str] = Counter()
    assert np.array_equal(
        np.asarray(decode(data, remarks=remarks)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )
    assert remarks == {BROKEN_METADATA: 1}


def test_text_in_no_encoding_beside_the_pixels_costs_nothing() -> None:
    jpeg = encoded(Image.effect_noise((40, 30), 90).convert("RGB"), "JPEG")
    data = jpeg[:2] + b"\xff\xe1" + (len(XMP) + 2).to_bytes(2, "big") + XMP + jpeg[2:]
    assert np.array_equal(np.asarray(decode(data)), np.asarray(Image.open(io.BytesIO(jpeg))))


def test_an_orientation_that_can_be_read_counts_whatever_stands_beside_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = IFDRational(0, 0)
    data = encoded(Image.effect_noise((40, 30), 90).convert("RGB"), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(upright))


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PNG = encoded(Image.effect_noise((40, 40), 90))
JPEG = encoded(Image.effect_noise((40, 40), 90), "JPEG")
WEBP = encoded(Image.effect_noise((40, 40), 90), "WEBP")


UNUSABLE = {
    "nothing": (b"", "empty image"),
    "text": (b"not a picture at all", "not an image"),
    "no decoder named": (encoded(Image.new("RGB", (4, 4)), "BMP"), "not an image"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated or damaged image"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated or damaged image"),
    "half a header": (PNG[:20], "truncated or damaged image"),
    "half a WebP": (WEBP[: len(WEBP) // 2], "truncated or damaged image"),
    "claims a bomb": (claiming(30_000, 30_000), "too many pixels"),
    "claims a row too many": (claiming(8193, 8192), "too many pixels"),
    "16 bits": (encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16))), "more than 8 bits a channel"),
}


@pytest.mark.parametrize(("data", "fault"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_used_says_why(data: bytes, fault: str) -> None:
    with pytest.raises(Skip, match=f"^{fault}$"):
        decode(data)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="image file missing"):
        decode(tmp_path / "none.jpg")


@pytest.mark.parametrize("size", [(16, 16), (224, 224)])
@pytest.mark.parametrize("shape", [(50, 37), (37, 50), (40, 40), (40, 48), (333, 251)])
def test_center_crop_is_torchvisions_pixel_for_pixel(shape: tuple[int, int], size: tuple[int, int]) -> None:
    picture = Image.effect_noise(shape, 90).convert("RGB")
    theirs = v2.Compose([v2.Resize(size[0], InterpolationMode.BICUBIC), v2.CenterCrop(size[0])])
    assert torch.equal(pixels(center_crop(picture, size)), v2.functional.pil_to_tensor(theirs(picture)))


def test_center_crop_to_another_shape_keeps_the_middle() -> None:
    picture = Image.new("RGB", (90, 30), "black")
    picture.paste("white", (30, 0, 60, 30))
    cropped = np.asarray(center_crop(picture, (20, 10)))
    assert cropped.shape == (20, 10, 3)
    assert cropped.min() == 255


def test_a_picture_too_long_to_resize_is_skipped() -> None:
    with pytest.raises(Skip, match="too many pixels"):
        center_crop(Image.new("RGB", (1, 30_000)), (224, 224))
    assert MAX_PIXELS < 224 * 30_000 * 224


def test_random_boxes_have_the_share_and_ratio_asked_for() -> None:
    stream = rng.generator(0, "boxes")
    boxes = [random_box(300, 400, (0.3, 0.6), stream) for _ in range(500)]
    shares = np.array([(right - left) * (bottom - top) / 120_000 for left, top, right, bottom in boxes])
    ratios = np.array([(right - left) / (bottom - top) for left, top, right, bottom in boxes])
    assert all(0 <= left < right <= 400 and 0 <= top < bottom <= 300 for left, top, right, bottom in boxes)
    assert shares.min() == pytest.approx(0.3, abs=0.02)
    assert shares.max() == pytest.approx(0.6, abs=0.02)
    assert ratios.min() == pytest.approx(0.75, abs=0.02)
    assert ratios.max() == pytest.approx(1.333, abs=0.03)
    assert shares.mean() == pytest.approx(0.45, abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (3, 1000)])
def test_random_boxes_of_odd_pictures_lie_inside(height: int, width: int) -> None:
    left, top, right, bottom = random_box(height, width, (0.9, 1.0), rng.generator(0, "boxes"))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_a_preparation_is_a_function_of_its_generator() -> None:
    prepare = Preparation((12, 20), scale=(0.2, 0.5), background="random")
    drawing = encoded(Image.effect_noise((60, 60), 90).convert("RGBA"))

    def prepared(seed: int) -> torch.Tensor:
        return prepare(drawing, rng.generator(seed, "sample"))

    assert prepared(0).shape == (3, 12, 20)
    assert prepared(0).dtype == torch.uint8
    assert torch.equal(prepared(0), prepared(0))
    assert not torch.equal(prepared(0), prepared(1))


def test_random_backgrounds_differ_and_leave_opaque_pictures_alone() -> None:
    clear, solid = (encoded(Image.new(mode, (8, 8))) for mode in ("RGBA", "RGB"))
    prepare = Preparation(8, background="random")
    colours = {tuple(prepare(clear, rng.generator(seed, "sample"))[:, 0, 0].tolist()) for seed in range(10)}
    assert len(colours) == 10
    assert prepare(solid, rng.generator(0, "sample")).max() == 0


def test_faults_of_a_preparation_come_together() -> None:
    with pytest.raises(UsageError) as caught:
        Preparation(0, crop="left", scale=(0.9, 2.0), background="black")  # type: ignore[arg-type]
    assert caught.value.codes == ["faults", "not_a_size", "unknown_choice", "not_a_range", "unknown_choice"]
