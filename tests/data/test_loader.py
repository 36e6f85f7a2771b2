from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustclip.data.loader import Loader, Preparation
from robustclip.data.mixture import Mixture
from robustclip.data.samples import Batch, BatchSource, positive_id
from robustclip.data.shards import ShardSource
from robustclip.errors import RunError, UsageError, coded


def loader(*folders: Path, batch_size: int = 10, seed: int = 0, shuffle_buffer: int = 10_000, **options: Any) -> Loader:
    sources = [ShardSource(folder, shuffle_buffer=shuffle_buffer) for folder in folders]
    prepare = Preparation(16, scale=(0.3, 0.8))
    return Loader(Mixture(sources), prepare, batch_size=batch_size, seed=seed, **options)


def first(source: BatchSource, count: int, start: int = 0) -> list[Batch]:
    return list(islice(source.batches(start), count))


def ids(batches: Sequence[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.ids]


def same(ours: Batch, theirs: Batch) -> bool:
    tensors = torch.equal(ours.images, theirs.images) and torch.equal(ours.positives, theirs.positives)
    return tensors and ours.captions == theirs.captions and ours.ids == theirs.ids


@pytest.fixture
def folder(tmp_path, write_shard) -> Path:
    """100 good samples in three shards."""
    for number, count in enumerate((40, 35, 25)):
        write_shard(tmp_path / "set" / f"{number}.tar", count, first=1000 * number)
    return tmp_path / "set"


@pytest.fixture
def spoilt(tmp_path, encode, write_shard) -> Path:
    """41 good samples, the last one behind garbage of seven kinds."""
    picture = encode()
    extra = [
        ("cut.jpg", picture[: len(picture) // 2]), ("cut.txt", b"truncated"),
        ("cut2.png", encode(form="PNG")[:200]), ("cut2.txt", b"truncated"),
        ("mute.jpg", picture),
        ("blank.jpg", picture), ("blank.txt", b""),
        ("zero.jpg", b""), ("zero.txt", b"zero bytes"),
        ("wrong.jpg", b"<html>404</html>"), ("wrong.txt", b"an error page"),
        ("bitmap.bmp", encode(form="BMP")), ("bitmap.txt", b"a format that is not read"),
        ("drawing.svg", b"<svg/>"), ("drawing.txt", b"an ending that is no picture's"),
        ("latin.jpg", picture), ("latin.txt", "café".encode("latin-1")),
        ("json.jpg", picture), ("json.json", b"{"),
        ("last.jpg", picture), ("last.txt", b"a good one"),
    ]  # fmt: skip
    return write_shard(tmp_path / "spoilt" / "0.tar", 40, extra=extra).parent


KINDS = {
    "truncated or damaged image": 2,
    "no caption": 2,
    "empty image": 1,
    "not an image": 2,
    "no image": 1,
    "caption not in UTF-8": 1,
    "metadata not a JSON object": 1,
}


@pytest.mark.parametrize("workers", [0, 2])
def test_no_sample_is_lost_or_doubled_in_an_epoch(folder, workers: int) -> None:
    batches = first(loader(folder, workers=workers), 20)
    there = [f"set/{n}/{1000 * n + i:09d}" for n, count in enumerate((40, 35, 25)) for i in range(count)]
    for epoch in (0, 1):
        assert sorted(ids(batches[10 * epoch : 10 * (epoch + 1)])) == sorted(there)
    assert ids(batches[:10]) != ids(batches[10:])


def test_batches_are_the_same_for_any_number_of_workers(folder, spoilt) -> None:
    alone, together = (first(loader(folder, spoilt, workers=workers), 30) for workers in (0, 2))
    assert all(map(same, alone, together))


def test_batches_are_a_function_of_the_seed(folder) -> None:
    assert all(map(same, first(loader(folder), 3), first(loader(folder), 3)))
    assert not any(map(same, first(loader(folder), 3), first(loader(folder, seed=1), 3)))


def test_batches_start_anywhere(spoilt) -> None:
    source = loader(spoilt, batch_size=7)
    whole = first(source, 12)
    assert all(map(same, whole[5:], first(source, 7, start=5)))


def test_the_global_generator_is_left_alone(folder) -> None:
    state = torch.get_rng_state()
    first(loader(folder), 1)
    first(loader(folder, workers=1), 1)
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_is_what_the_trainer_expects(folder) -> None:
    (batch,) = first(loader(folder, batch_size=8), 1)
    assert batch.images.shape == (8, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    batch = batch.to("cpu")
    assert batch.images.dtype == torch.float32
    assert 0 <= batch.images.min() < 0.2
    assert 0.8 < batch.images.max() <= 1
    assert batch.images.mean() == pytest.approx(0.5, abs=0.1)  # noise
    assert batch.positives.shape == (8,)
    assert batch.positives.dtype == torch.int64
    assert batch.captions == [f"caption {name[-9:]}" for name in batch.ids]


def test_white_is_one_and_black_is_zero(tmp_path, write_tar) -> None:
    for name in ("white", "black"):
        picture = io.BytesIO()
        Image.new("RGB", (20, 20), name).save(picture, "PNG")
        write_tar(tmp_path / f"{name}.tar", [("0.png", picture.getvalue()), ("0.txt", name.encode())])
    (batch,) = first(loader(tmp_path, batch_size=2), 1)
    values = {caption: image.unique().tolist() for caption, image in zip(batch.captions, batch.images, strict=True)}
    assert values == {"white": [255], "black": [0]}


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_on_every_device_pictures_are_their_values_divided_by_255(device: str, layout: torch.memory_format) -> None:
    """All 256, bit for bit, by NumPy's division; what is float32 already stays as it is."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    batch = Batch(images, ["a", "b"], torch.arange(2), ["0", "1"])
    for moved in (batch.to(device, layout), batch.to(device, layout).to(device, layout)):
        assert moved.images.device.type == moved.positives.device.type == device
        assert moved.images.is_contiguous(memory_format=layout)
        assert np.array_equal(moved.images[1, 2].flatten().cpu().numpy(), values)


def test_a_sample_is_augmented_anew_each_epoch(folder) -> None:
    batches = first(loader(folder), 20)
    images = {epoch: dict(_pictures(batches[10 * epoch : 10 * (epoch + 1)])) for epoch in (0, 1)}
    changed = [not torch.equal(images[0][name], images[1][name]) for name in images[0]]
    assert sum(changed) > 90  # a crop may come out the same twice


def _pictures(batches: Sequence[Batch]) -> Iterator[tuple[str, torch.Tensor]]:
    for batch in batches:
        yield from zip(batch.ids, batch.images, strict=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_garbage_is_skipped_and_counted_by_kind(spoilt, workers: int) -> None:
    source = loader(spoilt, batch_size=41, workers=workers, shuffle_buffer=1)  # in the order of the file
    batches = source.batches()
    for epochs in (1, 2):
        batch = next(batches)
        assert sorted(batch.ids) == [*(f"spoilt/0/{number:09d}" for number in range(40)), "spoilt/0/last"]
        assert source.faults == {kind: epochs * count for kind, count in KINDS.items()}
    first(source, 1)
    assert source.faults == KINDS  # counted from the start of `batches`


def test_the_report_names_the_first_of_each_kind(spoilt) -> None:
    source = loader(spoilt, batch_size=41, shuffle_buffer=1)
    first(source, 1)
    assert "2 skipped: truncated or damaged image (first: spoilt/0/cut)" in source.report()
    assert "1 skipped: empty image (first: spoilt/0/zero)" in source.report()
    assert len(source.report().splitlines()) == len(KINDS)
    assert loader(spoilt).report() == ""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_with_nothing_usable_ends_with_the_counts(tmp_path, write_tar, workers: int) -> None:
    write_tar(tmp_path / "0.tar", [("0.jpg", b"x"), ("0.txt", b"a"), ("1.jpg", b""), ("1.txt", b"b"), ("2.jpg", b"y")])
    with pytest.raises(RunError, match="1 no caption", check=coded("empty_data", source=tmp_path.name)):
        first(loader(tmp_path, workers=workers), 1)


def test_a_set_of_empty_shards_ends(tmp_path, write_tar) -> None:
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(RunError, check=coded("no_samples", source=tmp_path.name)):
        first(loader(tmp_path), 1)


def test_in_a_mixture_the_source_with_nothing_usable_is_named(tmp_path, folder, write_tar) -> None:
    write_tar(tmp_path / "bad" / "0.tar", [("0.jpg", b"x"), ("0.txt", b"a")])
    with pytest.raises(RunError, check=coded("empty_data", source="bad", skipped={"not an image": 1})):
        first(loader(folder, tmp_path / "bad"), 20)


def test_equal_captions_and_equal_concepts_are_positives(tmp_path, encode, write_tar) -> None:
    texts = {"0": ("a dog", None), "1": ("a dog", None), "2": ("a cat", None), "3": ("one", "c"), "4": ("two", "c")}
    members = [
        (f"{key}.{ending}", content)
        for key, (caption, concept) in texts.items()
        for ending, content in (
            ("jpg", encode()),
            ("json", json.dumps({"caption": caption, "concept": concept}).encode()),
        )
    ]
    write_tar(tmp_path / "0.tar", members)
    (batch,) = first(loader(tmp_path, batch_size=5), 1)
    ids = dict(zip((name[-1] for name in batch.ids), batch.positives.tolist(), strict=True))
    assert ids["0"] == ids["1"]
    assert ids["3"] == ids["4"]
    assert len(set(ids.values())) == 3


def test_positive_ids_are_stable_and_of_63_bits() -> None:
    assert positive_id(caption="a dog") == 7_561_480_341_843_319_001
    assert positive_id(concept="a dog") != positive_id(caption="a dog")
    assert all(0 <= positive_id(caption=str(number)) < 2**63 for number in range(100))


def test_of_several_captions_each_epoch_draws_one(tmp_path, encode, write_tar) -> None:
    record = json.dumps({"captions": ["one", "two", "three"]}).encode()
    write_tar(tmp_path / "0.tar", [("0.jpg", encode()), ("0.json", record)])
    (batch,) = first(loader(tmp_path, batch_size=60), 1)
    counts = Counter(batch.captions)
    assert set(counts) == {"one", "two", "three"}
    assert min(counts.values()) > 5


def test_describe_is_json(folder) -> None:
    described = json.loads(json.dumps(loader(folder, seed=3).describe()))
    assert described["seed"] == 3
    assert described["size"] == [16, 16]
    assert described["sources"][0]["shards"] == 3


def test_signals_to_the_whole_group_are_left_to_the_main_process(folder) -> None:
    """A terminal's Ctrl-C and a scheduler's SIGTERM reach the workers too."""
    batches = loader(folder, workers=2, batch_size=20).batches()
    first_one = next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    rest = list(islice(batches, 10))
    assert all(map(same, [first_one, *rest], first(loader(folder, batch_size=20), 11)))
    del batches
    for worker in workers:
        worker.join(5)
        assert worker.exitcode == 0


STOPPED = """
import sys
from robustclip.data.sources import open_data
batches = open_data(sys.argv[1], batch_size=2, size=8, workers=2).batches()
next(batches)
raise SystemExit("stopped in the middle")
"""


def test_a_process_that_ends_in_the_middle_takes_its_workers_with_it(folder) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STOPPED, str(folder)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr.strip()) == (1, "stopped in the middle")


def test_numbers_out_of_range_are_refused(folder) -> None:
    with pytest.raises(UsageError, check=coded("out_of_range", argument="batch_size", given=0)):
        loader(folder, batch_size=0)
    with pytest.raises(UsageError, check=coded("out_of_range", argument="workers", given=-1)):
        loader(folder, workers=-1)
    with pytest.raises(UsageError, check=coded("out_of_range", argument="max_skipped", given=5)):
        loader(folder, max_skipped=5)
