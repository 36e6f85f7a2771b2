from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustclip import load_referee
from robustclip.attacks.threat import ThreatModel
from robustclip.errors import UsageError, coded
from robustclip.evaluation import evaluate
from robustclip.explanation.layers import spatial_layers
from robustclip.recipes import find
from robustclip.referees.base import TwoTower, unit
from robustclip.referees.folder import save_referee
from robustclip.referees.smoothed import Smoothing, check_judge, fingerprint, is_smoothed, smoothed, split_spec
from robustclip.referees.toy import toy_referee
from robustclip.robustification.state import ready_to_train
from robustclip.runs.rng import generator

SIGMA = 0.25


def copies(image: Tensor, samples: int, seed: int = 0) -> Tensor:
    """An image (3,H,W) with the noise that is documented, (n,3,H,W); not clipped."""
    noise = [torch.randn(image.shape, generator=generator(seed, "smoothing", i)) for i in range(samples)]
    return image + SIGMA * torch.stack(noise)


@pytest.mark.parametrize("side", [16, 24, 9], ids=["as it is", "made smaller", "made larger"])
def test_an_embedding_is_the_mean_of_the_copies_noised_at_the_given_size(side: int) -> None:
    base = toy_referee()
    images = torch.ones(2, 3, side, side)  # white: half of the noise is outside [0,1]

    found = smoothed(base, sigma=SIGMA, samples=5).embed_images(images, normalize=False)

    expected = unit(base.embed_views(copies(images[0], 5))).mean(0)
    torch.testing.assert_close(found, expected.expand(2, -1))
    torch.testing.assert_close(
        smoothed(base, sigma=SIGMA, samples=5).embed_images(images), unit(expected[None]).expand(2, -1)
    )


@pytest.mark.parametrize("chunk", [None, 4])
def test_the_gradient_is_the_mean_of_the_copies_gradients(chunk: int | None) -> None:
    base = toy_referee()
    image = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    [text] = base.embed_texts(["a cat"])

    pixels = image[None].clone().requires_grad_()
    referee = smoothed(base, sigma=SIGMA, samples=16, chunk=chunk)
    (found,) = torch.autograd.grad((referee.embed_views(pixels) @ text).sum(), pixels)

    views = copies(image, 16).requires_grad_()
    (each,) = torch.autograd.grad((unit(base.embed_views(views)) @ text).sum(), views)
    torch.testing.assert_close(found[0], each.mean(0))
    assert found.abs().max() > 0


def test_neither_batch_nor_chunk_changes_an_embedding(images: Tensor) -> None:
    base = toy_referee()
    whole = smoothed(base, sigma=SIGMA, samples=6).embed_images(images)

    for chunk in (1, 4, 7, 100):
        referee = smoothed(base, sigma=SIGMA, samples=6, chunk=chunk)
        torch.testing.assert_close(referee.embed_images(images), whole)
        torch.testing.assert_close(referee.embed_images(images[1:2]), whole[1:2])


class Recorder(nn.Module):
    """Keeps what it is given, and says 1."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return torch.ones(len(images), 16)


def test_the_noise_has_the_asked_deviation_and_a_chunk_its_size(images: Tensor) -> None:
    base = toy_referee(size=32)
    recorder = Recorder()
    recording = TwoTower(recorder, base.text_tower, base.preprocess, card=base.card)
    referee = smoothed(recording, sigma=SIGMA, samples=50, chunk=30)
    recorder.seen.clear()

    referee.embed_images(images)

    assert [len(seen) for seen in recorder.seen] == [30] * 5  # 10 copies of 3 images
    noise = torch.cat(recorder.seen) * base.preprocess.std + base.preprocess.mean - images.repeat(50, 1, 1, 1)
    assert float(noise.std()) == pytest.approx(SIGMA, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)


def test_noise_repeats_unless_it_is_to_be_fresh(images: Tensor) -> None:
    def embed(referee: TwoTower) -> Tensor:
        return referee.embed_images(images)

    base = toy_referee()
    fixed, other = smoothed(base, sigma=SIGMA), smoothed(base, sigma=SIGMA, seed=1)
    assert torch.equal(embed(fixed), embed(fixed))
    assert not torch.equal(embed(fixed), embed(other))

    fresh, again = (smoothed(base, sigma=SIGMA, fresh=True) for _ in range(2))
    first, second = embed(fresh), embed(fresh)
    assert not torch.equal(first, second)
    assert torch.equal(embed(again), first)
    assert torch.equal(embed(again), second)


def test_global_seeds_and_the_base_are_left_alone(images: Tensor) -> None:
    base = toy_referee()
    before, state = base.embed_images(images), torch.get_rng_state()

    smoothed(base, sigma=SIGMA).embed_images(images)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(base.embed_images(images), before)


def test_its_card_claims_nothing_of_the_bases() -> None:
    base = toy_referee()
    base.card.threat = ThreatModel("l2", 1.5, 16)

    card = smoothed(base, sigma=SIGMA, samples=8, seed=3).card

    assert card.name == "toy~smooth:0.25x8@3"
    assert card.threat is None
    assert card.claims == []
    assert card.provenance["smoothed"] | {"base": "toy", "sigma": SIGMA, "samples": 8} == card.provenance["smoothed"]
    assert base.card.threat is not None
    assert base.card.name == "toy"


@pytest.mark.parametrize(
    ("text", "smoothing"),
    [
        ("0.25x16", Smoothing(0.25)),
        ("0.5", Smoothing(0.5)),
        ("1x4@7", Smoothing(1.0, 4, 7)),
        ("0.1x2@3-fresh", Smoothing(0.1, 2, 3, fresh=True)),
        ("0.12345678x16", Smoothing(0.12345678)),
        ("0.00001x16", Smoothing(1e-5)),
    ],
)
def test_a_spec_says_how(text: str, smoothing: Smoothing) -> None:
    assert split_spec(f"a/folder~smooth:{text}") == ("a/folder", smoothing)
    assert Smoothing.parse(str(smoothing)) == smoothing


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("emoji-vanilla~smooth:", coded("not_a_smoothing", given="")),
        ("emoji-vanilla~smooth:0.25x", coded("not_a_smoothing", given="0.25x")),
        ("emoji-vanilla~smooth:x16", coded("not_a_smoothing")),
        ("emoji-vanilla~smooth:-1x16", coded("not_a_smoothing")),
        ("emoji-vanilla~smooth:0x16", coded("out_of_range", argument="sigma", given=0)),
        ("emoji-vanilla~smooth:64x16", coded("out_of_range", argument="sigma", given=64)),
        ("emoji-vanilla~smooth:0.25x0", coded("out_of_range", argument="samples", given=0)),
        ("emoji-vanilla~smooth:0.25x99999", coded("out_of_range", argument="samples", given=99999)),
        ("emoji-vanilla~smooth:0.1x2~smooth:0.1x2", coded("smoothed_twice")),
        ("~smooth:0.25x16", coded("no_base")),
        ("nobody~smooth:0.25x16", coded("unknown_referee", given="nobody")),
    ],
)
def test_bad_names_are_told(name: str, check: Any) -> None:
    with pytest.raises(UsageError, check=check):
        load_referee(name)


def test_a_name_loads_what_the_function_makes() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    made = smoothed(load_referee("emoji-vanilla"), sigma=0.1, samples=2)

    named = load_referee("emoji-vanilla~smooth:0.1x2")

    assert named.card.name == made.card.name == "emoji-vanilla~smooth:0.1x2"
    torch.testing.assert_close(named.embed_images(images), made.embed_images(images))


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_holds_an_image(chunk: int) -> None:
    with pytest.raises(UsageError, check=coded("too_few", argument="chunk", given=chunk)):
        smoothed(toy_referee(), sigma=SIGMA, chunk=chunk)


def test_what_it_is_unfit_for_is_refused_with_the_way_out(tmp_path: Path) -> None:
    referee = smoothed(toy_referee(), sigma=SIGMA, samples=1, chunk=1)
    assert is_smoothed(referee.image_tower)
    assert not is_smoothed(toy_referee().image_tower)

    with pytest.raises(UsageError, check=coded("wrapped", kind="smoothed")):
        ready_to_train(
            referee.image_tower, frozen_statistics=False, grad_checkpointing=False, accumulate=1, channels_last=False
        )
    with pytest.raises(UsageError, check=coded("wrapped", kind="smoothed")):
        save_referee(referee, tmp_path / "folder")
    with pytest.raises(UsageError, check=coded("wrapped", kind="smoothed")):
        spatial_layers(referee)
    assert not (tmp_path / "folder").exists()


def test_its_base_is_no_judge_of_it() -> None:
    base = toy_referee()
    referee = smoothed(base, sigma=SIGMA)

    assert fingerprint(referee) == fingerprint(base)
    with pytest.raises(UsageError, check=coded("same_weights")):
        check_judge(referee, toy_referee())


def test_it_is_measured_by_name_and_never_signed() -> None:
    names = ["emoji-vanilla", "emoji-vanilla~smooth:0.1x2"]

    report = evaluate(names, tasks=["zero-shot", "gradients"], attack=["l2:1.5@2"], labels="present", limit=4)

    shares = [report.row(name, "low-frequency share").value for name in names]
    assert shares[0] != shares[1]
    assert report.row(names[1], "top-1 of 4 present", "l2:1.5@2").n == 4
    with pytest.raises(UsageError, check=coded("no_folder_to_sign")):
        evaluate(names[1], limit=4, sign=True)


def test_it_guides_a_painting(tmp_path: Path) -> None:
    clipag = find("clipag", "synthesize").function
    how = {"steps": 2, "augment": "none", "init": "noise", "device": "cpu", "dtype": "float32"}

    def paint(referee: object, out: str) -> Tensor:
        result = clipag(prompt=["a cat"], referee=[referee], out=tmp_path / out, **how)
        return result.images  # type: ignore[no-any-return, attr-defined]

    base = toy_referee()
    through_noise = paint(smoothed(base, sigma=SIGMA, samples=4), "noisy")

    assert bool(through_noise.isfinite().all())
    assert torch.equal(through_noise, paint(smoothed(base, sigma=SIGMA, samples=4), "again"))
    assert not torch.equal(through_noise, paint(base, "base"))
