"""Autoencoder, denoiser and BLIP-2 of the embedded world, trained for a few steps and put together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from robustclip.attacks.threat import ThreatModel
from robustclip.data.emoji_batches import DrawingsAndPairs
from robustclip.diffusion.denoiser import (
    KEPT,
    SNR,
    THINGS,
    DenoiserTrainer,
    Encoded,
    averaging,
    encode,
    misplaced,
    new_denoiser,
)
from robustclip.diffusion.pipelines import load_diffusion, load_vae
from robustclip.diffusion.stable import SentenceStates
from robustclip.diffusion.training import AutoencoderTrainer, latent_deviation, new_autoencoder
from robustclip.errors import UsageError, coded
from robustclip.evaluation.pair_readers import measure_pair_reader
from robustclip.recipes import find, run
from robustclip.referees.pair_readers import is_pair_reader, load_pair_reader, save_mini
from robustclip.referees.scene_reader import load_scene_reader
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator
from robustclip.signatures import typed


def pretrain(recipe: str, **arguments: Any) -> dict[str, Any]:
    return typed(find(recipe, "pretrain").function)(device="cpu", **arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The quick runs of all three recipes, one after the other."""
    folder = tmp_path_factory.mktemp("trained")
    vae = pretrain("emoji-vae", quick=True, out=folder / "vae")
    diffusion = pretrain("emoji-diffusion", vae=Path(vae["vae"]), quick=True, out=folder / "diffusion")
    reader = pretrain("emoji-blip2", quick=True, out=folder / "blip2")
    return {
        "folder": folder,
        "vae": Path(vae["vae"]),
        "diffusion": Path(diffusion["generator"]),
        "reader": Path(reader["reader"]),
    }


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if "loss" in line]


@torch.no_grad()
def test_what_comes_out_is_loaded_and_paints(trained: dict[str, Path]) -> None:
    for name in ("vae", "diffusion", "blip2"):
        assert len(losses(trained["folder"] / name)) == 4
    model, vae = load_diffusion(trained["diffusion"]), load_vae(trained["vae"])
    assert (model.factor, model.channels) == (8, 8)
    assert model.scale == pytest.approx(vae.config["scaling_factor"], rel=1e-3)
    pictures = model.sample(["a red fish"], size=(64, 64), steps=2, guidance=3.0, generators=[generator(0, "x")])
    assert pictures.shape == (1, 3, 64, 64)
    reader = load_pair_reader(trained["reader"])
    assert reader.contrastive(pictures, ["a red fish", "a hat"]).shape == (1, 2)
    assert reader.card.provenance["measured"]["swap"]["n"] > 0
    assert is_pair_reader(trained["reader"])


def test_averages_along_the_way_are_kept_and_a_run_goes_on_bit_by_bit(trained: dict[str, Path], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"vae": trained["vae"], "quick": True, "snapshots": 2}
    whole = Path(pretrain("emoji-diffusion", **asked, out=tmp_path / "whole")["out"])
    kept = sorted((whole / "snapshots").iterdir())
    assert [one.name for one in kept] == ["step-000002", "step-000004"]
    early, last = (load_diffusion(one).unet.state_dict() for one in kept)
    assert any((early[name] != last[name]).any() for name in last)
    for state in (whole / "checkpoints").iterdir():
        if "4" in state.name:
            state.unlink()
    again = Path(pretrain("emoji-diffusion", **asked, resume=whole)["generator"])
    torch.testing.assert_close(dict(load_diffusion(again).unet.state_dict()), dict(last), atol=0, rtol=0)
    assert json.loads((kept[0] / "card.json").read_text())["steps"] == 2


def test_a_denoiser_is_trained_on(trained: dict[str, Path], tmp_path: Path) -> None:
    again: dict[str, Any] = {"vae": trained["vae"], "quick": True, "start": str(trained["diffusion"]), "lr": 1e-9}
    found = pretrain("emoji-diffusion", **again, out=tmp_path / "on")
    before, after = (load_diffusion(one).unet.state_dict() for one in (trained["diffusion"], found["generator"]))
    torch.testing.assert_close(dict(after), dict(before), atol=1e-4, rtol=0)
    with pytest.raises(UsageError, check=coded("other_network", channels=[96, 192], asked=[32, 32])):
        pretrain("emoji-diffusion", **again | {"start": "emoji-diffusion"}, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_pair_reader_is_tuned_on_another_tower_under_attack(trained: dict[str, Path], tmp_path: Path) -> None:
    """Its Q-Former starts at the other's: a vanishing rate leaves it there."""
    asked: dict[str, Any] = {"start": str(trained["reader"]), "tower": "emoji-robust", "eps": 1.5, "quick": True}
    found = pretrain("emoji-blip2", **asked, name="robust", lr=1e-9, out=tmp_path / "robust")
    before, after = (load_pair_reader(one) for one in (trained["reader"], found["reader"]))
    for name, weights in before.qformer.state_dict().items():
        torch.testing.assert_close(after.qformer.state_dict()[name], weights, atol=1e-3, rtol=0)
    assert after.card.architecture["tower"] == "emoji-robust"
    rates = after.card.provenance["measured"]
    assert rates["swap attacked"]["n"] == rates["swap"]["n"] > 0


def test_a_reader_under_attack_no_longer_finds_its_captions() -> None:
    threat = ThreatModel("l2", 1.5, 64)
    rates = measure_pair_reader(
        load_pair_reader("emoji-blip2"), "unseen-styles", n=40, captioned=1, threat=threat, attack_steps=2
    )
    assert rates["retrieval attacked"]["value"] < rates["retrieval"]["value"] - 0.3


@pytest.mark.parametrize(
    ("asked", "check"),
    [
        ({"attack_steps": 5}, coded("no_attack", attack_steps=5)),
        (
            {"start": "emoji-blip2", "hidden": 64, "queries": 8},
            coded("sizes_of_start", changed=["--hidden 64", "--queries 8"]),
        ),
        ({"start": "emoji-blip2", "tower": "emoji-judge", "quick": True}, coded("does_not_fit")),
    ],
)
def test_what_a_pair_reader_could_only_ignore_is_a_fault(asked: dict[str, Any], check: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=check):
        run("emoji-blip2", "pretrain", {"out": tmp_path / "none", "device": "cpu"} | asked)
    assert not (tmp_path / "none").exists()


def test_a_share_of_the_pictures_is_augmented() -> None:
    partly_augmented = find("emoji-blip2", "pretrain").module.partly_augmented
    images = torch.rand(8, 3, 64, 64, generator=generator(0, "images"))
    seen = partly_augmented(images, 0.25, generator(0, "augmented"))
    assert (seen != images).flatten(1).any(1).sum() == 2
    assert seen.min() >= 0
    assert seen.max() <= 1
    torch.testing.assert_close(partly_augmented(images, 0.0, generator(0, "augmented")), images)


def test_a_folder_says_what_is_wrong_with_it(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("unknown_pair_reader", given="nobody")):
        load_pair_reader("nobody")
    reader = load_pair_reader(trained["reader"])
    sizes = {
        name: int(str(reader.card.architecture[name])) for name in ("hidden", "layers", "heads", "queries", "shared")
    }
    save_mini(reader, tmp_path / "one", "emoji-vanilla", sizes, provenance={})
    (tmp_path / "one" / "vocab.txt").unlink()
    with pytest.raises(UsageError, match=r"has no vocab.txt"):
        load_pair_reader(tmp_path / "one")
    save_mini(reader, tmp_path / "two", "emoji-robust", sizes, provenance={})
    card = json.loads((tmp_path / "two" / "card.json").read_text())
    card["architecture"]["tower"] = "emoji-vanilla"
    (tmp_path / "two" / "card.json").write_text(json.dumps(card))
    with pytest.raises(UsageError, check=coded("other_tower", tower="emoji-vanilla")):
        load_pair_reader(tmp_path / "two")
    card["architecture"] |= {"tower": "emoji-robust", "hidden": 10**9}
    (tmp_path / "two" / "card.json").write_text(json.dumps(card))
    with pytest.raises(UsageError, check=coded("not_sizes")):
        load_pair_reader(tmp_path / "two")


def test_a_saved_reader_reads_the_same(trained: dict[str, Path], tmp_path: Path) -> None:
    reader = load_pair_reader(trained["reader"])
    sizes = {
        name: int(str(reader.card.architecture[name])) for name in ("hidden", "layers", "heads", "queries", "shared")
    }
    save_mini(reader, tmp_path / "again", "emoji-vanilla", sizes, provenance={})
    images = torch.rand(2, 3, 64, 64)
    texts = ["a red fish", "an octopus, next to nothing"]
    found = [one.pair_losses(images, texts) for one in (reader, load_pair_reader(tmp_path / "again"))]
    torch.testing.assert_close(*found)


def images_of(count: int) -> torch.Tensor:
    """Coloured squares on white."""
    drawn = torch.ones(count, 3, 32, 32)
    colours = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    drawn[:, :, 8:24, 8:24] = colours
    return drawn


def autoencoder(steps: int = 12) -> AutoencoderTrainer:
    return AutoencoderTrainer(new_autoencoder((16, 16), latent=4), lambda images: [images], steps=steps, lr=5e-3)


def test_an_autoencoder_learns_goes_on_and_is_scaled() -> None:
    images = images_of(8)
    trainer = autoencoder()
    numbers = [trainer.step(images, generator(0, "noise", k)) for k in range(6)]
    kept = trainer.state()
    other = autoencoder()
    other.load({name: value.copy() if isinstance(value, dict) else value for name, value in kept.items()})
    numbers += [trainer.step(images, generator(0, "noise", k)) for k in range(6, 12)]
    assert numbers[-1]["l1"] < 0.7 * numbers[0]["l1"]
    assert other.done == 6
    deviation = latent_deviation(trainer.model, images)
    means = trainer.model.encode(images * 2 - 1).latent_dist.mean
    assert deviation == pytest.approx(means.std().item(), rel=1e-5)
    with pytest.raises(UsageError, check=coded("other_checkpoint")):
        AutoencoderTrainer(new_autoencoder((16, 32), latent=4), lambda one: [one], steps=4).load(kept)
    with pytest.raises(UsageError, match="multiples of 16"):
        new_autoencoder((16, 20))


def test_a_resumption_with_other_channels_fails_and_leaves_the_run_free(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 4, "steps": 1}
    pretrain("emoji-vae", **settings, channels=[16, 16, 16, 16], out=tmp_path / "run")
    for _ in range(2):
        with pytest.raises(UsageError, check=coded("other_checkpoint")):
            pretrain("emoji-vae", **settings, channels=[16, 16, 16, 32], resume=tmp_path / "run")
        assert Run.open(tmp_path / "run").status == "failed"


def encoded() -> Encoded:
    """Four pictures of two things each, in the left and the right half, and two of none that is placed."""
    drawn = torch.Generator().manual_seed(0)
    latents, states = torch.randn(6, 2, 4, 4, generator=drawn), torch.randn(6, 3, 16, generator=drawn)
    words, cells = torch.zeros(6, THINGS, 3, dtype=torch.bool), torch.zeros(6, THINGS, 4, 4)
    for thing in range(2):
        words[:4, thing, thing] = True
        cells[:4, thing, :, 2 * thing : 2 * thing + 2] = 1
    return Encoded(latents, states, torch.ones(6, 3, dtype=torch.bool), words, cells)


EMPTY = (torch.zeros(3, 16), torch.tensor([True, False, False]))


def test_a_denoiser_learns_and_its_loss_is_min_snr() -> None:
    trainer = DenoiserTrainer(new_denoiser((32,), latent=2, size=4, text=16, heads=2), steps=40, lr=5e-3, placed=0.5)
    batch = encoded().drawn(3, 0.0, EMPTY, generator(0, "batch"))
    assert len(batch.latents) == 18
    stream = generator(0, "noise")
    noise = torch.randn(batch.latents.shape, generator=stream)
    times = torch.randint(1000, (18,), generator=stream)  # of SCHEDULE
    kept = trainer.scheduler.alphas_cumprod[times]
    fused = new_denoiser((32,), latent=2, size=4, text=16, heads=2)  # with diffusers' own attention
    with torch.no_grad():
        noisy = kept.sqrt().view(-1, 1, 1, 1) * batch.latents + (1 - kept).sqrt().view(-1, 1, 1, 1) * noise
        found = fused(noisy, times, batch.states, encoder_attention_mask=batch.mask).sample
    ratio = kept / (1 - kept)
    weights = torch.minimum(ratio, torch.full_like(ratio, SNR)) / ratio
    expected = (weights * (found - noise).square().flatten(1).mean(1)).mean()
    first = trainer.step(batch, generator(0, "noise"))
    assert first["loss"] == pytest.approx(expected.item(), rel=1e-4)
    for _ in range(39):
        last = trainer.step(batch, generator(0, "noise"))
    assert last["error"] < 0.8 * first["error"]
    assert last["misplaced"] < 0.3 < first["misplaced"]
    assert trainer.averaged() is not trainer.model
    other = DenoiserTrainer(new_denoiser((32,), latent=2, size=4, text=16, heads=2), steps=40)
    other.load(trainer.state())
    assert other.done == 40
    with pytest.raises(UsageError, match="multiples of 32"):
        new_denoiser((40,))


def test_a_cell_attends_to_the_words_of_what_it_shows() -> None:
    batch = encoded()
    cells = batch.cells.flatten(2)  # (6,things,16)
    right = torch.zeros(6, 16, 3)
    right[:, :, 2] = 1  # where nothing is placed
    right[:4, :, 2], right[:4, :, :2] = 0, cells[:4, :2].transpose(1, 2)
    chance = torch.full((6, 16, 3), 1 / 3)
    wrong = right[:, :, [1, 0, 2]]
    by_head = [one.repeat_interleave(2, 0) for one in (right, chance, 0.75 * right + 0.25 * wrong)]
    found = [misplaced(one, batch.words, batch.cells).item() for one in by_head]
    assert found == pytest.approx([0.0, math.log(2), -math.log(0.75)], abs=1e-4)
    coarse = torch.full((6, 4, 3), 1 / 3)
    assert misplaced(coarse, batch.words, batch.cells).item() == pytest.approx(math.log(2), abs=1e-4)
    assert misplaced(chance, torch.zeros_like(batch.words), batch.cells).item() == 0


def test_the_average_forgets_where_it_began() -> None:
    average, current = torch.zeros(2), torch.ones(2)
    for steps in range(1, 200):
        averaging([average], [current], torch.tensor(steps))
    assert (average > 0.999).all()
    averaging([average], [torch.zeros(2)], torch.tensor(10**6))
    assert average[0].item() == pytest.approx(KEPT, abs=1e-3)


def test_captions_are_dropped_in_the_share_that_was_asked_for() -> None:
    batch = encoded().drawn(100, 0.5, EMPTY, generator(0, "batch"))
    dropped = ~batch.mask[:, 1]
    assert 0.4 < dropped.float().mean() < 0.6
    assert (batch.states[dropped] == 0).all()
    assert (batch.states[~dropped] != 0).any(2).all()
    assert not batch.words[dropped].any()


def test_pictures_are_encoded_with_the_words_and_cells_of_their_things(trained: dict[str, Path]) -> None:
    texts = SentenceStates()
    data = DrawingsAndPairs("guide-styles", 12, composed=0.5, single=0.25)
    batch = data.labelled(0)
    vae = load_vae(trained["vae"])
    found = encode(batch, vae, texts)
    model = load_diffusion(trained["diffusion"])
    torch.testing.assert_close(found.latents, model.encode(batch.images), atol=0.03, rtol=0)  # of half precision
    tokens = [texts.encoder.tokenizer.tokenize(caption) for caption in batch.captions]
    for row, phrases in enumerate(batch.phrases):
        assert int(found.words[row].any(1).sum()) == len(phrases)
        for thing, phrase in enumerate(phrases):
            own = [tokens[row][place - 1] for place in found.words[row, thing].nonzero()[:, 0].tolist()]
            assert own == texts.encoder.tokenizer.tokenize(phrase)
            shown = (batch.masks[row] == 1 + thing).float().mean()
            assert found.cells[row, thing].mean().item() == pytest.approx(shown.item(), abs=1e-6) != 0


def test_a_scene_reader_is_trained_and_answers(tmp_path: Path) -> None:
    found = pretrain("emoji-scenes", quick=True, out=tmp_path / "scenes")
    assert len(losses(tmp_path / "scenes")) == 4
    reader = load_scene_reader(Path(found["reader"]), torch.device("cpu"))
    assert set(reader.nouns) >= {"butterfly", "star"}
    assert found["measured"]
