"""Methods on a simulated accelerator: every tensor and generator must be on the device that `--device` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import robustclip
from robustclip.data import embedded
from robustclip.diffusion.mutual_information import pointwise_mi, sample_with_mi
from robustclip.drawing.raster import _similar
from robustclip.evaluation.generation.judge import JudgeOptions, judge_images
from robustclip.evaluation.universal import universal
from robustclip.explanation.gradients import low_frequency_share
from robustclip.inits.mixture import fit_classes
from robustclip.recipes import available, run


def test_the_card_computes_as_the_cpu(card: torch.device) -> None:
    weights, images = torch.randn(4, 3, 3, 3), torch.rand(2, 3, 8, 8)
    leaf = images.to(card).requires_grad_()
    torch.nn.functional.conv2d(leaf, weights.to(card)).relu().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.device == card
    images.requires_grad_()
    torch.nn.functional.conv2d(images, weights).relu().sum().backward()
    assert torch.equal(leaf.grad.cpu(), images.grad)
    leaf.detach()[0].zero_()
    assert leaf[0].sum().item() == 0


@pytest.mark.parametrize(
    "mixed",
    [
        lambda card: torch.rand(3, device=card) + torch.rand(3),
        lambda card: torch.rand(3)[torch.arange(2, device=card)],
        lambda card: torch.rand(3, device=card, generator=torch.Generator()),
        lambda card: torch.rand(3, generator=torch.Generator(card)),
        lambda card: torch.cat([torch.rand(3), torch.rand(3, device=card)]),
        lambda card: torch.nn.Linear(2, 2).to(card)(torch.rand(1, 2)),
    ],
)
def test_the_card_refuses_what_cuda_refuses(mixed: Any, card: torch.device) -> None:
    with pytest.raises(RuntimeError, match=r"devices|of the other device"):
        mixed(card)


def test_numpy_refuses_the_card(card: torch.device) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        torch.rand(2, device=card).numpy()


def test_the_card_accepts_what_cuda_accepts(card: torch.device) -> None:
    numbers = torch.arange(6.0, device=card)
    assert (numbers * torch.tensor(2.0)).sum().item() == 30
    assert numbers[torch.tensor([1, 2])].tolist() == numbers[[1, 2]].tolist() == [1, 2]
    assert torch.zeros(2).copy_(numbers[:2]).tolist() == [0, 1]


def test_float64_is_computed_on_the_cpu_where_the_device_lacks_it(card_without_float64: torch.device) -> None:
    card = card_without_float64
    with pytest.raises(TypeError):
        torch.ones(1, device=card).double()
    assert low_frequency_share(torch.ones(1, 3, 8, 8, device=card)).tolist() == pytest.approx([1.0])
    counts, filled = torch.tensor([1, 5, 1, 6], device=card), torch.zeros(4, dtype=torch.bool, device=card)
    assert [which.tolist() for which in _similar(counts, filled)] == [[0, 2], [1, 3]]


def test_a_mixture_is_fitted_to_pictures_and_labels_on_the_device(card: torch.device) -> None:
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    found = [fit_classes(images.to(device), labels.to(device), ["cat", "dog"]) for device in ("cpu", card)]
    assert torch.equal(found[0].means, found[1].means)


class Denoised:
    """Two latents and the noise that a linear denoiser predicts for them."""

    def __init__(self, device: torch.device | str) -> None:
        self.alphas_cumprod = torch.linspace(0.99, 0.01, 10).to(device)
        self.latents = torch.linspace(-1, 1, 8).view(2, 1, 2, 2).to(device).requires_grad_()
        self.texts = Texts(torch.tensor([0.5, -0.25]).to(device))

    def predict_both(self, noisy: torch.Tensor, _: torch.Tensor, texts: Texts, __: None) -> tuple[torch.Tensor, ...]:
        return noisy * texts.values.view(-1, 1, 1, 1), noisy * 0.125


class Texts:
    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: torch.Tensor) -> Texts:
        return Texts(self.values[index])


def test_mutual_information_needs_no_float64_of_the_device(card_without_float64: torch.device) -> None:
    found = {}
    for device in (torch.device("cpu"), card_without_float64):
        model = Denoised(device)
        estimate = pointwise_mi(model, model.latents, model.texts, None, levels=4, draws=2, at_once=3)
        estimate.nats.sum().backward()
        streams = [torch.Generator().manual_seed(seed) for seed in range(2)]
        made = sample_with_mi(model, model.latents.detach(), model.texts, None, generators=streams, steps=3)
        found[device.type] = [*vars(estimate).values(), model.latents.grad, *made]
    assert [one.cpu().tolist() for one in found["lazy"]] == [one.tolist() for one in found["cpu"]]


def evaluated(referee: str = "emoji-vit-robust", **arguments: Any) -> Any:
    return lambda card, _: robustclip.evaluate(referee, limit=4, device=str(card), **arguments)


def called(verb: str, name: str, **arguments: Any) -> Any:
    return lambda card, out: run(name, verb, arguments | {"quick": True, "device": str(card), "out": out})


EMOJI = "emoji/unseen-styles"
AUTOENCODER = str(embedded.path("generators", "emoji-diffusion", "vae"))
CASES: dict[str, Any] = {
    "zero-shot": evaluated(data=EMOJI, attack=["l2:1.5@2", "l2:1.5@apgd-ce:2", "linf:1/255@square:2"]),
    "retrieval": evaluated(data="emoji/scenes", tasks=["retrieval", "gradients"], attack=["l2:1.5@2"]),
    "maps": evaluated(data="emoji/scenes", tasks=["maps", "faithfulness"]),
    "corruptions": evaluated(data=EMOJI, tasks=["corruptions", "pag", "distance"]),
    "certification": evaluated(data=EMOJI, tasks=["certification"], sigma=0.25, samples=20),
    "edits": evaluated(data=EMOJI, tasks=["edits"]),
    "a smoothed referee": evaluated("emoji-vit-robust~smooth:0.25x2", data=EMOJI, attack=["l2:1.5@2"]),
    "a counterattack": evaluated("emoji-vit-robust~ttc", data=EMOJI, attack=["l2:1.5@2"]),
    "a purification": evaluated("emoji-vit-robust~clipure:cos", data=EMOJI, attack=["l2:1.5@2"]),
    "universal": lambda card, out: universal(
        ["emoji-vit-robust"], attack="l2:1.5@2", quick=True, device=str(card), out=out.with_suffix(".safetensors")
    ),
    "judge": lambda card, _: judge_images(
        torch.rand(4, 3, 64, 64),
        ["a cat", "a dog"] * 2,
        options=JudgeOptions(("r-precision", "label-score")),
        device=card,
    ),
    "explain": lambda card, out: robustclip.explain(
        referees=["emoji-robust"], images=[EMOJI], limit=2, attack="l2:1.5@2", device=str(card), out=out
    ),
    **{f"synthesize {one.name}": called("synthesize", one.name, prompt=["a cat"]) for one in available("synthesize")},
    "robustify emoji": called("robustify", "emoji"),
    "robustify emoji, a ViT, accumulated": called(
        "robustify", "emoji", start="emoji-vit-vanilla", objective="clip", accumulate=2
    ),
    "robustify emoji, fare": called("robustify", "emoji", objective="fare", warm_start=True, energy=0.1),
    "robustify leaf": called("robustify", "leaf"),
    "robustify distance": called("robustify", "distance"),
    "robustify pretrain/emoji-diffusion": called("robustify", "pretrain/emoji-diffusion", vae=AUTOENCODER),
    **{
        f"robustify pretrain/{name}": called("robustify", f"pretrain/{name}")
        for name in ("emoji-vae", "emoji-vqgan", "emoji-blip2", "emoji-scenes")
    },
    "align mi-tune": called("align", "mi-tune"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_everything_stays_on_the_device_that_is_asked_for(case: Any, card: torch.device, tmp_path: Path) -> None:
    case(card, tmp_path / "run")
