"""Read, write and arrange pictures. Every image is a float tensor in [0, 1], channels first."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from robustclip.errors import Fault, Skip, UsageError
from robustclip.runs.files import atomic_write, is_file

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
ENDINGS = (
    *("jpg", "jpeg", "png", "webp", "gif", "jpe", "jfif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
    *("heic", "heif", "avif", "jp2", "jxl", "tga"),
)
"""Extensions of pictures, case-insensitive; the content decides whether a file is one of FORMATS."""
MAX_PIXELS = 2**26  # 8192 x 8192
MAX_BYTES = 2**26  # of a picture's file: 64 MiB
BROKEN_METADATA = "broken metadata (the pixels are read)"
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap height and width
PAPER = (255, 255, 255)
WHITE = (1.0, 1.0, 1.0)
Colour = tuple[float, float, float]
TITLE_LINES, TITLE_LETTERS = 6, 200  # maxima of a picture's title
RANGE_TOLERANCE = 1e-3  # allowed deviation of pixels from [0, 1] (resizing and half precision overshoot by less)


def check_range(images: Tensor) -> None:
    """Raise UsageError when pixels lie outside [0, 1] (or are not numbers). Reads one number back from the device."""
    inside = ((images >= -RANGE_TOLERANCE) & (images <= 1 + RANGE_TOLERANCE)).all()
    if not inside:
        raise UsageError(
            f"images must lie in [0, 1], these span {images.min():.3g} to {images.max():.3g}: divide 8-bit pixels "
            "by 255, and leave the normalisation by mean and std to the referee",
            "pixels_out_of_range",
        )


def load_image(path: str | os.PathLike[str]) -> Float[Tensor, "3 h w"]:
    """Read a picture as RGB in [0, 1], decoded as by `decode`: EXIF orientation applied, transparency over white.

    Raises UsageError if there is no file, or if `decode` refuses it.
    """
    path = Path(path)
    if not is_file(path):
        raise UsageError(f"no image at {path}", "no_image", path=path)
    try:
        return from_pil(decode(path))
    except Skip as error:
        message = f"{path} is not a readable picture ({error.fault}): {advice(error.fault)}"
        raise UsageError(message, "not_a_picture", path=path, fault=error.fault) from error


def decode(
    encoded: bytes | Path, background: tuple[int, int, int] = PAPER, remarks: Counter[str] | None = None
) -> Image.Image:
    """Decode an untrusted picture to 8-bit RGB: EXIF orientation applied, transparency composited over `background`,
    first frame of animations; greyscale, palette and CMYK are converted.

    Only the decoders of FORMATS are tried (Pillow's EPS reader would start Ghostscript), and a picture of more than
    MAX_PIXELS by its header is refused before memory is allocated. Unreadable EXIF metadata is ignored and counted in
    `remarks` as BROKEN_METADATA. Raises Skip for an unreadable picture.
    """
    picture = _opened(encoded)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
            return on_colour(_upright(picture, remarks), background)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise Skip(Fault.DAMAGED_IMAGE) from error


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width as `decode` would return, from the header. Raises Skip as `decode`, except for later damage."""
    picture = _opened(path)
    return (picture.width, picture.height) if _orientation(picture) in TURNED else (picture.height, picture.width)


def advice(fault: Fault) -> str:
    """Suggested remedy for a picture with this fault."""
    match fault:
        case Fault.TOO_LARGE:
            return f"at most {MAX_PIXELS:,} pixels are decoded (8192 x 8192), so save a smaller copy"
        case Fault.TOO_DEEP:
            return "save it as 8-bit RGB"
        case Fault.TOO_BIG:
            return "save a smaller copy"
        case _:
            return f"pictures are complete files in one of the formats {', '.join(FORMATS)}, with any extension"


def _opened(encoded: bytes | Path) -> Image.Image:
    """Open a picture, reading its header only. Raises Skip."""
    if isinstance(encoded, Path):
        encoded = read_picture_file(encoded)
    if not encoded:
        raise Skip(Fault.EMPTY_IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings; what matters is raised or counted here
        try:
            picture = Image.open(io.BytesIO(encoded), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise Skip(Fault.NOT_AN_IMAGE) from error
        except Image.DecompressionBombError as error:
            raise Skip(Fault.TOO_LARGE) from error
        except Exception as error:  # header readers raise OSError, SyntaxError, struct.error and others
            raise Skip(Fault.DAMAGED_IMAGE) from error
    if picture.width * picture.height > MAX_PIXELS:
        raise Skip(Fault.TOO_LARGE)
    if picture.mode.startswith(("I", "F")):
        raise Skip(Fault.TOO_DEEP)
    return picture


def read_picture_file(path: Path) -> bytes:
    """The bytes of a regular file of at most MAX_BYTES. Raises Skip for any other."""
    try:
        if not path.is_file():  # reading a pipe or a device might not end
            raise Skip(Fault.NO_FILE)
        if path.stat().st_size > MAX_BYTES:
            raise Skip(Fault.TOO_BIG)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError for a NUL in the name
        raise Skip(Fault.NO_FILE) from error


def _upright(picture: Image.Image, remarks: Counter[str] | None) -> Image.Image:
    broken = False
    try:
        Image.Exif().load(picture.info.get("exif", b""))  # getexif raises only once, and the JPEG reader calls it
    except Exception:
        broken = True
    try:
        picture = ImageOps.exif_transpose(picture)
    except Exception:  # the pixels are intact
        broken = True
    if broken and remarks is not None:
        remarks[BROKEN_METADATA] += 1
    return picture


def _orientation(picture: Image.Image) -> int | None:
    try:
        return picture.getexif().get(ORIENTATION)
    except Exception:
        return None


def on_colour(picture: Image.Image, colour: tuple[int, int, int] = PAPER) -> Image.Image:
    """Convert to RGB, transparency composited over a colour."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*colour, 255)), rgba).convert("RGB")


def from_pil(picture: Image.Image) -> Float[Tensor, "3 h w"]:
    """Pillow picture to RGB in [0, 1], transparency composited over white."""
    rgba = torch.from_numpy(np.array(picture.convert("RGBA"))).permute(2, 0, 1).float() / 255
    return on_background(rgba[None], WHITE)[0]


def to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """A Pillow picture of 8 bits a channel: values outside [0, 1] are clamped, the rest rounded to the nearest. Raises
    UsageError for another shape."""
    if not isinstance(image, Tensor):
        message = f"a picture is a tensor (3, h, w), and this is a {type(image).__name__}"
        raise UsageError(message, "wrong_type", type=type(image).__name__)
    if image.ndim != 3 or image.shape[0] != 3:
        message = f"a picture is (3, h, w), and this is {tuple(image.shape)}: give one, e.g. images[0]"
        raise UsageError(message, "wrong_shape", shape=tuple(image.shape))
    pixels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def save_image(image: Float[Tensor, "3 h w"], path: str | os.PathLike[str]) -> None:
    """Write a picture, atomically, in the format of the path's ending (.png keeps the 8-bit values exactly).

    Raises UsageError for an ending that names no format of Pillow.
    """
    ending = Path(path).suffix.lower()
    form = Image.registered_extensions().get(ending)
    if form is None:
        message = f"cannot write a picture as {ending or 'a file without an ending'}: use .png, .webp or .jpg"
        raise UsageError(message, "unknown_format", ending=ending)
    with atomic_write(path) as file:
        to_pil(image).save(file, format=form)


def on_background(rgba: Float[Tensor, "b 4 h w"], colour: Colour | Tensor = WHITE) -> Float[Tensor, "b 3 h w"]:
    """Composite images with straight alpha over a colour: one for all (3 numbers), or one each (a (B,3) tensor)."""
    paper = torch.as_tensor(colour, dtype=rgba.dtype, device=rgba.device).reshape(-1, 3, 1, 1)
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    return alpha * rgb + (1 - alpha) * paper


def resize(images: Float[Tensor, "b 3 h w"], size: int | tuple[int, int]) -> Float[Tensor, "b 3 h2 w2"]:
    """Bicubic, antialiased, differentiable resizing, clamped to [0, 1]."""
    height, width = (size, size) if isinstance(size, int) else size
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def show_gradients(gradients: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Gradients as images: zero is grey, and +-3 standard deviations of each gradient (Tsipras et al. 2019) are white
    and black."""
    deviation = gradients.square().mean((1, 2, 3), keepdim=True).sqrt()
    return (0.5 + (gradients / (6 * deviation)).nan_to_num()).clamp(0, 1)


def grid(images: Float[Tensor, "n 3 h w"], columns: int | None = None, padding: int = 2) -> Float[Tensor, "3 h2 w2"]:
    """Arrange images on white with `columns` per row (default: one row) and `padding` pixels around each."""
    from torchvision.utils import make_grid  # here, since its import takes a second

    if len(images) == 0:
        raise UsageError("a grid needs at least one image", "too_few", images=0)
    framed = F.pad(images, (padding, 0, padding, 0), value=1.0)  # make_grid leaves a single image without a frame
    cells = make_grid(framed, columns or len(images), padding=0, pad_value=1.0)
    return F.pad(cells, (0, padding, 0, padding), value=1.0)


def titled_grid(
    rows: Sequence[str],
    columns: Sequence[str],
    images: Float[Tensor, "n 3 h w"],
    *,
    padding: int = 4,
    font_size: int = 12,
) -> Float[Tensor, "3 h2 w2"]:
    """Image grid with row titles on the left and wrapped column titles on top.

    Long titles are cut. Raises UsageError unless there are rows x columns images.
    """
    if len(images) != len(rows) * len(columns):
        message = f"{len(rows)} rows x {len(columns)} columns need as many images, not {len(images)}"
        raise UsageError(message, "unequal_counts", rows=len(rows), columns=len(columns), images=len(images))
    height, width = images.shape[-2:]
    font = ImageFont.load_default(font_size)
    rows = [_cut(title) for title in rows]
    captions = [_wrap(_cut(title), width, font) for title in columns]
    margin_left = padding + max(int(_text_size(title, font)[0]) for title in rows)
    margin_top = padding + max(int(_text_size(caption, font)[1]) for caption in captions)

    picture = to_pil(grid(images, len(columns), padding))
    sheet = Image.new("RGB", (margin_left + picture.width, margin_top + picture.height), "white")
    sheet.paste(picture, (margin_left, margin_top))
    draw = ImageDraw.Draw(sheet)
    for index, caption in enumerate(captions):
        centre = margin_left + padding + index * (width + padding) + width / 2
        draw.multiline_text((centre, margin_top), caption, "black", font, anchor="md", align="center")
    for index, title in enumerate(rows):
        middle = margin_top + padding + index * (height + padding) + height / 2
        draw.multiline_text((margin_left, middle), title, "black", font, anchor="rm", align="right")
    return from_pil(sheet)


def _text_size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[float, float]:
    """Width and height of a text of several lines, in pixels, rounded up."""
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return box[2] + 1, box[3] + 1


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Break a text after spaces and hyphens into lines of at most `width` pixels; a longer part keeps its own line."""
    lines: list[str] = []
    for space, word in re.findall(r"(\s*)([^\s-]+-*|-+)", text):
        longer = f"{lines[-1]}{space and ' '}{word}" if lines else word
        if lines and _text_size(longer, font)[0] <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join([*lines[:TITLE_LINES], "..."] if len(lines) > TITLE_LINES else lines)


def _cut(title: str) -> str:
    return title if len(title) <= TITLE_LETTERS else f"{title[:TITLE_LETTERS]}..."


def clamp_through(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Clamp to [0, 1] with VQGAN-CLIP's gradient: zero where a step would lead further out."""
    clamped: Tensor = _ClampThrough.apply(values)
    return clamped


class _ClampThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        # A descent step goes against the gradient: one with the sign of the clamped excess leads back into the range.
        return gradient * (gradient * (values - values.clamp(0, 1)) >= 0)
