"""Shards as they come from the web: one sample in twenty is garbage."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustclip import recipes
from robustclip.data.loader import JUDGED_FROM, Loader, Preparation
from robustclip.data.mixture import Mixture
from robustclip.data.sources import open_data, open_source
from robustclip.errors import RunError, UsageError, coded
from robustclip.runs.folder import Run

GOOD = 19  # of 20


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims this size and holds no more than a few bytes."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def floats(value: float) -> bytes:
    """A TIFF of floating-point numbers."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16), value, np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16), 60_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def garbage(encode) -> dict[str, tuple[dict[str, bytes], str]]:
    """What there is to meet: the members of a sample, and the kind it is counted as."""
    jpeg, png, text = encode(), encode(form="PNG"), {"txt": b"a caption"}
    return {
        "half a jpeg": ({"jpg": jpeg[: len(jpeg) // 2], **text}, "truncated or damaged image"),
        "a jpeg's first bytes": ({"jpg": jpeg[:30], **text}, "truncated or damaged image"),
        "half a png": ({"png": png[: len(png) // 2], **text}, "truncated or damaged image"),
        "a png with changed bytes": ({"png": png[:60] + bytes(40) + png[100:], **text}, "truncated or damaged image"),
        "zero bytes": ({"jpg": b"", **text}, "empty image"),
        "an error page": ({"jpg": b"<!DOCTYPE html><h1>403</h1>", **text}, "not an image"),
        "a PDF": ({"png": b"%PDF-1.7\n", **text}, "not an image"),
        "an SVG": ({"png": b"<svg width='30000' height='30000'/>", **text}, "not an image"),
        "only zeros": ({"jpg": bytes(5000), **text}, "not an image"),
        "a float TIFF": ({"png": floats(0.5), **text}, "not an image"),
        "a NaN TIFF": ({"png": floats(float("nan")), **text}, "not an image"),
        "an endless TIFF": ({"jpg": floats(float("inf")), **text}, "not an image"),
        "sixteen bits": ({"png": sixteen_bits(), **text}, "more than 8 bits a channel"),
        "30,000 x 30,000": ({"png": png_header(30_000, 30_000), **text}, "too many pixels"),
        "2^31 x 2^31": ({"png": png_header(2**31 - 1, 2**31 - 1), **text}, "too many pixels"),
        "9,000 x 9,000": ({"png": png_header(9_000, 9_000), **text}, "too many pixels"),
        "no pixels": ({"png": png_header(0, 0), **text}, "not an image"),
        "no caption": ({"jpg": jpeg}, "no caption"),
        "a caption of white space": ({"jpg": jpeg, "txt": b" \r\n\t"}, "no caption"),
        "a caption of NULs": ({"jpg": jpeg, "txt": b"\0\0"}, "no caption"),
        "a caption that is null": ({"jpg": jpeg, "json": b'{"caption": null}'}, "no caption"),
        "a caption that is a number": ({"jpg": jpeg, "json": b'{"caption": NaN}'}, "no caption"),
        "latin-1": ({"jpg": jpeg, "txt": "café".encode("latin-1")}, "caption not in UTF-8"),
        "broken JSON": ({"jpg": jpeg, "json": b'{"caption": "a'}, "metadata not a JSON object"),
        "deep JSON": ({"jpg": jpeg, "json": b'{"a":' * 50_000}, "metadata not a JSON object"),
        "a long number": ({"jpg": jpeg, "json": b'{"a": ' + b"9" * 10_000 + b"}"}, "metadata not a JSON object"),
        "a list": ({"jpg": jpeg, "json": b"[]"}, "metadata not a JSON object"),
        "no picture": ({"txt": b"a caption"}, "no image"),
    }  # fmt: skip


@pytest.fixture
def spoilt(tmp_path, encode, write_tar, garbage) -> Path:
    """For each piece of garbage 19 good samples, dealt over four shards, one of which breaks off."""
    samples: list[dict[str, bytes]] = []
    for number, (_, (members, _)) in enumerate(garbage.items()):
        good = [{"jpg": encode(20 * number + i), "txt": f"good {i}".encode()} for i in range(GOOD)]
        samples += [*good[:7], members, *good[7:]]
    for shard in range(4):
        members = [
            (f"{number:05d}.{ending}", content)
            for number, sample in enumerate(samples)
            if number % 4 == shard
            for ending, content in sample.items()
        ]
        path = write_tar(tmp_path / "spoilt" / f"{shard}.tar", members)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 10_240)  # the end and what lies before it
    return path.parent


@pytest.fixture
def expected(garbage) -> dict[str, int]:
    return {**Counter(kind for _, kind in garbage.values()), "broken shard": 1}


def loader(folder: Path, **options: Any) -> Loader:
    return Loader(Mixture([open_source(str(folder))]), Preparation(8), batch_size=50, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_garbage_completes_and_counts_it_by_kind(spoilt, garbage, expected, workers: int) -> None:
    source = loader(spoilt, workers=workers)
    count = GOOD * len(garbage)
    batches = list(islice(source.batches(), count // 50))
    assert all(batch.images.isfinite().all() and len(batch) == 50 for batch in batches)
    seen = source.faults.copy()
    assert sum(seen.values()) / count == pytest.approx(0.05, abs=0.02)
    assert set(seen) <= set(expected)
    list(islice(source.batches(), 3 * count // 50))
    assert set(source.faults) == set(expected)
    assert all(line.split(" skipped: ")[1].split(" (")[0] in expected for line in source.report().splitlines())


@pytest.mark.slow
def test_a_recipe_over_garbage_ends_with_its_counts_and_above_the_share_with_an_error(spoilt, expected) -> None:
    out = spoilt.parent / "run"
    call = {
        "quick": True,
        "device": "cpu",
        "dtype": "float32",
        **dict.fromkeys(("sbu", "cc3m", "cc12m", "laion"), str(spoilt)),
    }
    numbers = recipes.run("clipag-vit-b32", "robustify", {**call, "out": out / "whole"})
    record = Run.open(out / "whole").record
    assert record["status"] == "finished"
    assert numbers["loss"] > 0
    skipped = record["notes"]["skipped_samples"]
    assert 10 < sum(skipped.values()) < 100  # of more than 640
    assert set(skipped) <= set(expected)
    assert any(told.startswith("skipped samples: ") for told in record["warnings"])
    with pytest.raises(RunError, check=coded("too_many_skipped")):
        recipes.run("clipag-vit-b32", "robustify", {**call, "max_skipped": 0.01, "out": out / "stopped"})
    assert Run.open(out / "stopped").status == "failed"


def test_each_piece_of_garbage_is_of_its_kind(tmp_path, garbage, write_shard) -> None:
    for number, (members, kind) in enumerate(garbage.values()):
        extra = [(f"bad.{ending}", content) for ending, content in members.items()]
        folder = write_shard(tmp_path / str(number) / "0.tar", 1, extra=extra).parent
        source = Loader(Mixture([open_source(str(folder))]), Preparation(8), batch_size=4)
        next(source.batches())
        assert set(source.faults) == {kind}, list(garbage)[number]


def test_a_share_that_the_user_sets_stops_the_run_and_names_the_kinds(spoilt, expected) -> None:
    with pytest.raises(RunError) as caught:
        list(islice(loader(spoilt, max_skipped=0.01).batches(), 100))
    message = str(caught.value)
    assert "cannot be used, more than the 1.0% that --max-skipped allows:" in message
    kinds = {line.split(" skipped: ")[1].split(" (first: spoilt/")[0] for line in message.splitlines()[1:]}
    assert kinds
    assert kinds <= set(expected)
    skipped, seen = (int(number) for number in (message.split()[0], message.split()[2]))
    assert seen >= JUDGED_FROM
    assert skipped / seen > 0.01
    list(islice(loader(spoilt, max_skipped=0.5).batches(), 20))


def test_no_skipped_sample_is_allowed_at_zero(tmp_path, write_shard) -> None:
    write_shard(tmp_path / "0.tar", 300)
    list(islice(loader(tmp_path, max_skipped=0.0).batches(), 10))
    write_shard(tmp_path / "1.tar", 300, extra=[("x.jpg", b"x"), ("x.txt", b"x")])
    with pytest.raises(RunError, match=r"first: .*/1/x", check=coded("too_many_skipped", skipped=1)):
        list(islice(loader(tmp_path, max_skipped=0.0).batches(), 30))


def test_a_few_faults_at_the_beginning_say_nothing_yet(tmp_path, write_shard) -> None:
    path = write_shard(tmp_path / "0.tar", 50, extra=[(f"x{n}.jpg", b"") for n in range(20)])
    assert next(loader(path, max_skipped=0.1).batches())
    with pytest.raises(RunError, match="--max-skipped"):
        list(islice(loader(path, max_skipped=0.1).batches(), 5))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(spoilt, value: float) -> None:
    with pytest.raises(UsageError, check=coded("out_of_range", argument="max_skipped")):
        open_data(str(spoilt), batch_size=1, size=8, max_skipped=value)


@pytest.mark.parametrize(
    ("caption", "read"),
    [
        ("a\0dog", "a dog"),
        ("\x1b[31ma dog", "[31ma dog"),
        ("a\r\n dog\x85", "a  dog"),
        ("👩‍🚀\u202e dog", "👩‍🚀\u202e dog"),
    ],
)
def test_control_characters_become_spaces(tmp_path, encode, write_tar, caption: str, read: str) -> None:
    write_tar(tmp_path / "0.tar", [("0.jpg", encode()), ("0.json", json.dumps({"caption": caption}).encode())])
    assert next(loader(tmp_path).batches()).captions == [read] * 50


def test_broken_metadata_is_counted_and_the_picture_used(tmp_path, encode, write_shard) -> None:
    broken = encode(form="PNG", exif=b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03")
    write_shard(tmp_path / "0.tar", 3, extra=[("odd.png", broken), ("odd.txt", b"odd")])
    source = loader(tmp_path, workers=2)
    first, _ = (next(source.batches()), next(source.batches()))
    assert not source.faults
    assert "odd" in first.captions
    assert set(source.remarks) == {"broken metadata (the pixels are read)"}
    odd = source.describe()["odd_samples"]["broken metadata (the pixels are read)"]
    assert odd == first.captions.count("odd")
    assert f"{odd} used: broken metadata (the pixels are read) (first: " in source.report()
    assert first.position is not None
    assert first.position["remarks"] == source.remarks


def test_a_table_that_points_at_what_is_no_picture_file(tmp_path, encode) -> None:
    (tmp_path / "good.jpg").write_bytes(encode())
    (tmp_path / "folder").mkdir()
    paths = ["good.jpg", "folder", "/dev/null", "no\0name.jpg", "x" * 5000, "../missing.jpg"]
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2**40)
    rows = "".join(f"{path},a caption\n" for path in (*paths, "huge.jpg"))
    (tmp_path / "0.csv").write_text(f"path,caption\n{rows}good.jpg,a\0caption\n")
    source = Loader(Mixture([open_source(str(tmp_path / "0.csv"))]), Preparation(8), batch_size=10)
    batch = next(source.batches())
    assert set(batch.captions) == {"a caption"}
    assert set(source.faults) == {"image file missing", "file of more than 64 MiB"}


def test_what_is_random_of_a_good_sample_does_not_depend_on_the_garbage_beside_it(tmp_path, write_shard) -> None:
    clean = write_shard(tmp_path / "clean" / "set" / "0.tar", 20).parent
    dirty = write_shard(tmp_path / "dirty" / "set" / "0.tar", 20, extra=[("x.jpg", b"")] * 5).parent
    batches: list[dict[str, torch.Tensor]] = []
    for folder in (clean, dirty):
        source = Loader(Mixture([open_source(str(folder))]), Preparation(8, scale=(0.3, 0.6)), batch_size=20)
        batch = next(source.batches())
        batches.append(dict(zip(batch.ids, batch.images, strict=True)))
    assert batches[0].keys() == batches[1].keys()
    assert all(torch.equal(image, batches[1][name]) for name, image in batches[0].items())
