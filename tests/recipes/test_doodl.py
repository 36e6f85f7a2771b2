"""`synthesize doodl` with a tiny Stable Diffusion and toy referees: each method and use, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import robustclip
from robustclip.data.images import load_image, save_image
from robustclip.data.pairs import compositional_prompts
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.errors import UsageError, coded
from robustclip.losses.scores import asymmetry
from robustclip.recipes import run
from robustclip.referees.registry import load_referee
from robustclip.synthesis.painted import Result
from robustclip.synthesis.pictures import read_facts

from ..diffusion.tiny import tiny_pipeline

CAT = "a yellow banana and a blue butterfly"
Paint = Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline(folder)
    return str(folder)


@pytest.fixture
def paint(model: str, toys: list[str]) -> Paint:
    def painted(out: Path, *prompts: str, referee: Any = "toy-a", **arguments: Any) -> Result:
        settings = {"device": "cpu", "dtype": "float32", "size": 16, "chain_steps": 4, "crops": 2, "model": model}
        settings |= {"steps": 2} | arguments
        return robustclip.synthesize(list(prompts) or [CAT], referee, recipe="doodl", out=out, **settings)

    return painted


def test_a_run_writes_pictures_film_strips_and_its_facts(paint: Paint, tmp_path: Path) -> None:
    made = paint(tmp_path / "run", CAT, "a red fish", mode="faithful", steps=3)
    assert made.images.shape == (2, 3, 16, 16)
    for room in ("images", "frames"):
        assert {path.stem for path in (made.folder / room).iterdir()} == {item.id for item in made.items}
    assert made.steps_of_frames == [0, 1, 2, 3]
    record = json.loads((made.folder / "run.json").read_text())
    assert record["notes"]["referees"][0]["name"] == "toy-a"
    assert read_facts(made.files[0])["generator"]["name"] == "tiny"
    assert record["notes"]["loss"] == "1*spherical@crops x2 + 1*spherical(other)@crops x2"
    alone = paint(tmp_path / "alone", "a red fish", mode="faithful", steps=3)
    torch.testing.assert_close(alone.images[0], made.images[1], atol=1e-3, rtol=0)


def test_the_guides_distance_falls(paint: Paint, tmp_path: Path) -> None:
    made = paint(tmp_path / "run", steps=6, crops=0, noise=0.0)
    assert made.trace["loss"][-1] < made.trace["loss"][0]


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ({"method": "plain"}, None),
        ({"method": "best-of"}, 5),
        ({"method": "best-of", "candidates": 3}, 3),
        ({"method": "one-step"}, 4),
        ({"method": "one-step-noise"}, 2),
        ({"mode": "released"}, 2),
        ({"sampler": "o-belm"}, 2),
        ({"sampler": "ddim"}, 2),
        ({"referee": ["toy-a", "toy-b=0.5"], "stop_by": "toy-c", "patience": 9}, 2),
    ],
    ids=str,
)
def test_methods_and_modes(paint: Paint, arguments: dict[str, Any], rows: int | None, tmp_path: Path) -> None:
    made = paint(tmp_path / "run", **arguments)
    assert made.images.isfinite().all()
    assert len(made.trace.get("loss", [])) == (rows or 0)
    if arguments.get("method") == "best-of":
        assert (made.trace["loss"].diff(dim=0) <= 0).all()


def test_plain_samples_are_what_doodl_starts_from(paint: Paint, tmp_path: Path) -> None:
    plain = paint(tmp_path / "plain", method="plain")
    one = paint(tmp_path / "one", method="best-of", candidates=1)
    torch.testing.assert_close(plain.images, one.images)
    doodled = paint(tmp_path / "doodl", steps=1)
    torch.testing.assert_close(plain.images[0], doodled.frames[doodled.items[0].id][0], atol=1e-5, rtol=0)


def test_a_class_of_a_classifier(paint: Paint, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    names = {"label_names": ["ant", "bee", "cow"]}
    timm.models.save_for_hf(model, str(tmp_path / "small"), names, safe_serialization=True)
    given: dict[str, Any] = {"classifier": str(tmp_path / "small"), "scale": 100.0}
    made = paint(tmp_path / "run", class_name="bee", **given)
    assert "cross entropy of small@crops x2" in made.trace
    with pytest.raises(UsageError, check=coded("unknown_class", given="be", near=["bee"])):
        paint(tmp_path / "other", class_name="be", **given)
    assert not (tmp_path / "other").exists()


def test_exemplars_and_functions(paint: Paint, tmp_path: Path) -> None:
    save_image(torch.rand(3, 64, 64), tmp_path / "a.png")
    made = paint(tmp_path / "run", referee=["toy-a", "toy-b=3"], exemplar=[str(tmp_path / "a.png")])
    seen = []
    for name in ("toy-a", "toy-b"):
        referee = load_referee(name)
        image = load_image(tmp_path / "a.png")[None]
        with torch.no_grad():
            seen.append((referee.embed_images(made.images) * referee.embed_images(image)).sum(1))
    torch.testing.assert_close(made.similarity, (seen[0] + 3 * seen[1]) / 4, atol=1e-4, rtol=0)
    folded = paint(tmp_path / "folded", loss=asymmetry, crops=0, steps=4)
    assert folded.trace["loss"][-1] < folded.trace["loss"][0]
    assert asymmetry(folded.images).shape == (1,)


def test_aesthetics_of_a_given_image(paint: Paint, model: str, tmp_path: Path) -> None:
    width = load_referee("toy-a").width
    save_file(
        {"weight": torch.linspace(-1, 1, width)[None].contiguous(), "bias": torch.zeros(1)},
        tmp_path / "head.safetensors",
    )
    plain = paint(tmp_path / "plain", method="plain")
    given: dict[str, Any] = {"aesthetics": [str(tmp_path / "head.safetensors")], "init": str(plain.files[0])}
    still = paint(tmp_path / "still", steps=0, **given)
    vae = load_diffusion(model)
    with torch.no_grad():  # the autoencoder's own error is all there is
        wanted = vae.decode(vae.encode(load_image(plain.files[0])[None])).clamp(0, 1)
    torch.testing.assert_close(still.images, wanted, atol=5e-3, rtol=0)
    moved = paint(tmp_path / "moved", steps=4, aim="down", crops=0, clip=1.0, scale=100.0, **given)
    assert moved.trace["loss"][-1] < moved.trace["loss"][0]
    with pytest.raises(UsageError, check=coded("unequal_lengths", heads=1, referees=2)):
        paint(tmp_path / "two", referee=["toy-a", "toy-b"], **given)


def test_resumed_runs_paint_what_is_missing(paint: Paint, tmp_path: Path) -> None:
    made = paint(tmp_path / "run", CAT, "a red fish", batch_size=1)
    made.files[1].unlink()
    kept = made.files[0].read_bytes()
    again = run("doodl", "synthesize", {"resume": tmp_path / "run", "device": "cpu"})
    assert made.files[0].read_bytes() == kept
    torch.testing.assert_close(again.images[1], made.images[1], atol=1 / 255, rtol=0)


def test_a_held_out_judge_ends_each_batch_by_itself(paint: Paint, tmp_path: Path) -> None:
    given: dict[str, Any] = {"stop_by": "toy-b", "patience": 1, "steps": 12, "batch_size": 1}
    made = paint(tmp_path / "run", CAT, "a red fish", "a blue hat", **given)
    seen = made.trace["toy-b"].T
    for row, item in enumerate(made.items):
        told = seen[row][seen[row].isfinite()]
        assert len(made.trace["loss"][:, row].isfinite().nonzero()) == len(told) == made.ended[item.id]
        assert len(told) == 12 or len(told) - 1 == int(told.argmax()) + 1  # one step later than the best
    assert min(made.ended.values()) < 12
    chosen_by = [(one["name"], one["weight"]) for one in read_facts(made.files[0])["referees"]]
    assert chosen_by == [("toy-a", 1.0), ("toy-b", 0.0)], "judging by it is not independent any more"
    with torch.no_grad():
        judge = load_referee("toy-b")
        kept = (judge.embed_images(made.images) * judge.embed_texts([str(one.prompt) for one in made.items])).sum(1)
    assert (kept >= seen.nan_to_num(-1).max(1).values - 1e-4).all()


def test_what_cannot_be_used_is_told_and_the_rest_goes_on(
    paint: Paint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_image(torch.rand(3, 64, 64), tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:100])
    both = [str(tmp_path / name) for name in ("good.png", "torn.png")]
    made = paint(tmp_path / "run", exemplar=both, steps=1)
    alone = paint(tmp_path / "alone", exemplar=both[:1], steps=1)
    torch.testing.assert_close(made.images, alone.images)
    assert "torn.png" in caplog.text
    with pytest.raises(UsageError, check=coded("reads_texts", referee="emoji-blip2")):
        paint(tmp_path / "reader", referee=["toy-a", "emoji-blip2"], exemplar=both)
    with pytest.raises(UsageError, check=coded("other_kind", referee="mi:emoji-diffusion")):
        paint(tmp_path / "mi", referee=["toy-a", "mi:emoji-diffusion"])
    parts = paint(tmp_path / "parts", "a cat | a dog:-0.5", model_prompt="a picture", steps=1)
    assert [str(item.prompt) for item in parts.items] == ["a cat | a dog:-0.5"], "CLIPs read parts with weights"
    odd = paint(tmp_path / "odd", size=19, steps=0)
    assert odd.images.shape[-2:] == (18, 18)
    assert "18x18" in caplog.text


def test_a_quick_run_of_the_embedded_models(tmp_path: Path) -> None:
    made = robustclip.synthesize(
        [CAT],
        ["emoji-blip2", "emoji-robust=0.5"],
        recipe="doodl",
        out=tmp_path / "run",
        device="cpu",
        stop_by="emoji-judge",
        quick=True,
    )
    assert made.images.shape == (1, 3, 64, 64)
    assert {"itm+lm@crops x2", "spherical@crops x2"} <= made.trace.keys()


@pytest.mark.slow
def test_doodl_raises_what_judges_find_that_did_not_guide(tmp_path: Path) -> None:
    """The first 16 prompts of docs/doodl.md's table, where the guide's similarity rose by 0.106, and those of the two
    judges by 0.017 and 0.033."""
    texts = [str(pair) for pair in compositional_prompts()[:16]]
    setting: dict[str, Any] = {"chain_steps": 10, "crops": 8, "steps": 10, "device": "cpu", "dtype": "float32"}
    images = {
        method: robustclip.synthesize(
            texts, "emoji-robust", recipe="doodl", method=method, out=tmp_path / method, **setting
        ).images
        for method in ("plain", "doodl")
    }
    risen = {}
    for name in ("emoji-robust", "emoji-judge", "emoji-judge-disjoint"):
        judge = load_referee(name).eval()
        with torch.no_grad():
            found = [(judge.embed_images(images[one]) * judge.embed_texts(texts)).sum(1).mean() for one in images]
        risen[name] = float(found[1] - found[0])
    assert 0.06 < risen["emoji-robust"] < 0.16
    judged = (risen["emoji-judge"] + risen["emoji-judge-disjoint"]) / 2
    assert 0 < judged < 0.06
    assert judged < risen["emoji-robust"]
