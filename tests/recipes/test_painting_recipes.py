"""Every recipe of synthesis, with a referee that takes milliseconds: what it writes, and what it may not depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import robustclip
from robustclip.canvases import Canvas, Pixels, Pyramid
from robustclip.data.images import load_image, save_image
from robustclip.errors import UsageError, coded
from robustclip.recipes import CHECKOUT, available
from robustclip.referees.registry import load_referee
from robustclip.referees.smoothed import fingerprint
from robustclip.referees.toy import toy_referee
from robustclip.synthesis import studio
from robustclip.synthesis.painted import Painted, Result
from robustclip.synthesis.pictures import read_facts
from robustclip.views import Clamp, GaussianNoise, RandomCrop, diffaug

# Others: tests/recipes/test_{clipstyler,doodl,...}.py, tests/evaluation/generation/test_information.py.
OF_CONTENT = {"clipstyler", "diffusion", "doodl", "referee-can-play"}
RECIPES = [recipe.name for recipe in available("synthesize") if recipe.name not in OF_CONTENT]
PROMPTS = ["a green turtle", "a blue butterfly"]
SHORT = {
    "clipag": {"steps": 6, "views": 2, "candidates": 50, "patches": 2},
    "clipag-faithful": {"steps": 6, "views": 2, "candidates": 60, "patches": 2},
    "clipdraw": {"steps": 6, "views": 2, "strokes": 16},
    "direct-ascent": {"steps": 6, "views": 2},
    "inr": {"steps": 6, "views": 2, "candidates": 50, "fit_steps": 4, "width": 16, "layers": 2},
    "vqgan": {"steps": 6, "views": 2, "candidates": 50},
}
OF_A_START = ("clipag", "clipag-faithful", "inr", "vqgan")
every_recipe = pytest.mark.parametrize("recipe", RECIPES)


@pytest.fixture
def paint(tmp_path: Path) -> Callable[..., Result]:
    """`paint(recipe, *prompts, steps=..., referee=...)`, into folders of the test's own."""
    made: list[Path] = []

    def call(recipe: str, *prompts: str, referee: object = None, **arguments: object) -> Result:
        made.append(tmp_path / f"run {len(made)}")
        settings = {**({} if "quick" in arguments else SHORT[recipe]), "device": "cpu", "dtype": "float32"}
        settings |= {"init": "mixture"} if recipe in OF_A_START else {}
        return robustclip.synthesize(
            prompts or PROMPTS[:1],
            toy_referee() if referee is None else referee,
            recipe=recipe,
            **{"out": made[-1], **settings, **arguments},
        )

    return call


def test_no_recipe_is_left_out() -> None:
    files = {path.stem.replace("_", "-") for path in (CHECKOUT / "synthesize").glob("*.py")}
    assert files - OF_CONTENT == set(RECIPES) == set(SHORT)


@every_recipe
def test_a_run_writes_what_it_promises(recipe: str, paint: Callable[..., Result]) -> None:
    referee = toy_referee()
    made = paint(recipe, *PROMPTS, quick=True, seeds="0..1", referee=referee)
    names = ["a-green-turtle-s0", "a-green-turtle-s1", "a-blue-butterfly-s0", "a-blue-butterfly-s1"]
    assert [item.id for item in made.items] == names
    assert made.images.shape == (4, 3, 16, 16)
    assert 0 <= made.images.min() <= made.images.max() <= 1
    assert sorted(path.name for path in (made.folder / "images").iterdir()) == sorted(f"{name}.png" for name in names)
    seen = (referee.embed_images(made.images) * referee.embed_texts([PROMPTS[0]] * 2 + [PROMPTS[1]] * 2)).sum(1)
    assert torch.allclose(made.similarity, seen, atol=1e-5), "of the picture that is handed out"

    by = [{"name": "toy", "weight": 1.0, "fingerprint": fingerprint(referee)}]
    for index, (item, file) in enumerate(zip(made.items, made.files, strict=True)):
        assert torch.allclose(load_image(file), made.images[index], atol=0.51 / 255)
        facts = read_facts(file)
        assert (facts["id"], facts["prompt"], facts["seed"]) == (item.id, str(item.prompt), item.seed)
        assert facts["similarity"] == pytest.approx(float(made.similarity[index]), abs=1e-6)
        assert (facts["recipe"], facts["referees"]) == (recipe, by)
        assert facts["versions"]["robustclip"]
        assert facts["arguments"]["quick"] is True
        assert not {"prompt", "out", "resume"} & set(facts["arguments"])
        with Image.open(made.folder / "frames" / f"{item.id}.gif") as way:
            assert way.n_frames == len(made.steps_of_frames) > 2
        assert (made.folder / "frames" / f"{item.id}.png").exists()
        assert torch.equal(made.frames[item.id][-1], made.images[index])
    assert made.steps_of_frames[-1] == 6

    lines = [json.loads(line) for line in (made.folder / "pictures.jsonl").read_text().splitlines()]
    assert [(line["id"], line["file"]) for line in lines] == [(name, f"images/{name}.png") for name in names]
    record = json.loads((made.folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["arguments"]["prompt"] == PROMPTS
    assert record["notes"]["referees"] == by
    assert record["notes"]["size"] == [16, 16]
    assert record["numbers"]["similarity"] == pytest.approx(made.similarity.mean().item(), abs=1e-6)
    assert load_image(made.folder / "contact_sheet.png").shape[-1] > 2 * 16
    assert set(made.trace) > {"loss"}
    assert made.trace["loss"].shape == (6, 4)


@every_recipe
def test_the_loss_falls_and_the_similarity_rises(recipe: str, paint: Callable[..., Result]) -> None:
    made = paint(recipe, *PROMPTS, steps=40, views=8)
    loss = made.trace["loss"]
    assert (loss[-8:].mean(0) < loss[:8].mean(0)).all()
    assert (made.similarity > paint(recipe, *PROMPTS, steps=0).similarity + 0.02).all()


@every_recipe
def test_a_picture_is_a_function_of_its_prompt_and_seed(recipe: str, paint: Callable[..., Result]) -> None:
    together = paint(recipe, *PROMPTS, "a house", seeds=[3, 4])
    again = paint(recipe, *PROMPTS, "a house", seeds=[3, 4])
    assert torch.equal(together.images, again.images)
    assert not torch.allclose(together.images[0], together.images[1], atol=1e-2), "seeds differ"
    assert not torch.allclose(together.images[0], together.images[2], atol=1e-2), "prompts differ"
    alone = paint(recipe, PROMPTS[1], seed=4)
    assert torch.allclose(alone.images[0], together.images[3], atol=1e-2), "whoever is painted beside it"
    in_batches = paint(recipe, *PROMPTS, "a house", seeds=[3, 4], batch_size=4)
    assert torch.allclose(in_batches.images, together.images, atol=1e-2)


@every_recipe
def test_two_referees_guide_by_their_weights(recipe: str, paint: Callable[..., Result], toys: list[str]) -> None:
    first, second = toys[:2]
    made = paint(recipe, referee=[first, f"{second}=3"])
    cosines = [
        float((one.embed_images(made.images) @ one.embed_texts([PROMPTS[0]]).T).item())
        for one in map(load_referee, (first, second))
    ]
    assert made.similarity.item() == pytest.approx(0.25 * cosines[0] + 0.75 * cosines[1], abs=1e-5)
    noted = json.loads((made.folder / "run.json").read_text())["notes"]["referees"]
    assert [(one["name"], one["weight"]) for one in noted] == [(first, 1.0), (second, 3.0)]
    assert read_facts(made.files[0])["referees"] == noted
    assert not torch.allclose(made.images, paint(recipe, referee=second).images, atol=1e-2), "the first has its say"


@every_recipe
def test_pictures_need_not_be_square(recipe: str, paint: Callable[..., Result]) -> None:
    made = paint(recipe, size="12x20")
    assert made.images.shape == (1, 3, 12, 20)
    assert load_image(made.files[0]).shape == (3, 12, 20)
    assert made.frames[made.items[0].id].shape[1:] == (3, 12, 20)


@pytest.mark.parametrize("recipe", ["clipag", "clipag-faithful"])
@pytest.mark.parametrize("init", ["mixture", "noise", "image"])
def test_without_steps_the_start_is_the_picture(
    recipe: str, init: str, paint: Callable[..., Result], tmp_path: Path
) -> None:
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    save_image(image, tmp_path / "start.png")
    made = paint(recipe, init=str(tmp_path / "start.png") if init == "image" else init, steps=0)
    if init == "image":
        assert torch.allclose(made.images[0], image, atol=1e-2)
    assert 0.02 < made.images.std() < 0.4
    assert made.trace == {}
    assert made.steps_of_frames == [0]


def test_an_image_of_some_strength(paint: Callable[..., Result], tmp_path: Path) -> None:
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    save_image(image, tmp_path / "start.png")
    whole, half, none = (
        paint("clipag", init=str(tmp_path / "start.png"), strength=strength, steps=0).images[0]
        for strength in (1.0, 0.5, 0.0)
    )
    assert torch.allclose(half, (whole + none) / 2, atol=1e-5)
    assert torch.equal(none, paint("clipag", init="noise", steps=0).images[0])
    near = paint("clipag", init=str(tmp_path / "start.png"), steps=2, lr=0.03).images[0]
    assert 0 < (near - whole).square().mean().sqrt() < 0.06 + 0.01, "two steps of 0.03"


@pytest.mark.parametrize("augment", ["nudges", "diffaug", "none"])
@pytest.mark.parametrize("canvas", ["pixels", "pyramid"])
def test_choices_of_clipag(augment: str, canvas: str, paint: Callable[..., Result]) -> None:
    made = paint("clipag", augment=augment, canvas=canvas, patches=0, lr=0.03)
    name = "cosine" if augment == "none" else f"cosine@{augment} x2"
    assert set(made.trace) == {"loss", name, "total variation"}
    start = paint("clipag", augment=augment, canvas=canvas, steps=0)
    moved = (made.images - start.images).square().mean().sqrt()
    assert 0.005 < moved < 6 * 0.03 + 0.02 or canvas == "pyramid"
    assert moved > 0.005
    plain = paint("clipag", canvas="pixels", steps=0)
    assert torch.allclose(start.images, plain.images, atol=0.02), "a pyramid starts from the same picture"


Seen = dict[str, Any]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the recipe handed to the loop last. Nothing is optimised."""
    found: Seen = {}
    original = studio.paint_batch

    def spy(canvas: Canvas, streams: list[Any], **options: Any) -> Painted:
        found.update(options, canvas=canvas, stream=streams[0], streams=len(streams))
        return original(canvas, streams, **options | {"steps": 0})

    monkeypatch.setattr(studio, "paint_batch", spy)
    return found


def test_the_faithful_recipe_has_the_notebooks_constants(seen: Seen, tmp_path: Path) -> None:
    """CLIPAG_T2I.ipynb; none of them is given by this call."""
    robustclip.synthesize("a turtle", toy_referee(), recipe="clipag-faithful", out=tmp_path / "run", device="cpu")
    stream, optimiser = seen["stream"], seen["stream"].optimiser
    views, patches = stream.terms.terms
    assert (seen["steps"], seen["streams"]) == (100, 1)
    assert str(stream.terms).replace(" zero below quantile 0", "") == "1*cosine@diffaug x32 + 5*cosine@patches x32"
    assert patches.reduce(torch.tensor([[0.1, 0.5]])).item() == pytest.approx(0.3), "no patch is rejected"
    assert type(optimiser) is torch.optim.AdamW
    (group,) = optimiser.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.0175, (0.9, 0.999), 0.01)
    assert (stream.clip_norm, stream.unit_rms, stream.schedule) == (0.001, False, None)
    canvas = seen["canvas"]
    assert isinstance(canvas, Pixels)
    assert (canvas.projection, canvas.quantile) == ("threshold", 0.95)
    assert (seen["keep"].by, seen["keep"].late) == ("views", True)
    assert [type(one) for one in patches.views.transforms[:3]] == [GaussianNoise, RandomCrop, Clamp]
    assert views.views.transforms[1:] == patches.views.transforms[3:] == diffaug()
    noises = [term.views.transforms[0] for term in (views, patches)]
    assert noises == [GaussianNoise(0.01), GaussianNoise(0.01, shared=True)], "of each view, and one for all patches"


@pytest.mark.parametrize("notebook", [True, False])
def test_the_faithful_recipe_keeps_the_picture_a_step_late_or_on_time(
    notebook: bool, paint: Callable[..., Result], tmp_path: Path
) -> None:
    """Of a single step, only the start was measured: it is the best picture, and the notebook keeps the one after."""
    save_image(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)), tmp_path / "start.png")
    init = str(tmp_path / "start.png")
    start = paint("clipag-faithful", init=init, steps=0).images
    made = paint("clipag-faithful", init=init, steps=1, notebook=notebook).images
    moved = (made - start).abs().max().item()
    if notebook:  # AdamW's first step is of its learning rate, up to the weight decay and dynamic thresholding
        assert 0.01 < moved < 0.05
    else:
        assert moved == 0


def test_the_notebooks_slips_change_the_picture_and_can_be_mended(paint: Callable[..., Result]) -> None:
    starts = {
        notebook: paint("clipag-faithful", *PROMPTS, notebook=notebook, candidates=1000, steps=0).images
        for notebook in (True, False)
    }
    assert not torch.allclose(starts[True], starts[False], atol=0.05), "another candidate was chosen"


def test_rejected_patches_count_as_zero(seen: Seen, paint: Callable[..., Result]) -> None:
    paint("clipag-faithful", patch_quantile=0.5)
    assert str(seen["stream"].terms) == "1*cosine@diffaug x2 + 5*cosine@patches x2 zero below quantile 0.5"


def test_what_clipag_minimises(seen: Seen, paint: Callable[..., Result]) -> None:
    paint("clipag", patches=0, views=3, total_variation=0.5)
    assert str(seen["stream"].terms) == "1*cosine@nudges x3 + 0.5*total variation"
    paint("clipag", patches=4, patch_weight=2.0, augment="none")
    assert str(seen["stream"].terms) == "1*cosine + 2*cosine@patches x4 + 1*total variation"
    paint("clipag", patches=0, total_variation=0.0, canvas="pyramid")
    assert str(seen["stream"].terms) == "1*cosine@nudges x2"
    assert isinstance(seen["canvas"], Pyramid)
    schedule = seen["stream"].schedule
    assert schedule(0) == 1
    assert schedule(3) == pytest.approx(1 - 0.95 / 2), "half way from 1 to 0.05"


def test_the_margins_of_direct_ascent_are_seen_and_cropped(seen: Seen, paint: Callable[..., Result]) -> None:
    made = paint("direct-ascent", size="16x24", margin=0.25, jitter=0.125)
    canvas = seen["canvas"]
    assert isinstance(canvas, Pyramid)
    assert (canvas.size, canvas.margin) == ((24, 32), 4), "4 pixels at each edge"
    assert made.images.shape == (1, 3, 16, 24)
    assert torch.equal(made.images, torch.full_like(made.images, 0.5)), "it starts from grey"
    inside = torch.zeros(1, 3, 24, 32)
    inside[..., 4:-4, 4:-4] = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(canvas.picture(inside), inside[..., 4:20, 4:28])
    assert {levels[0].shape[-2] for levels in canvas.groups().values()} == {1, 2, 4, 8, 16, 24}
    paint("direct-ascent", size="8x8", margin=0.0, every_size=True)
    assert [levels[0].shape[-1] for levels in seen["canvas"].groups().values()] == list(range(1, 9))


def test_a_run_goes_on_where_it_was_stopped(paint: Callable[..., Result]) -> None:
    made = paint("clipag", *PROMPTS)
    kept, lost = made.files
    times = kept.stat().st_mtime_ns
    lost.unlink()
    again = robustclip.synthesize(PROMPTS, toy_referee(), resume=made.folder, device="cpu", **SHORT["clipag"])
    assert kept.stat().st_mtime_ns == times
    assert torch.allclose(load_image(lost), made.images[1], atol=0.01)
    assert again.trace["loss"][:, 0].isnan().all(), "was there before"
    assert again.trace["loss"][:, 1].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "check"),
    [
        ({"prompt": []}, coded("no_prompt")),
        ({"prompt": [""]}, coded("empty_prompt", argument="prompt")),
        ({"prompt": ["a cat"], "size": "big"}, coded("not_a_size", given="big")),
        ({"prompt": ["a cat"], "init": "nowhere.png"}, coded("missing_file", argument="init", given="nowhere.png")),
        ({"prompt": ["a cat"], "referee": "nobody=much"}, coded("not_positive", given="nobody=much")),
        ({"prompt": ["a cat"], "seeds": "3..1"}, coded("empty_range", given="3..1")),
        ({"prompt": ["a cat"], "strength": 1.5}, coded("less_than_equal", argument="strength")),
        ({"prompt": ["image:nowhere.png"]}, coded("no_image", path=Path("nowhere.png"))),
        ({"prompt": ["a cat"], "steps": -1}, coded("greater_than_equal", argument="steps")),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_faults_of_a_call_are_told(arguments: dict[str, Any], check: Any, tmp_path: Path) -> None:
    call = {"referee": toy_referee(), "out": tmp_path / "run", "device": "cpu"}
    with pytest.raises(UsageError, check=check):
        robustclip.recipes.run("clipag", "synthesize", {**call, **arguments})
    assert not (tmp_path / "run").exists(), "nothing was begun"


@pytest.mark.slow
def test_the_embedded_referee_paints_what_a_judge_recognises(tmp_path: Path) -> None:
    names = [f"a {name}" for name in ("turtle", "butterfly", "heart", "banana", "snowman", "sun")]
    made = robustclip.synthesize(names, out=tmp_path / "run", device="cpu", dtype="float32")
    judge = load_referee("emoji-judge")
    cosines = judge.embed_images(made.images) @ judge.embed_texts(names).T
    assert (cosines.argmax(1) == torch.arange(len(names))).sum() >= 5
