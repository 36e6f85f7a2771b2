"""CLIPStyler: contents in styles, by any referee, at any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import adjust_contrast

import robustclip
from robustclip.data.emoji import embedded_styles, emoji_drawing
from robustclip.data.images import save_image
from robustclip.errors import UsageError, coded
from robustclip.referees.toy import toy_referee
from robustclip.synthesis.painted import Result

Restyle = Callable[..., Result]


@pytest.fixture
def restyle(tmp_path: Path) -> Restyle:
    made: list[Path] = []

    def call(*styles: str, **arguments: object) -> Result:
        made.append(tmp_path / f"run {len(made)}")
        short = {"steps": 3, "patches": 2, "device": "cpu", "dtype": "float32", "out": made[-1]}
        return robustclip.synthesize(
            styles or ["made of gold"], toy_referee(), recipe="clipstyler", **{**short, **arguments}
        )

    return call


def test_every_content_is_painted_in_every_style_and_named_by_both(restyle: Restyle, tmp_path: Path) -> None:
    save_image(torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)), tmp_path / "my photo.png")
    contents = ["emoji:cat face", str(tmp_path / "my photo.png")]
    made = restyle("made of gold", "on fire", content=contents, seeds="0..1", quick=True)
    names = ["cat-face-made-of-gold", "cat-face-on-fire", "my-photo-made-of-gold", "my-photo-on-fire"]
    assert [item.id for item in made.items] == [f"{name}-s{seed}" for name in names for seed in (0, 1)]
    assert made.images.shape == (8, 3, 16, 16)
    together = restyle("made of gold", "on fire", content=contents, pairs=True)
    assert [item.id for item in together.items] == [names[0], names[3]]


@pytest.mark.parametrize("canvas", ["network", "pixels"])
def test_the_loss_falls(canvas: str, restyle: Restyle) -> None:
    made = restyle(canvas=canvas, steps=12, lambda_patch=0.0, lambda_tv=0.0, lr=0.002)
    assert (made.trace["loss"][-1] < made.trace["loss"][0]).all()
    assert {"directional", "content"} <= set(made.trace)


@pytest.mark.parametrize(("canvas", "share"), [("pixels", 1e-3), pytest.param("network", 0.25, marks=pytest.mark.slow)])
def test_a_picture_depends_on_its_own_content_style_and_seed_alone(canvas: str, share: float, restyle: Restyle) -> None:
    """`share` of the distance to other pictures; a network's gradients that are zero but for rounding, which depends on
    batch size and CPU, move its weights by whole steps of Adam."""
    (alone,) = restyle("on fire", content=["emoji:house"], canvas=canvas).images
    beside = restyle("made of gold", "on fire", content=["emoji:cat face", "emoji:house"], batch_size=4, canvas=canvas)
    *others, same = (beside.images - alone).abs().mean((1, 2, 3))
    assert same < share * min(others)


def test_any_size_and_contents_with_alpha(restyle: Restyle, tmp_path: Path) -> None:
    clear = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    made = restyle(content=[str(tmp_path / "clear.png")], size="20x28", steps=0, canvas="pixels")
    assert made.images.shape == (1, 3, 20, 28)
    assert torch.allclose(made.images, torch.ones(())), "what is transparent lies on white"


def test_text_is_another_name_for_the_styles(restyle: Restyle, tmp_path: Path) -> None:
    made = robustclip.recipes.run(
        "clipstyler",
        "synthesize",
        {"text": ["on fire"], "referee": [toy_referee()], "steps": 0, "device": "cpu", "out": tmp_path / "run"},
    )
    assert [item.prompt.title for item in made.items] == ["on fire"]
    resumed = {"referee": [toy_referee()], "device": "cpu", "resume": tmp_path / "run"}
    again = robustclip.recipes.run("clipstyler", "synthesize", resumed)
    assert [item.id for item in again.items] == [item.id for item in made.items], "not each style twice"


def test_captions_of_a_file_have_seeds_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "styles.jsonl").write_text('{"prompt": "on fire", "seed": 7}\n{"prompt": "made of gold"}\n')
    call = {"steps": 0, "canvas": "pixels", "content": ["emoji:house", "emoji:cat face"], "device": "cpu"}
    made = robustclip.synthesize(
        tmp_path / "styles.jsonl", toy_referee(), recipe="clipstyler", seeds=[0, 1], out=tmp_path / "run", **call
    )
    assert [(item.id, item.seed) for item in made.items] == [
        *[("house-on-fire-s7", 7), ("house-made-of-gold-s0", 0), ("house-made-of-gold-s1", 1)],
        *[("cat-face-on-fire-s7", 7), ("cat-face-made-of-gold-s0", 0), ("cat-face-made-of-gold-s1", 1)],
    ]
    assert torch.equal(made.images[1], made.images[2])
    assert not torch.equal(made.images[2], made.images[3]), "each of its own content"


def test_pairs_need_as_many_captions_of_a_file(restyle: Restyle, tmp_path: Path) -> None:
    (tmp_path / "styles.txt").write_text("made of gold\non fire\n")
    with pytest.raises(UsageError, check=coded("unequal_lengths", contents=1, styles=2)):
        robustclip.synthesize(tmp_path / "styles.txt", toy_referee(), recipe="clipstyler", pairs=True, device="cpu")


def test_the_released_contrast_by_hand(restyle: Restyle) -> None:
    image = torch.tensor([0.2, 0.6]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert torch.allclose(adjust_contrast(image, 1.5)[0, 0, 0], torch.tensor([0.1, 0.7]), atol=1e-3)
    plain, strong = restyle(steps=0), restyle(steps=0, contrast=1.5)
    assert torch.allclose(strong.images, adjust_contrast(plain.images, 1.5), atol=1e-5)
    assert strong.similarity != plain.similarity, "told is what is handed out"


@pytest.mark.parametrize(
    ("arguments", "code", "near"),
    [
        ({"content": ["emoji:cat fase"]}, "no_drawing", "cat face"),
        ({"content": ["nowhere.png"]}, "missing_file", "nowhere.png"),
        ({"content": []}, "no_content", "--content"),
        ({"source": " "}, "no_source", "--source"),
        ({"content": ["emoji:house"] * 2, "pairs": True}, "unequal_lengths", "2 and 1"),
        ({"source": "made of gold"}, "same_texts", "made of gold"),
        ({"content_features": "emoji-vit-vanilla"}, "no_feature_maps", "emoji-vit-vanilla"),
        ({"size": 8}, "too_small", "8x8"),
    ],
)
def test_bad_calls_say_what_would_do(arguments: dict[str, object], code: str, near: str, restyle: Restyle) -> None:
    with pytest.raises(UsageError, check=coded(code), match=near):
        restyle(**arguments)


def test_the_committed_pairs_are_drawings_of_the_set() -> None:
    found = embedded_styles()
    assert len(found) == len(set(found)) == 50
    assert {
        len({one.style for one in found if one.content == content}) for content in {one.content for one in found}
    } == {5}
    for content in {one.content for one in found}:
        assert emoji_drawing(content).shape == (3, 64, 64)
