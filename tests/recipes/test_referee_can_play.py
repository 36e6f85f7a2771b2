"""`synthesize referee-can-play` with the embedded models, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import robustclip
from robustclip.data import embedded
from robustclip.data.images import load_image
from robustclip.diffusion.pipelines import load_diffusion
from robustclip.diffusion.stable import LatentDiffusion
from robustclip.errors import UsageError, coded
from robustclip.referees.pair_readers import load_pair_reader, pair_fingerprint
from robustclip.synthesis.guides import Information, PairGuides, text_of
from robustclip.synthesis.painted import Result
from robustclip.synthesis.prompts import Prompt

PAIR = "a yellow banana and a blue butterfly"


def paint(out: Path, *prompts: str, referee: Any = "emoji-blip2", **arguments: Any) -> Result:
    settings = {"device": "cpu", "dtype": "float32", "steps": 3, "copies": 2, "sds_only": 1, **arguments}
    return robustclip.synthesize(list(prompts) or [PAIR], referee, recipe="referee-can-play", out=out, **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return paint(tmp_path_factory.mktemp("rcp") / "run", PAIR, "a red fish and a green hat", gradients=True, steps=4)


def test_a_run_writes_what_it_promises(made: Result) -> None:
    assert made.images.shape == (2, 3, 64, 64)
    names = [item.id for item in made.items]
    for room in ("images", "gradients"):
        assert sorted(path.stem for path in (made.folder / room).iterdir()) == sorted(names)
    strip = load_image(made.folder / "gradients" / f"{names[0]}.png")
    assert strip.shape[1] > 2 * 64  # a row for SDS, one for the referee
    assert (made.folder / "contact_sheet.png").is_file()
    record = json.loads((made.folder / "run.json").read_text())
    reader = load_pair_reader("emoji-blip2")
    own = {"name": "emoji-blip2", "weight": 1.0, "fingerprint": pair_fingerprint(reader)}
    assert record["notes"]["referees"] == [own]
    with torch.no_grad():
        chance = reader.matching_logits(made.images, [str(item.prompt) for item in made.items]).softmax(1)[:, 1]
    torch.testing.assert_close(made.similarity, chance, atol=1e-5, rtol=0)


def test_no_step_has_no_gradient_to_show(tmp_path: Path) -> None:
    made = paint(tmp_path / "run", steps=0, gradients=True)
    assert not (made.folder / "gradients").exists()


def test_its_numbers_are_of_both_streams_and_the_referee_rests_in_the_last_steps(made: Result) -> None:
    assert {"loss", "sds", "itm+lm@copies x2"} <= made.trace.keys()
    assert made.trace["sds"].isfinite().all()
    assert made.trace["itm+lm@copies x2"].isnan().any(1).tolist() == [False, False, False, True]


def test_a_picture_does_not_depend_on_the_others(made: Result, tmp_path: Path) -> None:
    alone = paint(tmp_path / "alone", "a red fish and a green hat", steps=4)
    torch.testing.assert_close(alone.images[0], made.images[1], atol=1e-3, rtol=0)


def test_the_released_mode_is_recorded_as_it_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten copies and their added noise; SDS is told what BLIP-2's text processor leaves of the prompt."""
    told: list[str] = []
    embed = LatentDiffusion.embed_prompts
    monkeypatch.setattr(LatentDiffusion, "embed_prompts", lambda self, texts: told.extend(texts) or embed(self, texts))
    made = paint(tmp_path / "run", 'A "Red" fish, and a green hat!', mode="released", copies=None, steps=1, sds_only=0)
    asked = json.loads((made.folder / "run.json").read_text())["arguments"]
    settings = {name: asked[name] for name in ("copies", "added_noise", "optimiser", "lr", "guidance")}
    assert settings == {"copies": 10, "added_noise": 0.2, "optimiser": "sgd", "lr": 1.0, "guidance": 30.0}
    assert "itm+lm@copies x10" in made.trace
    assert "A photo exactly contains a red fish, and a green hat" in told
    one = paint(tmp_path / "one", mode="released", copies=0, steps=1, sds_only=0)
    assert "itm+lm@noised" in one.trace, "a picture that is not augmented gets the added noise too"


def test_any_referee_fits_and_several_share(tmp_path: Path) -> None:
    mixed = paint(tmp_path / "mixed", referee=["emoji-blip2", "emoji-robust=0.5"], mode="released", noise=0.0)
    record = json.loads((mixed.folder / "run.json").read_text())
    weights = {one["name"]: one["weight"] for one in record["notes"]["referees"]}
    assert weights == {"emoji-blip2": 1.0, "emoji-robust": 0.5}
    clip = paint(tmp_path / "clip", referee="emoji-robust", copies=0, sds=False, sds_only=0, steps=8, noise=0.0)
    assert clip.trace["cosine"][-1] < clip.trace["cosine"][0]
    assert "sds" not in clip.trace


@pytest.mark.parametrize(
    ("arguments", "guidance"),
    [({"mode": "faithful"}, 30), ({"mode": "released"}, 30), ({}, 5), ({"mode": "faithful", "guidance": 7.5}, 7.5)],
)
def test_the_guidance_is_the_modes_or_the_callers(
    arguments: dict[str, Any], guidance: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "run", copies=0, steps=1, vlm=False, **arguments)
    told = capsys.readouterr()
    assert f"sds guidance {guidance:g}(latent)" in told.out + told.err


@pytest.mark.parametrize(
    ("arguments", "check"),
    [
        ({"vlm": False, "sds": False}, coded("no_gradient")),
        ({"hardest": 3}, coded("too_many", argument="hardest", given=3, most=2)),
        ({"hardest": 11, "copies": None, "mode": "released"}, coded("too_many", argument="hardest", given=11, most=10)),
        ({"added_noise": -0.1}, coded("greater_than_equal", argument="added_noise")),
        ({"sds_prompt": "a photo"}, coded("not_a_template", argument="sds_prompt")),
        ({"sds_prompt": "a {}}"}, coded("not_a_template", argument="sds_prompt")),
        ({"guidance": -1.0}, coded("out_of_range", argument="guidance")),
        ({"sds": False, "sds_only": 3}, coded("no_gradient")),
        ({"model": "nothing"}, coded("unknown_diffusion_model", given="nothing")),
        ({"mode": "loose"}, coded("literal_error", argument="mode")),
        ({"ema_decay": 1.0}, coded("less_than", argument="ema_decay")),
    ],
)
def test_what_cannot_be_is_told_before_the_first_step(arguments: dict[str, Any], check: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=check):
        paint(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_prompts_of_several_parts_are_no_text() -> None:
    assert text_of(Prompt.parse(PAIR)) == PAIR
    for text in ("a cat:2", "a cat | a dog:-1"):
        with pytest.raises(UsageError, check=coded("not_one_text", given=text)):
            text_of(Prompt.parse(text))


@pytest.mark.parametrize("given", [["emoji-blip2", "emoji-blip2"], ["emoji-blip2=2", "emoji-blip2"]])
def test_a_referee_that_comes_twice_is_refused(given: list[str]) -> None:
    with pytest.raises(UsageError, match="emoji-blip2 comes twice"):
        PairGuides.load_all(given, device=torch.device("cpu"))


def test_a_pair_readers_folder_may_be_a_path() -> None:
    guides = PairGuides.load_all(
        embedded.folders("pair_readers", "card.json")["emoji-blip2"], device=torch.device("cpu")
    )
    assert [reader.card.name for reader, _ in guides.readers] == ["emoji-blip2"]


def test_the_similarity_of_several_diffusion_models_has_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustclip.synthesis.guides.information_of", lambda model, image, text: torch.tensor([model]))  # noqa: ARG005
    both = PairGuides([], None, torch.float32, [(2.0, 3.0), (6.0, 1.0)])  # type: ignore[list-item]
    assert both.similarity(torch.zeros(2, 3, 8, 8), [Prompt.parse(PAIR)] * 2).tolist() == [3.0, 3.0]


def test_sizes_are_cut_to_cells_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = paint(tmp_path / "small", size="20x33", copies=0, steps=1, vlm=False)
    assert small.images.shape == (1, 3, 16, 32)
    assert "painting 16x32" in caplog.text
    assert json.loads((small.folder / "run.json").read_text())["notes"]["size"] == [16, 32]


def test_a_sample_of_a_mixture_needs_no_clip(tmp_path: Path) -> None:
    blip2, clip = (
        paint(tmp_path / name, referee=name, init="mixture", steps=0).images for name in ("emoji-blip2", "emoji-robust")
    )
    torch.testing.assert_close(blip2, clip)


def test_a_diffusion_model_guides_by_mutual_information(tmp_path: Path) -> None:
    """Of the latents where they are its own; it weighs nothing that another picture beside it does."""
    settings: dict[str, Any] = {"sds": False, "sds_only": 0, "steps": 12, "noise": 0.0, "ema": "none", "lr": 0.1}
    made = paint(tmp_path / "alone", referee="mi:emoji-diffusion", **settings)
    (name,) = {name for name in made.trace if "mutual information" in name}
    losses = made.trace[name][:, 0]
    assert losses[-4:].mean() < losses[:4].mean() - 5  # nats
    (facts,) = json.loads((tmp_path / "alone" / "run.json").read_text())["notes"]["referees"]
    assert facts["fingerprint"] == load_diffusion("emoji-diffusion").fingerprint
    both = paint(tmp_path / "both", referee=["emoji-blip2", "mi:emoji-diffusion=0.5"], steps=2)
    assert {"itm+lm@copies x2", name} <= both.trace.keys()
    with pytest.raises(UsageError, check=coded("listed_twice", referee="mi:emoji-diffusion")):
        paint(tmp_path / "twice", referee=["mi:emoji-diffusion", "mi:emoji-diffusion"])


def test_mutual_information_reads_latents_of_its_own_model_and_pictures_of_others() -> None:
    model = load_diffusion("emoji-diffusion")
    latents = torch.randn(2, model.channels, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    own, other = (Information(model, [PAIR, PAIR], of_latents=which, levels=2) for which in (True, False))
    assert own(latents.unsqueeze(1)).shape == (2, 1)
    (gradient,) = torch.autograd.grad(own(latents.unsqueeze(1)).sum(), latents)
    images = torch.rand(2, 3, 60, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (through,) = torch.autograd.grad(other(images.unsqueeze(1)).sum(), images)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    assert (through.flatten(1).norm(dim=1) > 0).all()
