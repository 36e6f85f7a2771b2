"""Training a VQGAN: losses by hand, Eq. 7's balance, codes that are drawn again, and runs that go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import robustclip
from robustclip.diffusion import training, vqgan
from robustclip.diffusion.training import STARVED, VQGANTrainer, discriminator, new_vqgan
from robustclip.diffusion.vqgan import CARD, WEIGHTS, load_vqgan, nearest
from robustclip.errors import RunError, UsageError, coded
from robustclip.runs.files import sha256
from robustclip.runs.folder import Run
from robustclip.runs.rng import generator

CHANNELS = (16, 16)
Train = Callable[..., VQGANTrainer]


def images(step: int = 0) -> Tensor:
    """Smooth ones, each of two colours."""
    ends = torch.rand(4, 3, 2, 2, generator=generator(0, "images", step))
    return F.interpolate(ends, 16, mode="bilinear")


def pooled(pictures: Tensor) -> list[Tensor]:
    return [F.avg_pool2d(pictures, 4)]


def trainer(**changes: object) -> VQGANTrainer:
    settings = {"steps": 40, "lr": 2e-3, "start_gan": 1000}
    model = new_vqgan(CHANNELS, codes=16, code=4)
    return VQGANTrainer(model, discriminator(8), pooled, **{**settings, **changes})  # type: ignore[arg-type]


def trained(made: VQGANTrainer, steps: int) -> list[dict[str, float]]:
    return [made.step(images(step), generator(0, "codes", step)) for step in range(made.done, made.done + steps)]


def test_the_network_is_a_function_of_the_seed_and_disturbs_no_generator() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (new_vqgan(CHANNELS, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["encoder.conv_in.weight"], other["encoder.conv_in.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("channels", [(10, 20), ()])
def test_channels_that_no_norm_can_group_are_refused(channels: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, check=coded("not_divisible", argument="channels", given=list(channels))):
        new_vqgan(channels)


def test_the_nearest_code_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    codebook = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    latents = torch.tensor([[1.0, 1.0], [3.0, 0.0], [1.9, 0.0]]).T.reshape(1, 2, 1, 3)
    assert nearest(latents, codebook).tolist() == [[[0, 1, 0]]]
    monkeypatch.setattr(vqgan, "AT_ONCE", 1)
    assert nearest(latents, codebook).tolist() == [[[0, 1, 0]]], "in parts of one vector"


def test_the_losses_of_a_step_by_hand() -> None:
    made, x = trainer(perceptual=0.5), images()
    with torch.no_grad():
        z = made.model.encode(x * 2 - 1).latents
        book = made.model.quantize.embedding.weight
        codes = book[nearest(z, book)].permute(0, 3, 1, 2)
        picture = (made.model.decode(codes, force_not_quantize=True).sample + 1) / 2
        l1 = (picture - x).abs().mean()
        [found], [wanted] = pooled(picture), pooled(x)
        seen = (F.normalize(found, dim=1) - F.normalize(wanted, dim=1)).square().sum(1).mean()
        codebook = 1.25 * (codes - z).square().mean()  # van den Oord et al. 2017, Eq. 3: 1 + beta, of equal values
    numbers = made.step(x, generator(0, "codes"))
    assert numbers["l1"] == pytest.approx(l1.item(), rel=1e-4)
    assert numbers["perceptual"] == pytest.approx(seen.item(), rel=1e-4)
    assert numbers["codebook"] == pytest.approx(codebook.item(), rel=1e-4)
    assert numbers["loss"] == pytest.approx(l1.item() + 0.5 * seen.item(), rel=1e-4)
    assert "adversarial" not in numbers


def test_reconstruction_gets_better_and_the_encoder_learns_through_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "COMMITMENT", 0.0)  # which would move the encoder as well
    made = trainer(steps=1000, lr=5e-3)
    made.done = 100  # after the warm-up
    before = made.model.encoder.conv_in.weight.detach().clone()
    losses = [made.step(images(), generator(0, "codes", step))["loss"] for step in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    assert not torch.equal(made.model.encoder.conv_in.weight, before)


def test_the_balance_is_that_of_both_gradients_at_the_last_layer() -> None:
    """Eq. 7 of Esser et al. 2021, with two losses whose gradients are known: 3 and 4 in places of their own, and 2."""
    made = trainer()
    last = made.model.decoder.conv_out.weight
    own = 3 * last[0, 0, 0, 0] + 4 * last[1, 0, 0, 0]
    assert made._balance(own, 2 * last[0, 0, 0, 0]).item() == pytest.approx(5 / (2 + 1e-4))
    assert made._balance(own, 0 * last[0, 0, 0, 0]).item() == pytest.approx(1e4), "cut there"


def test_the_critic_learns_before_it_is_heard_and_is_heard_then() -> None:
    made = trainer(start_gan=202)
    critic = [parameter.detach().clone() for parameter in made.critic.parameters()]
    first, second, third, fourth = trained(made, 4)
    del third
    assert "critic" not in second
    made.done = 201
    before_heard, heard = trained(made, 2)
    assert "critic" in before_heard
    assert "adversarial" not in before_heard
    assert {"adversarial", "balance", "critic"} <= heard.keys()
    assert heard["balance"] > 0
    assert any(not torch.equal(old, new) for old, new in zip(critic, made.critic.parameters(), strict=True))
    assert "critic" not in first
    assert "critic" in fourth


def test_codes_that_nothing_uses_are_drawn_again_from_what_the_encoder_gives() -> None:
    made = trainer(steps=1000)
    with torch.no_grad():
        made.model.quantize.embedding.weight[5:] = 1000.0  # where no latent is
    weight = made.model.quantize.embedding.weight
    for _ in range(STARVED - 1):
        made._redraw(torch.arange(5), torch.zeros(1, 4, 2, 2), generator(0, "codes"))
    assert (weight[5:] == 1000).all(), "not yet"
    latents = torch.randn(2, 4, 3, 3, generator=generator(0, "latents"))
    kept = weight[:5].detach().clone()
    made._redraw(torch.arange(5), latents, generator(0, "codes"))
    vectors = latents.movedim(1, 3).flatten(0, 2)
    assert (weight[5:, None] == vectors).all(2).any(1).all()
    assert len(weight[5:].unique(dim=0)) > 3
    assert torch.equal(weight[:5], kept)
    assert made.unused.tolist() == [0] * 16


def test_towards_the_end_no_code_moves() -> None:
    made = trainer(steps=100)
    made.done, made.unused = 81, torch.full((16,), STARVED)
    before = made.model.quantize.embedding.weight.detach().clone()
    made._redraw(torch.tensor([0]), torch.randn(1, 4, 2, 2), generator(0, "codes"))
    assert torch.equal(made.model.quantize.embedding.weight, before)


def test_a_step_that_is_not_finite_ends_the_training_and_leaves_the_weights() -> None:
    made = trainer()
    before = [weight.clone() for weight in made.model.parameters()]
    with pytest.raises(RunError, check=coded("not_finite")):
        made.step(images() * torch.nan, generator(0, "codes", 0))
    assert made.done == 0
    assert all(torch.equal(*pair) for pair in zip(before, made.model.parameters(), strict=True))


def test_a_training_that_goes_on_is_the_one_that_never_stopped() -> None:
    whole = trainer(start_gan=3, steps=8)
    numbers = trained(whole, 8)
    first = trainer(start_gan=3, steps=8)
    trained(first, 5)
    state = json_like(first.state())
    second = trainer(start_gan=3, steps=8)
    second.load(state)
    assert second.done == 5
    assert second.unused.tolist() == first.unused.tolist() != [0] * 16
    assert trained(second, 3) == numbers[5:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)
    with pytest.raises(UsageError, check=coded("other_checkpoint")):
        VQGANTrainer(new_vqgan((16, 16, 16)), discriminator(8), pooled, steps=8).load(state)


def test_a_finished_run_keeps_its_numbers_and_does_not_go_back(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe="test", arguments={})

    def fit(steps: int) -> dict[str, float]:
        made = trainer(steps=steps)
        made.resume(run, torch.device("cpu"))
        return made.fit(lambda k: made.step(images(k), generator(0, "codes", k)), run, images=4, save_every=2)

    numbers = fit(3)
    assert fit(3) == numbers != {}
    with pytest.raises(UsageError, check=coded("beyond_steps", step=3, steps=2)):
        fit(2)


def json_like(state: dict[str, object]) -> dict[str, object]:
    """As read back from a file: nothing is shared with what goes on training."""
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, object] = torch.load(file, weights_only=True)
    return loaded


def test_a_quick_run_of_the_recipe_and_its_resumption(tmp_path: Path) -> None:
    numbers = robustclip.robustify(
        "pretrain/emoji-vqgan", quick=True, device="cpu", dtype="float32", out=tmp_path / "a"
    )
    folder = Path(numbers["generator"])
    card = json.loads((folder / CARD).read_text())
    assert card["weights_sha256"] == sha256(folder / WEIGHTS)
    assert (card["recipe"], card["arguments"]["seed"]) == ("pretrain/emoji-vqgan", 0)
    assert not {"out", "resume"} & card["arguments"].keys()
    generator_ = load_vqgan(folder)
    assert (generator_.factor, len(generator_.codebook)) == (4, 32)
    (tmp_path / "a" / "checkpoints" / "checkpoint-00000004.pt").unlink()
    again = robustclip.robustify(
        "pretrain/emoji-vqgan", quick=True, device="cpu", dtype="float32", resume=tmp_path / "a"
    )
    other = load_vqgan(again["generator"])
    assert Path(again["generator"]) != folder, "nothing is written over"
    for name, value in generator_.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    steps = [json.loads(line)["step"] for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
