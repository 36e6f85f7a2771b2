"""The 200 prompts of the embedded world are what their README says; real drawings show what they are said to."""

from __future__ import annotations

from collections import Counter

import pytest

from robustclip.data.emoji import LabelledImages, embedded_prompts, load_labels, prompts_path, real_drawings
from robustclip.synthesis.items import load_prompts


def test_the_prompts_are_two_hundred_different_ones() -> None:
    prompts = embedded_prompts()
    assert Counter(one.kind for one in prompts) == {"name": 140, "held-out name": 20, "phrase": 40}
    assert len({one.prompt for one in prompts}) == len({one.id for one in prompts}) == 200
    assert [(one.id, str(one.prompt)) for one in load_prompts(prompts_path())] == [
        (one.id, one.prompt) for one in prompts
    ]


def test_names_are_of_the_vocabulary_and_held_out_ones_are_not() -> None:
    trained, held_out = (
        {labels.label_names[label] for label in labels.labels.tolist()}
        for labels in map(load_labels, ("judge-heldback", "heldout-concepts"))
    )
    for one in embedded_prompts():
        assert (one.prompt in trained) == (one.kind == "name")
        assert (one.prompt in held_out) == (one.kind == "held-out name")
        assert (one.concept is None) == (one.kind == "phrase")


def test_real_drawings_are_of_the_names() -> None:
    images, prompts = real_drawings()
    assert [images.label_names[label] for label in images.labels.tolist()] == prompts
    counts = Counter(prompts)
    assert all(counts[one.prompt] == 2 for one in embedded_prompts() if one.kind == "name")
    assert all(4 <= counts[one.prompt] <= 8 for one in embedded_prompts() if one.kind == "held-out name")
    assert len(images.images) == len(prompts) == counts.total()


def test_only_parts_that_number_alike_are_joined() -> None:
    images, _ = real_drawings()
    part = images.subset([0, 1])
    assert len(LabelledImages.joined([part, part])) == 4
    other = LabelledImages(
        images=part.images,
        labels=part.labels,
        label_names=["a"],
        captions=part.captions,
        ids=part.ids,
        styles=part.styles,
    )
    with pytest.raises(ValueError, match="number their labels differently"):
        LabelledImages.joined([part, other])
