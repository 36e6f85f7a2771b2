"""What was tried on `synthesize clipstyler`: as in `cases`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from .pictures import picture, png_claim
from .things import made

NUL, ENDLESS = "a\0b", "x" * 5000  # as in `cases`, which reads this file
TOY = "--referee {toy} --quick"


def png(content: Callable[[], bytes]) -> Callable[[Path], Path]:
    """A maker of a content of these bytes."""

    def make(folder: Path) -> Path:
        (folder / "content.png").write_bytes(content())
        return folder / "content.png"

    return make


def deep() -> bytes:
    file = io.BytesIO()
    Image.new("I;16", (32, 32)).save(file, "PNG")
    return file.getvalue()


made("content_claim", png(lambda: png_claim(30_000, 30_000)))
made("content_cut", png(lambda: picture(size=(64, 64))[:-30]))
made("content_deep", png(deep))
made("content_empty", png(lambda: b""))


def contents() -> Iterator[tuple[str, str | list[str], int, str]]:
    """What is no picture, and no name of a drawing."""
    for given, words in (
        ("nowhere.png", "there is no content"),
        ("{folder}", "there is no content"),
        ("{pipe}", "there is no content"),
        ("{loop}", "there is no content"),
        ("/dev/zero", "there is no content"),
        (NUL, "there is no content"),
        (ENDLESS, "there is no content"),
        ("", "there is no content"),
        ("{file}", "is not a readable picture"),
        ("{content_claim}", "is not a readable picture"),
        ("{content_cut}", "is not a readable picture"),
        ("{content_deep}", "more than 8 bits a channel"),
        ("{content_empty}", "is not a readable picture"),
        ("emoji:", "there is no drawing of ''"),
        ("emoji:cat fase", "did you mean cat face"),
        ("emoji:../../labels.json", "there is no drawing of"),
        (f"emoji:{ENDLESS}", "there is no drawing of"),
        (f"emoji:{NUL}", "there is no drawing of"),
    ):
        yield "a content", ["synthesize", "clipstyler", "on fire", "--content", given, *TOY.split()], 2, words


def flags() -> Iterator[tuple[str, str | list[str], int, str]]:
    """Values that a flag of clipstyler can't have."""
    for given, words in (
        ("--canvas clay", "'network' or 'pixels'"),
        ("--patch-size 0", "greater than 0"),
        ("--patch-size 2", "less than or equal to 1"),
        ("--patches -1", "greater than or equal to 0"),
        ("--threshold nan", "finite number"),
        ("--lambda-patch -1", "greater than or equal to 0"),
        ("--lambda-dir inf", "finite number"),
        ("--lambda-content x", "valid number"),
        ("--contrast -1", "greater than or equal to 0"),
        ("--halve-every 0", "greater than 0"),
        ("--lr 0", "greater than 0"),
        ("--size 4", "is not a size of a picture"),
        ("--source ''", "--source is empty"),
        ("--pairs --content emoji:house --content emoji:fish", "as many contents as styles"),
        ("--content-features nowhere.pth", "nowhere.pth"),
        ("--content-features {file}", "file.txt"),
        ("--content-features {pickle_file}", "could run code when opened"),
        ("--content-features nobody", "nobody"),
    ):
        yield "a flag of clipstyler", f"synthesize clipstyler 'on fire' {given} {TOY}", 2, words


STYLER = [*contents(), *flags()]
