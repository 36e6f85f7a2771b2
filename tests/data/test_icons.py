"""The embedded icon set as it is committed, and batches of it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustclip.data import embedded, load_split
from robustclip.data.embedded import path
from robustclip.data.emoji import SPLITS, Labels, label_index, label_records, load_labels, read_shard, splits
from robustclip.data.emoji_batches import Augmentation, EmojiBatches
from robustclip.data.examples import read_examples
from robustclip.errors import UsageError, coded

SMALLEST = "judge-heldback"


@pytest.fixture(scope="module")
def known() -> dict[str, Labels]:
    return {split: load_labels(split, "icons") for split in SPLITS}


def test_the_set_stays_within_its_budget() -> None:
    assert sum(file.stat().st_size for file in path("icons").rglob("*") if file.is_file()) < 20 * 2**20


def test_unseen_styles_are_in_no_guides_training_and_judges_have_styles_of_their_own(known: dict[str, Labels]) -> None:
    kinds = splits("icons")
    assert kinds["unseen_styles"] == ["twemoji", "openmoji"] == splits()["unseen_styles"]
    assert set(known["guide-styles"].styles) == set(kinds["guide_styles"]) > set(splits()["guide_styles"])
    assert not set(known["guide-styles"].styles) & set(known["unseen-train"].styles)
    assert set(known["unseen-train"].styles) == {*kinds["unseen_styles"], *kinds["judge_styles"]}


def test_the_same_concepts_are_held_out_as_in_the_emoji_set(known: dict[str, Labels]) -> None:
    assert splits("icons")["heldout_concepts"] == splits()["heldout_concepts"]
    held_out = set(known["heldout-concepts"].labels.tolist())
    names = label_index("icons")[0]
    hidden = [set(names[label].split()) for label in held_out]
    for split in ("guide-styles", "unseen-styles", "unseen-train", "judge-train"):
        labels = set(known[split].labels.tolist())
        assert not labels & held_out
        things = [names[label] for label in labels if label >= 1631]
        assert not [thing for thing in things if any(words <= set(thing.split()) for words in hidden)]


def test_held_back_drawings_are_those_of_the_emoji_set_and_train_no_judge(known: dict[str, Labels]) -> None:
    heldback = set(known["judge-heldback"].ids)
    assert heldback <= set(load_labels("judge-heldback").ids)
    assert len(heldback) >= 390
    assert not heldback & set(known["judge-train"].ids)


def test_emoji_concepts_come_first_under_the_emoji_sets_numbers() -> None:
    names, index = label_index("icons")
    assert names[:1631] == label_index()[0]
    assert len(names) == len(set(names)) == len(index) > 3000
    assert all(code.startswith("x-") for code in list(index)[1631:])


def test_there_are_more_drawings_than_in_the_emoji_set(known: dict[str, Labels]) -> None:
    assert len(known["guide-styles"]) > 1.5 * len(load_labels("guide-styles"))
    assert all(captions[0] == known["guide-styles"].label_names[label] for captions, label in _first(known, 500))


def _first(known: dict[str, Labels], count: int) -> list[tuple[list[str], int]]:
    labels = known["guide-styles"]
    return list(zip(labels.captions[:count], labels.labels[:count].tolist(), strict=True))


@pytest.mark.parametrize("style", ["noto-v1", "streamline-stickies-color"])
def test_no_two_drawings_of_a_style_are_the_same(style: str) -> None:
    samples = read_shard(style, "icons")
    assert len({sample.webp for sample in samples}) == len(samples)
    assert Image.open(io.BytesIO(samples[0].webp)).size == (96, 96)


def test_images_are_of_96_pixels_and_look_like_those_of_64() -> None:
    large, small = (load_split(name, SMALLEST, list(range(20))) for name in ("icons", "emoji"))
    rows = [small.ids.index(name) for name in large.ids if name in small.ids]
    assert len(rows) >= 10
    assert large.images.shape == (20, 3, 96, 96)
    found = [large.ids.index(small.ids[row]) for row in rows]
    shrunk = torch.nn.functional.interpolate(large.images[found], (64, 64), mode="bilinear", antialias=True)
    assert float(((shrunk - small.images[rows]) ** 2).mean()) ** 0.5 < 0.06


def test_batches_have_the_size_that_is_drawn_for_them() -> None:
    source = EmojiBatches(SMALLEST, batch_size=8, seed=1, dataset="icons", sizes=(64, 96, 128))
    sides = [source.batch(k).images.shape[-2:] for k in range(12)]
    assert {(64, 64), (96, 96), (128, 128)} == set(map(tuple, sides))
    assert torch.equal(source.batch(3).images, next(source.batches(3)).images)
    assert source.describe()["sizes"] == [64, 96, 128]


def test_black_drawings_get_a_dark_colour_and_others_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    source = EmojiBatches(
        "heldout-concepts",
        batch_size=4,
        seed=0,
        augmentation=Augmentation(0, (1, 1), 0, 0, 1, 0, 0, 0, 0),
        dataset="icons",
    )
    rows = [source.samples.styles.index(style) for style in ("fluent-emoji-high-contrast", "noto")]
    before = source.rgba[rows].clone()
    monkeypatch.setattr("robustclip.data.emoji_batches.batch_rows", lambda *_: torch.tensor(rows * 2))
    batch = source.batch(0)
    drawn = before[:, 3] > 250
    assert before[0, :3, drawn[0]].max() < 20
    mean = [batch.images[row][:, drawn[row % 2]].mean(1) for row in range(4)]
    assert (mean[0] - mean[2]).abs().max() > 0.02
    assert torch.allclose(mean[1], mean[3])
    assert torch.equal(source.rgba[rows], before)


def test_splits_are_evaluated_by_name() -> None:
    examples = read_examples("icons/judge-heldback", limit=5)
    assert examples.size == (96, 96)
    assert set(examples.ids) <= set(load_labels(SMALLEST, "icons").ids)


def test_a_wheel_without_the_set_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "root", lambda: tmp_path)
    label_records.cache_clear()
    with pytest.raises(UsageError, check=coded("not_installed", dataset="icons")):
        load_labels(SMALLEST, "icons")
