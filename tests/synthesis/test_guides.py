"""Who guides, with which weight, towards what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.inits.basic import embedder
from robustclip.referees.smoothed import fingerprint
from robustclip.referees.toy import toy_referee
from robustclip.synthesis.guides import Guides, parse_weight
from robustclip.synthesis.prompts import Prompt

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def guides(*referees: object) -> Guides:
    return Guides.load(list(referees) or [toy_referee()], device=CPU, dtype="float32")  # type: ignore[arg-type]


def test_the_similarity_of_one_text_is_the_referees_cosine() -> None:
    referee = toy_referee()
    prompts = [Prompt.parse("a cat"), Prompt.parse("a dog")]
    expected = (referee.embed_images(IMAGES) * referee.embed_texts(["a cat", "a dog"])).sum(1)
    assert torch.allclose(guides(referee).similarity(IMAGES, prompts), expected, atol=1e-6)


def test_parts_add_up_by_their_weights_also_those_of_pictures(tmp_path: Path) -> None:
    referee = toy_referee()
    save_image(IMAGES[0], tmp_path / "leaf.png")
    prompt = Prompt.parse(f"a cat:2 | image:{tmp_path / 'leaf.png'}:0.5 | blurry:-0.3")
    texts = referee.embed_texts(["a cat", "blurry"])
    seen = referee.embed_images(IMAGES)
    leaf = referee.embed_images((IMAGES[:1] * 255).round() / 255)[0]
    expected = 2 * seen @ texts[0] + 0.5 * seen @ leaf - 0.3 * seen @ texts[1]
    both = [prompt, Prompt.parse("a dog")]  # fewer parts than the other
    assert torch.allclose(guides(referee).similarity(IMAGES, both)[0], expected[0], atol=1e-5)
    scores = guides(referee).directions(both) @ seen.T
    assert torch.allclose(scores[0], expected, atol=1e-5)
    assert torch.allclose(scores[1], seen @ referee.embed_texts(["a dog"])[0], atol=1e-5)


def test_prompts_are_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = guides()
    asked: list[str] = []
    embed = made.referees[0].embed_texts
    monkeypatch.setattr(made.referees[0], "embed_texts", lambda texts: (asked.extend(texts), embed(texts))[1])
    for _ in range(3):
        made.targets([Prompt.parse("a cat"), Prompt.parse("a cat"), Prompt.parse("a dog | a cat")])
    assert asked == ["a cat", "a dog"]


def test_referees_weigh_what_was_given(tmp_path: Path) -> None:
    first, second = toy_referee(seed=0, name="one"), toy_referee(seed=1, name="two")
    prompts = [Prompt.parse("a cat")] * 2
    mixed = Guides([first, second], [3.0, 1.0], torch.float32)
    alone = [guides(one).similarity(IMAGES, prompts) for one in (first, second)]
    assert torch.allclose(mixed.similarity(IMAGES, prompts), 0.75 * alone[0] + 0.25 * alone[1], atol=1e-6)
    assert torch.allclose(
        (mixed.directions(prompts) @ embedder([first, second])(IMAGES).T)[0],
        mixed.similarity(IMAGES, prompts),
        atol=1e-6,
    )
    described = mixed.describe()
    assert [one["name"] for one in described] == ["one", "two"]
    assert [one["weight"] for one in described] == [3.0, 1.0]
    assert described[0]["fingerprint"] == fingerprint(first)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("emoji-robust", ("emoji-robust", 1.0)),
        ("emoji-robust=0.5", ("emoji-robust", 0.5)),
        ("ViT-B-32:laion2b_s34b_b79k=2", ("ViT-B-32:laion2b_s34b_b79k", 2.0)),
    ],
)
def test_names_with_weights(text: str, expected: tuple[str, float]) -> None:
    assert parse_weight(text) == expected


@pytest.mark.parametrize("weight", ["much", "nan", "inf", "-1", "0", "", "1_0", "0x1"])
def test_a_weight_that_is_no_number_is_told(weight: str) -> None:
    with pytest.raises(UsageError, check=coded("not_positive", argument="emoji-robust", given=weight)):
        parse_weight(f"emoji-robust={weight}")


def test_referees_that_cannot_guide_together_are_told() -> None:
    with pytest.raises(UsageError, check=coded("no_referees")):
        Guides.load([], device=CPU)
    with pytest.raises(UsageError, check=coded("listed_twice", referee="emoji-judge")):
        Guides.load(["emoji-judge", "emoji-judge=2"], device=CPU)
