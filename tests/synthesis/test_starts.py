"""Where a painting starts, and what the notebook's slips make of it: with colours, which can be followed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from robustclip.data import embedded
from robustclip.data.images import resize, save_image
from robustclip.errors import UsageError, coded
from robustclip.inits.mixture import fit_classes
from robustclip.inits.mixture_file import load_mixture, save_mixture
from robustclip.referees.base import TwoTower
from robustclip.referees.card import Card
from robustclip.referees.preprocess import Preprocess
from robustclip.referees.toy import toy_referee
from robustclip.runs.rng import generator
from robustclip.synthesis.guides import Guides
from robustclip.synthesis.items import Item, items_of
from robustclip.synthesis.prompts import parse_all
from robustclip.synthesis.starts import Init, Starts, named_mixture

from ..evaluation.conftest import Dictionary, MeanColour

SIZE = (8, 8)
WORDS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}


def colours(mean: float = 0.0) -> Guides:
    """A guide that sees the mean colour of what is left of a picture when `mean` is taken off."""
    preprocess = Preprocess(8, mean=(mean,) * 3, std=(1.0, 1.0, 1.0))
    card = Card(name="colours", family="toy", architecture={}, preprocess={}, logit_scale=10.0)
    referee = TwoTower(MeanColour(), Dictionary(WORDS), preprocess, card=card, logit_scale=10.0)
    return Guides([referee], [1.0], torch.float32)


def mixture_of(path: Path, *classes: tuple[float, float, float]) -> str:
    """A file of so many Gaussians, each around one plain colour and almost without a spread."""
    images = torch.tensor(classes)[:, :, None, None].expand(-1, -1, 2, 2)
    names = [f"class {number}" for number in range(len(classes))]
    save_mixture(fit_classes(images, torch.arange(len(classes)), names, ridge=1e-8), path, precision="float")
    return str(path)


def items(*prompts: str, seed: int = 0) -> list[Item]:
    return items_of(parse_all(prompts), [seed])


def mean_colour(images: Tensor) -> list[float]:
    return images.mean((0, 2, 3)).tolist()


def test_the_notebook_draws_candidates_of_the_first_20_classes_only(tmp_path: Path) -> None:
    share = torch.linspace(0, 1, 41).tolist()
    file = mixture_of(tmp_path / "hues.safetensors", *((1 - blue, 0.0, blue) for blue in share))
    found = {
        notebook: Starts(file, SIZE, colours(), candidates=1000, notebook=notebook)(items("blue", "red"))
        for notebook in (True, False)
    }
    bluest = {notebook: mean_colour(images[:1]) for notebook, images in found.items()}
    assert bluest[True] == pytest.approx([1 - share[19], 0, share[19]], abs=1e-2), "classes 20 to 40 were not drawn"
    assert bluest[False] == pytest.approx([0, 0, 1], abs=1e-2)
    for images in found.values():
        assert mean_colour(images[1:]) == pytest.approx([1, 0, 0], abs=1e-2), "the first class both of them reach"


def test_the_notebook_ranks_candidates_as_the_referee_does_not_see_them(tmp_path: Path) -> None:
    """Less 0.5, (0.6, 0.6, 0.9) is (0.1, 0.1, 0.4) and very blue, (0.3, 0.3, 0.5) is (-0.2, -0.2, 0) and not blue at
    all. As they are, the cosine with blue is 0.73 of the first and 0.76 of the second."""
    light, dark = (0.6, 0.6, 0.9), (0.3, 0.3, 0.5)
    file = mixture_of(tmp_path / "blues.safetensors", light, dark)
    for notebook, expected in ((True, dark), (False, light)):
        start = Starts(file, SIZE, colours(mean=0.5), candidates=60, notebook=notebook)
        assert mean_colour(start(items("blue"))) == pytest.approx(expected, abs=1e-2)


def test_each_picture_gets_the_candidate_that_is_most_like_its_prompt() -> None:
    guides = Guides.load(toy_referee(), device=torch.device("cpu"), dtype="float32")
    wanted = items("a turtle", "a house", "a turtle:1 | a house:-0.5")
    drawn = load_mixture("emoji-groups").candidates(50, generator(0, "candidates"))
    candidates = resize(drawn, (16, 16))
    found = Starts("mixture", (16, 16), guides, candidates=50)(wanted)
    for start, item in zip(found, wanted, strict=True):
        best = guides.similarity(candidates, [item.prompt] * 50).argmax()
        assert torch.allclose(start, candidates[best], atol=1e-6)


@pytest.mark.parametrize("init", ["mixture", "noise"])
def test_a_start_is_a_function_of_prompt_and_seed(init: str) -> None:
    guides = Guides.load(toy_referee(), device=torch.device("cpu"), dtype="float32")
    starts = Starts(init, (12, 20), guides, candidates=40)
    together = starts([*items("a turtle", "a house"), *items("a turtle", seed=1)])
    assert together.shape == (3, 3, 12, 20)
    assert 0 <= together.min() <= together.max() <= 1
    assert torch.equal(starts(items("a house")), together[1:2])
    assert torch.equal(Starts(init, (12, 20), guides, candidates=40)(items("a turtle", seed=1)), together[2:])
    assert not torch.equal(together[0], together[2])


def test_candidates_are_embedded_once_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    referee = toy_referee()
    seen: list[int] = []
    embed = referee.embed_images
    monkeypatch.setattr(referee, "embed_images", lambda images: (seen.append(len(images)), embed(images))[1])
    starts = Starts("mixture", SIZE, Guides([referee], [1.0], torch.float32), candidates=30)
    starts(items("a turtle", "a house"))
    starts(items("a dog"))
    assert seen == [30]
    starts(items("a dog", seed=1))
    assert seen == [30, 30]
    for prompt in ("a turtle", "a house"):
        starts([items(prompt, seed=seed)[0] for seed in range(9)])
    assert seen == [30] * 9, "also of more seeds than a batch has pictures"


def test_a_temperature_scatters_candidates() -> None:
    guides = Guides.load(toy_referee(), device=torch.device("cpu"), dtype="float32")
    seeds = [items("a turtle", seed=seed)[0] for seed in range(4)]

    def variety(temperature: float) -> float:
        return float(Starts("mixture", SIZE, guides, candidates=200, temperature=temperature)(seeds).var(0).mean())

    assert variety(0.01) < 0.1 * variety(1.0), "200 candidates of 200 classes: the same means for every seed"


def test_grey_and_an_image_of_some_strength(tmp_path: Path) -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    save_image(image, tmp_path / "image.png")

    def start(init: str, **options: float) -> Tensor:
        return Starts(init, SIZE, colours(), **options)(items("red", "blue"))  # type: ignore[arg-type]

    assert torch.equal(start("grey"), torch.full((2, 3, 8, 8), 0.5))
    file = str(tmp_path / "image.png")
    assert torch.allclose(start(file), image.expand(2, -1, -1, -1), atol=1e-6)
    noise = start(file, strength=0.0)
    assert torch.equal(noise, start("noise"))
    assert torch.allclose(start(file, strength=0.25), 0.25 * image + 0.75 * noise, atol=1e-6)


def test_faults_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        ValidationError, match=r"there is no file 'nowhere.png' to start from: give an image, a mixture"
    ):
        TypeAdapter(Init).validate_python("nowhere.png")
    (tmp_path / "mixture.safetensors").write_bytes(b"\x00" * 16)
    (tmp_path / "image.png").write_text("no image")
    for name, code in (("mixture.safetensors", "not_a_mixture"), ("image.png", "not_a_picture")):
        with pytest.raises(UsageError, check=coded(code, path=tmp_path / name)):
            Starts(str(tmp_path / name), SIZE, colours())
    two = mixture_of(tmp_path / "two.safetensors", (1, 0, 0), (0, 0, 1))
    starts = Starts(two, SIZE, colours(), candidates=101, notebook=True)
    with pytest.raises(UsageError, check=coded("too_few", most=100)):
        starts(items("red"))


@pytest.mark.parametrize(
    ("provenance", "source"),
    [
        ({}, "grey"),
        ({"data": {"source": "webdataset", "files": 3}}, "grey"),
        ({"data": "emoji"}, "grey"),
        ({"data": {"source": "emoji", "split": "guide-styles"}}, "emoji-groups"),
        ({"mixture": "emoji-guide-styles"}, "emoji-guide-styles"),
        ({"mixture": "../elsewhere.safetensors"}, "grey"),
        ({"mixture": 3}, "grey"),
    ],
)
def test_by_default_pictures_start_where_the_card_says(provenance: dict[str, Any], source: str) -> None:
    plain, named = toy_referee(), toy_referee(seed=1)
    named.card.provenance = provenance
    starts = Starts("auto", SIZE, Guides([plain, named], [1.0, 1.0], torch.float32), candidates=5)
    assert starts.source == source
    assert (starts.mixture is None) == (source == "grey")
    if source == "grey":
        assert torch.equal(starts(items("a turtle")), torch.full((1, 3, *SIZE), 0.5))


def test_every_embedded_guide_names_the_mixture_of_its_data() -> None:
    for name in ("emoji-robust", "emoji-vanilla", "emoji-vanilla-long", "emoji-vit-robust", "emoji-vit-vanilla"):
        assert named_mixture(Card.load(embedded.root() / "referees" / name)) == "emoji-groups"  # type: ignore[operator]
