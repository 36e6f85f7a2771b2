"""VQGAN+CLIP with a referee and a generator that take milliseconds: what it does, and what it may not depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel

import robustclip
from robustclip.canvases import Canvas, Codes
from robustclip.data.images import load_image, save_image
from robustclip.diffusion.vqgan import load_vqgan
from robustclip.errors import UsageError, coded
from robustclip.referees.toy import toy_referee
from robustclip.synthesis import studio
from robustclip.synthesis.painted import Painted, Result
from robustclip.synthesis.pictures import read_facts
from robustclip.views import ClampThrough, Pooled, RandomSquares
from robustclip.views.policies import augmented

PROMPTS = ["a green turtle", "a blue butterfly"]
Paint = Callable[..., Result]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of diffusers: a generator of random weights, of 2 pixels a code, whose every code is another picture."""
    folder = tmp_path_factory.mktemp("vqgan")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VQModel(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            num_vq_embeddings=16,
            vq_embed_dim=4,
            norm_num_groups=4,
        )
        with torch.no_grad():
            model.quantize.embedding.weight.normal_()
            model.decoder.conv_out.weight.mul_(8)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def paint(tmp_path: Path, generator: Path) -> Paint:
    """`paint(*prompts, steps=..., ...)`, into folders of the test's own."""
    made: list[Path] = []

    def call(*prompts: str, **arguments: object) -> Result:
        made.append(tmp_path / f"run {len(made)}")
        settings = {"model": str(generator), "device": "cpu", "dtype": "float32", "out": made[-1]}
        short = {} if "quick" in arguments else {"steps": 6, "views": 2, "candidates": 50}
        return robustclip.synthesize(
            prompts or PROMPTS[:1], toy_referee(), recipe="vqgan", **{**settings, **short, **arguments}
        )

    return call


Seen = dict[str, Any]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the recipe handed to the loop last. Nothing is optimised."""
    found: Seen = {}
    original = studio.paint_batch

    def spy(canvas: Canvas, streams: list[Any], **options: Any) -> Painted:
        found.update(options, canvas=canvas, stream=streams[0], terms=streams[0].terms.terms)
        return original(canvas, streams, **options | {"steps": 0})

    monkeypatch.setattr(studio, "paint_batch", spy)
    return found


def test_a_run_writes_pictures_of_whole_codes(paint: Paint, generator: Path) -> None:
    made = paint(*PROMPTS, quick=True, seeds="0..1")
    assert made.images.shape == (4, 3, 16, 16)
    assert 0 <= made.images.min() <= made.images.max() <= 1
    assert made.images.std() > 0.05
    facts = read_facts(made.files[0])
    assert (facts["recipe"], facts["arguments"]["model"]) == ("vqgan", str(generator))
    assert set(made.trace) == {"loss", "spherical@latest x2"}
    assert made.steps_of_frames[-1] == 6


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"mode": "faithful", "init_weight": 0.1},
        {"cut_method": "original", "optimiser": "adamw"},
        {"augment": False, "init": "gradient", "init_weight": 0.1},
    ],
    ids=str,
)
def test_the_loss_falls_and_the_similarity_rises(choice: dict[str, object], paint: Paint) -> None:
    made = paint(*PROMPTS, steps=40, views=8, **choice)
    loss = made.trace["loss"]
    assert loss[-8:].mean() < loss[:4].mean()  # of both pictures: 8 views of one are too noisy
    assert made.similarity.mean() > paint(*PROMPTS, steps=0, **choice).similarity.mean() + 0.05


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "adagrad", "adamax", "radam", "rmsprop"])
def test_every_optimiser_of_torchs_moves_the_picture(optimiser: str, seen: Seen, paint: Paint) -> None:
    paint(optimiser=optimiser, lr=0.2)
    assert type(seen["stream"].optimiser).__name__.lower() == optimiser
    assert seen["stream"].optimiser.param_groups[0]["lr"] == 0.2


def test_the_faithful_recipe_has_the_releases_constants(seen: Seen, paint: Paint, generator: Path) -> None:
    """generate.py of VQGAN-CLIP 592d555."""
    paint(mode="faithful", init="codes", steps=500, views=32)
    assert seen["steps"] == 500
    assert str(seen["stream"].terms) == "1*spherical@latest x32"
    optimiser = seen["stream"].optimiser
    assert type(optimiser) is torch.optim.Adam
    assert (optimiser.param_groups[0]["lr"], optimiser.param_groups[0]["betas"]) == (0.1, (0.9, 0.999))
    assert seen["terms"][0].views.transforms == (Pooled((16, 16)), *augmented((0.1, 0.0)))
    vqgan = load_vqgan(str(generator), torch.device("cpu"))
    latents = seen["canvas"].render()["latent"]
    assert latents.shape == (1, 4, 8, 8)
    places = latents.movedim(1, 3).flatten(0, 2)
    assert torch.cdist(places, vqgan.codebook).amin(1).max() < 1e-3, "entries of the codebook"
    assert len(places.unique(dim=0)) > 8, "many of them"
    paint()
    assert seen["terms"][0].views.transforms == (Pooled((16, 16)), *augmented((0.1, 0.1))), "mended"


@pytest.mark.parametrize(
    ("flags", "weights", "at_the_start"),
    [
        ({"mode": "faithful"}, [0.5, 0.5 / 3, 0.5 / 5], False),
        ({"mode": "fixed"}, [0.5, 0.5, 0.5], True),
        ({"mode": "fixed", "prior": "zero"}, [0.5, 0.5 / 3, 0.5 / 5], False),
        ({"mode": "faithful", "prior": "start"}, [0.5, 0.5, 0.5], True),
    ],
)
def test_what_holds_the_latents(
    flags: dict[str, object], weights: list[float], at_the_start: bool, seen: Seen, paint: Paint
) -> None:
    paint(init_weight=1.0, **flags)
    hold = seen["terms"][1]
    assert hold.reads == "latent"
    assert [hold.weight_at(step) for step in range(3)] == pytest.approx(weights)
    latents = seen["canvas"].render()["latent"].detach()
    found = hold({"latent": latents}, lambda _: [])
    expected = torch.zeros(1) if at_the_start else latents.square().flatten(1).mean(1)
    assert torch.allclose(found, expected, atol=1e-6)
    moved = hold({"latent": latents + 0.5}, lambda _: [])
    assert (moved.item() == pytest.approx(0.25, abs=1e-5)) is at_the_start


def test_squares_of_the_picture(seen: Seen, paint: Paint) -> None:
    paint(cut_method="original", size=24, cut_pow=2.0)
    assert seen["terms"][0].views.transforms == (RandomSquares((16, 16), 2.0), ClampThrough())
    paint(cut_method="original", augment=True)
    first, _, *others = seen["terms"][0].views.transforms
    assert first == RandomSquares((16, 16), 1.0, 8), "half of a picture of the referee's size"
    assert tuple(others) == augmented((0.1, 0.1))
    paint(cut_method="original", cut_min=5)
    assert seen["terms"][0].views.transforms[0] == RandomSquares((16, 16), 1.0, 5)
    paint(augment=False)
    assert seen["terms"][0].views.transforms == (Pooled((16, 16)),)


@pytest.mark.parametrize("init", ["noise", "gradient", "mixture", "image"])
def test_starts_are_encoded(init: str, seen: Seen, paint: Paint, generator: Path, tmp_path: Path) -> None:
    save_image(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)), tmp_path / "start.png")
    made = paint(init=str(tmp_path / "start.png") if init == "image" else init, steps=0)
    canvas = seen["canvas"]
    assert isinstance(canvas, Codes)
    if init == "image":
        vqgan = load_vqgan(str(generator), torch.device("cpu"))
        with torch.no_grad():
            latents = vqgan.encode(load_image(tmp_path / "start.png")[None])
            picture = vqgan.decode(vqgan.quantise(latents)).clamp(0, 1)
        assert torch.allclose(canvas.render()["latent"], latents, atol=1e-4)
        assert torch.allclose(made.images, picture, atol=1e-4)


def test_the_size_is_rounded_down_to_whole_codes_and_said(paint: Paint, capsys: pytest.CaptureFixture[str]) -> None:
    made = paint(size="13x21")
    assert made.images.shape == (1, 3, 12, 20)
    assert load_image(made.files[0]).shape == (3, 12, 20)
    assert "13x21 is not whole in codes of 2 pixels: painting 12x20" in capsys.readouterr().err
    assert json.loads((made.folder / "run.json").read_text())["notes"]["size"] == [12, 20]


def test_a_picture_is_a_function_of_its_prompt_and_seed(paint: Paint) -> None:
    choice = {"init_weight": 0.1}
    together = paint(*PROMPTS, seeds=[3, 4], **choice)
    assert torch.equal(together.images, paint(*PROMPTS, seeds=[3, 4], **choice).images)
    assert not torch.allclose(together.images[0], together.images[1], atol=1e-2), "seeds differ"
    assert not torch.allclose(together.images[0], together.images[2], atol=1e-2), "prompts differ"
    alone = paint(PROMPTS[1], seed=4, **choice)
    assert torch.allclose(alone.images[0], together.images[3], atol=1e-2), "whoever is painted beside it"


def test_a_stop_that_is_reached_leaves_the_picture(paint: Paint) -> None:
    """No two directions are further apart than pi^2 / 2 = 4.93."""
    start = paint("a green turtle:1:5", steps=0).images
    assert torch.allclose(paint("a green turtle:1:5", steps=6).images, start, atol=1e-5)
    assert not torch.allclose(paint("a green turtle:1:0.01", steps=6).images, start, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "check"),
    [
        ({"prompt": []}, coded("no_prompt")),
        ({"cut_pow": 2.0}, coded("not_original")),
        ({"cut_min": 8}, coded("not_original")),
        ({"cut_method": "latest updated"}, coded("literal_error", argument="cut_method")),
        ({"optimiser": "sgd"}, coded("literal_error", argument="optimiser")),
        ({"init": "nowhere.png"}, coded("missing_file", argument="init", given="nowhere.png")),
        ({"prior": "one"}, coded("literal_error", argument="prior")),
        ({"prompt": ["a cat:1:1e999"]}, coded("out_of_range", argument="prompt")),
        ({"model": "nowhere"}, coded("unknown_generator", given="nowhere")),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_faults_of_a_call_are_told(arguments: dict[str, Any], check: Any, generator: Path, tmp_path: Path) -> None:
    call = {"prompt": ["a cat"], "model": str(generator), "referee": toy_referee(), "out": tmp_path / "run"}
    with pytest.raises(UsageError, check=check):
        robustclip.recipes.run("vqgan", "synthesize", {**call, "device": "cpu", **arguments})
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_a_picture_smaller_than_a_code_is_refused(tmp_path: Path) -> None:
    VQModel(
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(4,) * 5,
        latent_channels=4,
        num_vq_embeddings=4,
        norm_num_groups=4,
    ).save_pretrained(tmp_path / "coarse")
    call = {"prompt": ["a cat"], "model": str(tmp_path / "coarse"), "referee": toy_referee(), "out": tmp_path / "run"}
    with pytest.raises(UsageError, check=coded("too_small", size=(8, 20), factor=16)):
        robustclip.recipes.run("vqgan", "synthesize", {**call, "device": "cpu", "size": "8x20"})
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_the_embedded_generator_is_painted_with(tmp_path: Path) -> None:
    call = {"recipe": "vqgan", "device": "cpu", "dtype": "float32", "steps": 8, "views": 1, "augment": False}
    made = robustclip.synthesize(PROMPTS, out=tmp_path / "run", **call)
    assert made.images.shape == (2, 3, 64, 64)
    loss = made.trace["loss"]
    assert (loss[-3:].mean(0) < loss[:3].mean(0)).all()
