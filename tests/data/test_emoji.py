"""The embedded emoji set as it is committed."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter

import pytest
import torch

from robustclip.data import load_split
from robustclip.data.embedded import path
from robustclip.data.emoji import SPLITS, LabelledImages, Labels, label_index, load_labels, load_rgba
from robustclip.errors import UsageError, coded

EMOJI = path("emoji")
GUIDES = {"noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "emojione", "fxemoji"}
UNSEEN = {"twemoji", "openmoji"}


@pytest.fixture(scope="module")
def known() -> dict[str, Labels]:
    """What is known of the images of every split."""
    return {split: load_labels(split) for split in SPLITS}


@pytest.fixture(scope="module")
def heldback() -> LabelledImages:
    return load_split("emoji", "judge-heldback")


def concepts(labels: Labels) -> set[int]:
    return set(labels.labels.tolist())


def test_whole_set_stays_small() -> None:
    assert sum(path.stat().st_size for path in EMOJI.rglob("*") if path.is_file()) < 16e6


def test_guides_and_measurements_share_no_style(known: dict[str, Labels]) -> None:
    assert set(known["guide-styles"].styles) == GUIDES
    assert set(known["unseen-styles"].styles) == set(known["unseen-train"].styles) == UNSEEN
    assert known["unseen-styles"].ids == known["unseen-train"].ids


def test_held_out_concepts_are_in_no_other_split(known: dict[str, Labels]) -> None:
    held_out = concepts(known["heldout-concepts"])
    assert 90 <= len(held_out) <= 110
    assert set(known["heldout-concepts"].styles) == GUIDES | UNSEEN
    for split in set(SPLITS) - {"heldout-concepts"}:
        assert not held_out & concepts(known[split]), split


def test_judge_never_trains_on_its_examination(known: dict[str, Labels]) -> None:
    held_back, trained = known["judge-heldback"], known["judge-train"]
    assert not set(held_back.ids) & set(trained.ids)
    assert set(Counter(held_back.labels.tolist()).values()) == {2}
    assert len(concepts(held_back)) == 200
    assert concepts(held_back) <= concepts(trained)  # the labels are known to the judge, only these drawings are not
    styles_of: dict[int, set[str]] = {}
    for label, style in zip(held_back.labels.tolist(), held_back.styles, strict=True):
        styles_of.setdefault(label, set()).add(style)
    assert all(len(styles & GUIDES) == len(styles & UNSEEN) == 1 for styles in styles_of.values())


def test_splits_cover_the_shards_once(known: dict[str, Labels]) -> None:
    whole = [*known["guide-styles"].ids, *known["unseen-styles"].ids, *known["heldout-concepts"].ids]
    assert len(whole) == len(set(whole)) > 11_000
    judged = [*known["judge-train"].ids, *known["judge-heldback"].ids, *known["heldout-concepts"].ids]
    assert sorted(judged) == sorted(whole)


def test_labels_name_every_concept_once() -> None:
    names, index = label_index()
    assert len(names) == len(set(names)) == len(index) == 1631
    assert names[index["1F422"]] == "turtle"


def test_captions_begin_with_the_label(known: dict[str, Labels]) -> None:
    labels = known["guide-styles"]
    for label, captions in zip(labels.labels.tolist(), labels.captions, strict=True):
        assert captions[0] == labels.label_names[label]
        assert len(captions) == len(set(captions)) >= 3
    turtle = labels.captions[labels.ids.index("1F422-noto")]
    assert {"turtle", "a turtle", "an emoji of a turtle"} < set(turtle)


def test_images_lie_on_white(heldback: LabelledImages) -> None:
    assert heldback.images.shape == (400, 3, 64, 64)
    assert heldback.images.dtype == torch.float32
    assert heldback.labels.dtype == torch.int64
    assert 0 <= heldback.images.min() < 0.05
    assert heldback.images.max() == 1
    rgba, _ = load_rgba("judge-heldback")
    transparent = (rgba[:, 3:] == 0).expand(-1, 3, -1, -1)
    assert transparent.float().mean() > 0.2
    assert (heldback.images[transparent] == 1).all()
    opaque = (rgba[:, 3:] == 255).expand(-1, 3, -1, -1)
    assert torch.equal(heldback.images[opaque], rgba[:, :3][opaque].float() / 255)


def test_subset_keeps_rows_together(heldback: LabelledImages) -> None:
    part = heldback.subset([7, 3])
    assert part.ids == [heldback.ids[7], heldback.ids[3]]
    assert torch.equal(part.images, heldback.images[[7, 3]])
    assert part.labels.tolist() == heldback.labels[[7, 3]].tolist()
    assert part.label_names == heldback.label_names
    drawn = heldback.sample(10, torch.Generator().manual_seed(0))
    assert len(set(drawn.ids)) == 10
    assert len(heldback.sample(10_000, torch.Generator())) == 400


def test_rows_are_those_of_the_whole(heldback: LabelledImages) -> None:
    some, expected = load_split("emoji", "judge-heldback", [7, 3, 399]), heldback.subset([7, 3, 399])
    assert torch.equal(some.images, expected.images)
    assert torch.equal(some.labels, expected.labels)
    assert (some.ids, some.captions, some.styles) == (expected.ids, expected.captions, expected.styles)


def test_rows_that_do_not_match_are_refused(heldback: LabelledImages) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Labels(torch.zeros(2, dtype=torch.long), ["a"], [["a"]], ["1"], ["x"])
    with pytest.raises(ValueError, match="400 images but 1 labels"):
        LabelledImages(torch.zeros(1, dtype=torch.long), ["a"], [["a"]], ["1"], ["x"], heldback.images)


@pytest.mark.parametrize(
    ("dataset", "split", "check"),
    [
        ("emoij", "unseen-styles", coded("unknown_data_set", dataset="emoij")),
        ("emoji", "unseen-style", coded("unknown_split", split="unseen-style", near=["unseen-styles"])),
        ("emoji", "x", coded("unknown_split", split="x", near=[])),
    ],
)
def test_unknown_names_list_the_known(dataset: str, split: str, check) -> None:
    with pytest.raises(UsageError, check=check):
        load_split(dataset, split)


def test_shards_have_the_layout_of_img2dataset() -> None:
    with tarfile.open(EMOJI / "emoji-fxemoji.tar.gz") as tar:
        members = {member.name: member for member in tar}
        names = list(members)
        assert names[:3] == [f"{names[0].partition('.')[0]}.{ending}" for ending in ("webp", "json", "txt")]
        key = "1F422-fxemoji"
        record = json.loads(io.BytesIO(tar.extractfile(f"{key}.json").read()).read())  # type: ignore[union-attr]
        caption = tar.extractfile(f"{key}.txt").read().decode()  # type: ignore[union-attr]
    assert record["concept"] == "1F422"
    assert record["style"] == "fxemoji"
    assert record["captions"][0] == record["label"] == caption == "turtle"
    assert {member.mtime for member in members.values()} == {0}
    assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
