"""Pictures and shards that the tests write themselves."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]
WriteTar = Callable[[Path, Iterable[tuple[str, bytes]]], Path]
WriteShard = Callable[..., Path]


@pytest.fixture
def encode() -> Encode:
    """Encode a picture of noise; `value` picks the noise, keywords go to Pillow."""

    def encode(
        value: int = 0, size: tuple[int, int] = (24, 16), form: str = "JPEG", mode: str = "RGB", **options: object
    ) -> bytes:
        noise = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        picture = Image.fromarray(
            noise[..., : {"L": 1, "RGB": 3}.get(mode, 4)].squeeze(), mode="L" if mode == "L" else None
        )
        if picture.mode != mode:
            picture = picture.convert(mode)
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def write_tar() -> WriteTar:
    """Write (name, content) members into a tar; .gz in its name compresses it."""

    def write(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def write_shard(encode: Encode, write_tar: WriteTar) -> WriteShard:
    """Write `count` good samples as img2dataset does: key, caption "caption <key>"."""

    def write(path: Path, count: int, *, first: int = 0, extra: Iterable[tuple[str, bytes]] = ()) -> Path:
        members: list[tuple[str, bytes]] = []
        for number in range(first, first + count):
            key = f"{number:09d}"
            record: Mapping[str, object] = {"caption": f"caption {key}", "key": key, "status": "success"}
            members += [
                (f"{key}.jpg", encode(number)),
                (f"{key}.json", json.dumps(record).encode()),
                (f"{key}.txt", f"caption {key}".encode()),
            ]
        return write_tar(path, [*members, *extra])

    return write
