"""Pictures, shards and names to measure on."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .things import Maker, Payload, made, maker


def picture(
    colour: tuple[int, ...] = (200, 30, 30), size: tuple[int, int] = (16, 16), form: str = "PNG", **options: Any
) -> bytes:
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    file = io.BytesIO()
    Image.new(modes[len(colour)], size, colour if len(colour) > 1 else colour[0]).save(file, format=form, **options)
    return file.getvalue()


def noise() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(file, format="PNG")
    return file.getvalue()


def png_claim(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its content has not."""
    good = picture()
    header = struct.pack(">II", width, height) + good[24:29]
    return good[:12] + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + good[33:]


def class_folder(
    *pictures: bytes, names: str | bytes | None = None, classes: tuple[str, ...] = ("red", "green")
) -> Maker:
    """Two classes; the pictures are the first one's."""

    def make(folder: Path) -> Path:
        for index, name in enumerate(classes):
            (folder / name).mkdir(parents=True)
            held = pictures if index == 0 and pictures else [picture()]
            for number, content in enumerate(held):
                (folder / name / f"{number}.png").write_bytes(content)
        if names is not None:
            (folder / "classnames.txt").write_bytes(names if isinstance(names, bytes) else names.encode())
        return folder

    return make


def tar_of(members: list[tuple[str, bytes]], change: Callable[[tarfile.TarInfo], object] | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if change is not None:
                change(info)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def shards(
    content: bytes | list[tuple[str, bytes]], names: str | bytes | None = "red\ngreen\n", templates: str = ""
) -> Maker:
    """clip_benchmark's layout with one shard."""

    def make(folder: Path) -> Path:
        (folder / "test").mkdir(parents=True)
        (folder / "test" / "0.tar").write_bytes(content if isinstance(content, bytes) else tar_of(content))
        if templates:
            (folder / "zeroshot_classification_templates.txt").write_text(templates)
        if names is not None:
            (folder / "classnames.txt").write_bytes(names if isinstance(names, bytes) else names.encode())
        return folder

    return make


def sample(key: str = "a", label: bytes = b"0", caption: bytes = b"a thing") -> list[tuple[str, bytes]]:
    return [(f"{key}.png", picture()), (f"{key}.cls", label), (f"{key}.txt", caption)]


def link(info: tarfile.TarInfo) -> None:
    if info.name.endswith(".png"):
        info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


def huge_member(good: bytes) -> bytes:
    """The header of the first member says 8 TB."""
    info = tarfile.TarInfo("a.png")
    info.size = 2**43
    return info.tobuf(tarfile.GNU_FORMAT) + good[512:]


def gzip_bomb() -> bytes:
    """Some kilobytes of shard with a picture of 8 GB, in a stream that is not whole: who reads it all would know."""
    info = tarfile.TarInfo("a.png")
    info.size = 2**33
    file = io.BytesIO()
    with gzip.open(file, "wb") as packed:
        packed.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(16):
            packed.write(bytes(2**20))
    return file.getvalue()


made("data", class_folder(classes=("red", "green")))
made("data_empty", lambda folder: folder)
made("data_no_pictures", class_folder(classes=()))
made("data_png_claim", class_folder(png_claim(2**31 - 1, 2**31 - 1)))
made("data_png_claim_30000", class_folder(png_claim(30_000, 30_000)))
made("data_truncated", class_folder(noise()[:-300]))
made("data_empty_picture", class_folder(b""))
made("data_text_as_picture", class_folder(b"<html>not here</html>"))
made("data_svg", class_folder(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'))
made("data_eps", class_folder(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"))
made("data_bmp", class_folder(picture(form="BMP")))
made("data_one_pixel_wide", class_folder(picture(size=(1, 60_000))))
made("data_sizes", class_folder(picture(), picture(size=(9, 7))))
made("data_names_few", class_folder(names="red\n"))
made("data_names_many", class_folder(names="red\ngreen\nblue\n"))
made("data_names_blank", class_folder(names="red\n\ngreen\n"))
made("data_names_latin", class_folder(names="r\xe4d\ngreen\n".encode("latin-1")))
made("data_names_megabytes", class_folder(names=b"x" * 40_000_000))


def sixteen_bits() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(file, format="PNG")
    return file.getvalue()


made("data_16_bits", class_folder(sixteen_bits()))


def with_entry(make: Callable[[Path], object], name: str = "red/x.png") -> Maker:
    def made_(folder: Path) -> Path:
        class_folder()(folder)
        make(folder / name)
        return folder

    return made_


made("data_pipe", with_entry(os.mkfifo))
made("data_zeros", with_entry(lambda path: path.symlink_to("/dev/zero")))
made("data_unreadable", with_entry(lambda path: path.symlink_to("/proc/self/mem")))
made("data_dangling", with_entry(lambda path: path.symlink_to("nowhere.png")))
made("data_loop", with_entry(lambda path: path.symlink_to(path.parent.parent), "red/again"))
made("data_sparse", with_entry(lambda path: (path.touch(), os.truncate(path, 2**40))))
made("shards_empty", shards(b""))
made("shards_random", shards(bytes(range(256)) * 16))
made("shards_truncated", shards(tar_of(sample())[:700]))
made("shards_no_names", shards(sample(), names=None))
made("shards_label_text", shards(sample(label=b"red")))
made("shards_label_negative", shards(sample(label=b"-1")))
made("shards_label_large", shards(sample(label=b"7")))
made("shards_label_huge", shards(sample(label=b"9" * 9000)))
made("shards_label_other_digits", shards(sample(label="٣".encode())))
made("shards_label_missing", shards([*sample(), ("b.png", picture())]))
made("shards_caption_latin", shards(sample(caption="caf\xe9".encode("latin-1"))))
made("shards_caption_empty", shards([("a.png", picture()), ("a.txt", b"")], names=None))
made("shards_twice", shards(sample() + sample(label=b"1")))
made("shards_link", shards(tar_of(sample(), link)))
made("shards_huge_member", shards(huge_member(tar_of(sample()))))
made("shards_huge_label", shards(sample(label=b"1" * 10_000_000)))
made("shards_gzip_bomb", shards(gzip_bomb()))
made("shards_gzip_broken", shards(gzip.compress(tar_of([("a.png", noise())]))[:400] + b"\xff" * 32))
made("shards_bz2", shards(bz2.compress(tar_of(sample()))))
made("shards_pickle", shards([("a.pkl", pickle.dumps(Payload())), *sample(label=b"9")]))
made("shards_names_blank", shards(sample(label=b"1"), names="red\n\ngreen\n"))
made("shards_names_latin", shards(sample(), names="r\xe4d\n".encode("latin-1")))
made("shards_templates", shards(sample(), templates="no place for the name\n"))


@maker
def shard_is_a_pipe(folder: Path) -> Path:
    (folder / "test").mkdir()
    os.mkfifo(folder / "test" / "0.tar")
    return folder


@maker
def shard_is_zeros(folder: Path) -> Path:
    (folder / "test").mkdir()
    (folder / "test" / "0.tar").symlink_to("/dev/zero")
    return folder
