"""Tell from labelled images whether a referee was loaded wrong: activation, normalisation, text tower, head.

A wrong setting raises no error and costs accuracy. So the check classifies the images as loaded and under every other
setting that the files cannot exclude; a setting under which significantly more of the same images are right is the
likely fault. Where accuracy is at chance and no setting helps, the towers do not share a space: a permutation of the
image embedding's components is fitted on both halves of the labels, and tells a permuted head where they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor, nn

from robustclip.data.embedded import EMBEDDED_DATA
from robustclip.data.examples import Examples, read_examples
from robustclip.errors import UsageError
from robustclip.evaluation.intervals import Interval, rate
from robustclip.evaluation.zeroshot import Candidates, ranks
from robustclip.referees.base import TwoTower
from robustclip.referees.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from robustclip.referees.sentence import SentenceEncoder
from robustclip.referees.similarity import class_embeddings, embed_images
from robustclip.runs.rng import generator

DATA: Final = EMBEDDED_DATA + "unseen-styles"
IMAGES: Final = 200
FEWEST: Final = 50  # images: below, half of the labels say nothing
SIGNIFICANT: Final = 0.001  # one-sided; about ten settings are tried
UNMISTAKABLE: Final = 1e-6  # another space, rotated, agrees in a few components too
SAME: Final = 0.9999  # mean cosine of embeddings that answer everything alike
BATCH: Final = 64
Cause = Literal["activation", "normalisation", "permuted head", "text tower", "image tower"]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), which OpenAI's CLIPs have in place of GELU."""

    def forward(self, values: Tensor) -> Tensor:
        return values * torch.sigmoid(1.702 * values)


ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "QuickGELU": QuickGELU,
    "GELU": nn.GELU,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
}
KNOWN: Final = {
    "QuickGELU": "QuickGELU",
    "QuickGELUActivation": "QuickGELU",
    "GELU": "GELU",
    "GELUActivation": "GELU",
    "ReLU": "ReLU",
    "SiLU": "SiLU",
    "SiLUActivation": "SiLU",
}
"""What open_clip, timm and transformers call these classes."""
NORMALISATIONS: Final[dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "CLIP's": (CLIP_MEAN, CLIP_STD),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean 0.5, std 0.5": ((0.5,) * 3, (0.5,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
    "none, pixels of 0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
}


@dataclass(frozen=True)
class Sanity:
    """Zero-shot accuracy as loaded and under other settings, all on the same images among `labels` candidates, and the
    likely fault: `cause` (None where nothing is wrong) with `advice`, what it means and what to do."""

    data: str
    labels: int
    accuracy: Interval
    settings: dict[str, Interval]
    cause: Cause | None = None
    advice: str = ""

    @property
    def chance(self) -> float:
        """The accuracy of a guess."""
        return 1 / self.labels


@torch.no_grad()
def check(referee: TwoTower, *, data: str | Path = DATA, limit: int = IMAGES, seed: int = 0) -> Sanity:
    """Classify `limit` labelled images (drawn by the seed) among the labels that they have, and look for a fault.

    A setting counts as the fault where the exact McNemar test against the setting as loaded is below 0.001, one-sided,
    and accuracy as "at chance" where the binomial test is not. A fault that costs fewer images stays unseen. Raises
    UsageError for data without labels, with one label, and with fewer than 50 images.
    """
    examples = read_examples(data, limit=limit, seed=seed, size=None if _sized(data) else referee.image_size)
    _check_labels(examples)
    among = Candidates.among(examples.label_names, examples.labels, present_only=True)
    texts = class_embeddings(referee, among.names, ("{}",)).float()
    embedded = partial(embed_images, referee, examples.images, batch_size=BATCH)
    images = embedded(title="sanity, as loaded")
    hits = _hits(images, texts, among.targets)
    found: dict[str, tuple[Cause, Bool[Tensor, " n"]]] = {}
    for name in _other_activations(referee):
        with _activated(referee, name):
            other = class_embeddings(referee, among.names, ("{}",)).float()
            answers = _hits(embedded(title=f"sanity, {name}"), other, among.targets)
            found[f"activation {name}"] = "activation", answers
    for name, (mean, std) in NORMALISATIONS.items():
        if not _same_statistics(referee.preprocess, mean, std):
            config = referee.preprocess.config() | {"mean": list(mean), "std": list(std)}
            with _looking(referee, Preprocess.from_config(config).to(referee.device)):
                answers = _hits(embedded(title=f"sanity, {name}"), texts, among.targets)
            found[f"normalisation {name}"] = "normalisation", answers
    better = {name: one for name, one in found.items() if _significant(one[1], hits)}
    cause, advice = _fault(better) if better else _unrelated(images, texts, among.targets, hits, seed)
    settings = {name: rate(one.numpy()) for name, (_, one) in found.items()}
    return Sanity(examples.name, len(among.names), rate(hits.numpy()), settings, cause, advice)


def _fault(better: dict[str, tuple[Cause, Bool[Tensor, " n"]]]) -> tuple[Cause, str]:
    """The cause of the best setting, and all settings of that kind which are not significantly worse."""
    best = max(better, key=lambda one: int(better[one][1].sum()))
    cause, hits = better[best]
    names = [name for name, (kind, other) in better.items() if kind == cause and not _significant(hits, other)]
    fix = (
        "load it with the other quick_gelu, or the architecture whose activation this is"
        if cause == "activation"
        else "give the mean and std that its makers trained with, in the config's preprocess_cfg"
    )
    return cause, f"with {' or '.join(names)} significantly more of the same images are right: {fix}"


def _unrelated(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "c d"], targets: Int[Tensor, " n"], hits: Tensor, seed: int
) -> tuple[Cause | None, str]:
    """The fault where accuracy is at chance: None where it is not."""
    if binomtest(int(hits.sum()), len(hits), 1 / len(texts), alternative="greater").pvalue < SIGNIFICANT:
        return None, ""
    if _alike(images):
        return "image tower", "it answers the same to every image: its weights are not those of a trained tower"
    if _alike(texts):
        return "text tower", "it answers the same to every label: its weights are not those of a trained tower"
    found, width = _agreeing(images, texts, targets, seed), texts.shape[1]
    if binomtest(found, width, 1 / width, alternative="greater").pvalue < UNMISTAKABLE:
        return "permuted head", (
            "in another order, the same on both halves of the labels, the components of the image embedding are those "
            f"of the texts' ({found} of {width}, where chance is 1): rows of a projection were permuted in a conversion"
        )
    return "text tower", (
        "images are separated, texts too, but they do not share a space: the text tower is not the one that this "
        "image tower was trained beside. Take both from one release, or give its base as pretrained=... (Of a weak "
        "tower, a permuted projection looks the same)"
    )


def _agreeing(images: Float[Tensor, "n d"], texts: Float[Tensor, "c d"], targets: Int[Tensor, " n"], seed: int) -> int:
    """How many components of the image embedding go to the same component of the texts' by the permutation that
    maximises their correlation, fitted on one half of the labels and on the other."""
    order = torch.randperm(len(texts), generator=generator(seed, "sanity"))
    fitted = []
    for half in (order[: len(order) // 2], order[len(order) // 2 :]):
        inside = torch.isin(targets, half)
        seen, said = _standard(images[inside]), _standard(texts.cpu()[targets[inside]])
        fitted.append(linear_sum_assignment(-(said.T @ seen).numpy())[1])
    return int((fitted[0] == fitted[1]).sum())


def _standard(values: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Columns of mean 0 and length 1 (0 where they are constant)."""
    centred = values - values.mean(0)
    return centred / centred.norm(dim=0).clamp_min(1e-8)


def _alike(embeddings: Float[Tensor, "n d"]) -> bool:
    """Whether all unit embeddings are one, or not finite."""
    return not float(embeddings.mean(0).norm()) < SAME


def _significant(one: Bool[Tensor, " n"], other: Bool[Tensor, " n"]) -> bool:
    """The exact McNemar test, one-sided: whether `one` is right more often than `other`."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained > lost and binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue < SIGNIFICANT


def _hits(images: Float[Tensor, "n d"], texts: Float[Tensor, "c d"], targets: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    return ranks(images @ texts.cpu().T, targets) == 0


def _towers(referee: TwoTower) -> list[nn.Module]:
    """The towers whose activation one setting decides: a sentence encoder keeps its own."""
    of_clip = not isinstance(referee.text_tower, SentenceEncoder)
    return [referee.image_tower, *([referee.text_tower] if of_clip else [])]


def _places(referee: TwoTower) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for tower in _towers(referee):
        for parent in tower.modules():
            for name, child in parent.named_children():
                if type(child).__name__ in KNOWN:
                    yield parent, name, child


def _other_activations(referee: TwoTower) -> list[str]:
    """Activations that the tower does not have; none where no module of a known one is found."""
    present = {KNOWN[type(child).__name__] for _, _, child in _places(referee)}
    return [name for name in ACTIVATIONS if name not in present] if present else []


@contextmanager
def _activated(referee: TwoTower, name: str) -> Iterator[None]:
    """Context manager: every activation of the towers replaced; restored, also after an error."""
    with ExitStack() as restored:
        for parent, attribute, child in list(_places(referee)):
            restored.callback(setattr, parent, attribute, child)
            setattr(parent, attribute, ACTIVATIONS[name]())
        yield


@contextmanager
def _looking(referee: TwoTower, preprocess: Preprocess) -> Iterator[None]:
    """Context manager: another preprocessing; restored, also after an error."""
    own = referee.preprocess
    try:
        referee.preprocess = preprocess
        yield
    finally:
        referee.preprocess = own


def _same_statistics(preprocess: Preprocess, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    own = preprocess.statistics
    return bool(np.allclose(own["mean"], mean, atol=1e-4) and np.allclose(own["std"], std, atol=1e-4))


def _sized(data: str | Path) -> bool:
    return str(data).startswith((EMBEDDED_DATA, "icons/"))


def _check_labels(examples: Examples) -> None:
    names = {examples.label_names[label] for label in examples.labels.tolist()} if examples.label_names else set()
    if len(names) < 2 or len(examples) < FEWEST:
        raise UsageError(
            f"a sanity check classifies at least {FEWEST} images of at least 2 labels, and {examples.name} has "
            f"{len(examples)} of {len(names)}: give a folder with one sub-folder of images a class, or {DATA}",
            "not_labelled",
            images=len(examples),
            labels=len(names),
        )
