"""`robustclip referees weigh`: learn the weights of an ensemble of referees, NAME=WEIGHT of `synthesize --referee`.

An ensemble's score of an image x and a text is sum_i w_i cos_i(x, text), with w_i >= 0 and sum_i w_i = 1. Its weights
and one scale s minimise the cross-entropy of softmax(s * score) over labelled images, which is convex in s * w. Images
are clean, and moved by PGD through the ensemble of the round before, the first of which has equal weights; each round
fits on the clean images and the attacks of all rounds so far (ours).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks.gradient import pgd
from robustclip.attacks.spec import AttackSpec, check_inside
from robustclip.data.examples import Examples, read_examples
from robustclip.errors import RunError, UsageError, faults_of
from robustclip.evaluation.intervals import rate
from robustclip.evaluation.named import NamedReferee, RefereeLike, load_named
from robustclip.evaluation.zeroshot import Candidates
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import batches, class_embeddings, cosines, resolve_templates
from robustclip.runs.devices import pick_device, pick_dtype
from robustclip.runs.rng import each
from robustclip.signatures import typed

NONE: Final = "none"
QUICK: Final = {"limit": 8}
ROUNDS: Final = 2
LEAST: Final = 5e-4  # weight that is written as 0, and whose referee the command leaves out


class Ensemble(NamedTuple):
    """Referees with the embeddings of the candidate labels."""

    referees: list[NamedReferee]
    classes: list[Float[Tensor, "c d"]]
    dtype: torch.dtype

    def cosines(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "k b c"]:
        """Cosines with all labels, by referee; differentiable with respect to the images."""
        return torch.stack(
            [
                cosines(one.referee, images, classes, self.dtype)
                for one, classes in zip(self.referees, self.classes, strict=True)
            ]
        )

    def attacked(
        self,
        images: Float[Tensor, "b 3 h w"],
        targets: Int[Tensor, " b"],
        scaled: Float[Tensor, " k"],
        spec: AttackSpec,
        generators: Sequence[torch.Generator],
    ) -> Float[Tensor, "b 3 h w"]:
        """Images that PGD moved to raise the cross-entropy of the ensemble with scaled weights s * w.

        Raises RunError if an image left the threat model.
        """

        def losses(moved: Tensor) -> Tensor:
            logits = torch.einsum("k,kbc->bc", scaled, self.cosines(moved))
            return F.cross_entropy(logits, targets, reduction="none")

        threat = spec.threat((images.shape[-2], images.shape[-1]))
        moved = pgd(images, losses, threat, steps=spec.steps, step_size=spec.step, generator=generators)
        check_inside(images, moved, threat)
        return moved


def fit_weights(scores: Float[Tensor, "k n c"], targets: Int[Tensor, " n"]) -> tuple[list[float], float]:
    """(weights that sum to 1, scale) of the least cross-entropy of softmax(scale * sum_i weight_i score_i).

    Raises RunError if no score tells the targets from the other candidates.
    """
    values, labels = scores.double(), targets.long()

    def objective(scaled: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        leaf = torch.from_numpy(scaled).requires_grad_()
        loss = F.cross_entropy(torch.einsum("k,knc->nc", leaf, values), labels)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.item(), gradient.numpy()

    count = len(values)
    found = minimize(objective, np.full(count, 10 / count), jac=True, method="L-BFGS-B", bounds=[(0, None)] * count).x
    if not found.sum() > 0:
        raise RunError(
            "none of these referees tells the labels of these images apart: there is nothing to weigh",
            "nothing_to_weigh",
        )
    return (found / found.sum()).tolist(), float(found.sum())


@typed
def weigh(
    referees: Annotated[Sequence[RefereeLike], "names, tags or folders: the ensemble"],
    *,
    attack: Annotated[str, "norm:eps@steps[:step_size] of PGD, or none"] = "l2:1.5@10",
    rounds: Annotated[int, Field(ge=1, le=20), "rounds of attack and fit"] = ROUNDS,
    data: Annotated[str, "labelled images, as of evaluate; not those of a later measurement"] = "emoji/guide-styles",
    templates: Annotated[str, "plain, emoji, photo, openai-simple, or a text file"] = "plain",
    limit: Annotated[int, "number of images, sampled by the seed; half of them are measured on", Field(ge=4)] = 400,
    batch_size: Annotated[int, Field(gt=0, le=2**16)] = 32,
    quick: bool = False,  # noqa: ARG001  (see QUICK)
    device: str = "auto",
    dtype: str = "float32",
    seed: int = 0,
) -> dict[str, Any]:
    """Learn the weights of an ensemble of referees, so that it tells labels apart, clean and under attack.

        robustclip referees weigh emoji-robust emoji-vit-robust emoji-vanilla-long

    Weights are fitted on half of the images and measured on the other half: top-1 among all labels, clean and under the
    same attack on each ensemble itself, for every referee alone, equal weights, and the learned ones.

    Returns weights by name, scale, flags (of `synthesize`, with the referees as given), images, and rows: (values with
    Wilson's 95% intervals) by ensemble. Raises UsageError for a single referee, for data without labels or with a
    single image or label, and for all faults of the call.
    """
    where, spec = pick_device(device), None if attack == NONE else read_attack(attack)
    named = load_named(referees, device=where)
    if len(named) < 2:
        raise UsageError(
            f"{named[0].name} alone has nothing to be weighed against: give two referees or more", "single"
        )
    examples = read_examples(data, limit=limit, seed=seed)
    if not examples.label_names:
        raise UsageError(f"an ensemble is weighed on labels, and {examples.name} has none", "no_labels")
    among = Candidates.among(examples.label_names, examples.labels)
    if len(examples) < 2 or len(among.names) < 2:
        raise UsageError(
            f"weights are fitted on half of the images and measured on the others, by telling labels apart: give two "
            f"images and two labels or more, {examples.name} has {len(examples)} and {len(among.names)}",
            "too_few",
        )
    words = resolve_templates(templates)
    classes = [class_embeddings(one.referee, among.names, words) for one in named]
    ensemble = Ensemble(named, classes, pick_dtype(dtype, where))
    fitted, held = torch.arange(len(examples))[::2], torch.arange(len(examples))[1::2]
    over = partial(scores_of, ensemble, examples, among, batch_size=batch_size, seed=seed)

    weights, scale = [1 / len(named)] * len(named), float(np.mean([one.referee.logit_scale for one in named]))
    parts = [over(fitted, None, None, title="clean")]
    for number in range(rounds):
        if spec is not None:
            scaled = torch.tensor(weights, device=where) * scale
            parts.append(over(fitted, scaled, spec, title=f"attack of round {number + 1}"))
        weights, scale = fit_weights(torch.cat(parts, 1), among.targets[fitted].repeat(len(parts)))

    alone = {one.name: [float(one is other) for other in named] for one in named}
    clean = over(held, None, None, title="clean, measured")
    rows: dict[str, dict[str, Any]] = {}
    for name, chosen in (alone | {"equal weights": [1 / len(named)] * len(named), "learned weights": weights}).items():
        scaled = torch.tensor(chosen, device=where) * scale
        found = {"clean": clean} | ({} if spec is None else {str(spec): over(held, scaled, spec, title=name)})
        rows[name] = {
            kind: rate((torch.einsum("k,knc->nc", scaled.cpu(), one).argmax(1) == among.targets[held]).tolist())
            for kind, one in found.items()
        }
    kept = {one.name: round(weight, 3) for one, weight in zip(named, weights, strict=True)}
    given = [one.name if isinstance(asked, TwoTower) else asked for asked, one in zip(referees, named, strict=True)]
    guides = [f"{one}={weight:g}" for one, weight in zip(given, kept.values(), strict=True) if weight > LEAST]
    flags = shlex.join(word for guide in guides for word in ("--referee", guide))
    return {"weights": kept, "scale": scale, "images": len(examples), "rows": rows, "flags": flags}


def scores_of(
    ensemble: Ensemble,
    examples: Examples,
    among: Candidates,
    indices: Int[Tensor, " n"],
    scaled: Float[Tensor, " k"] | None,
    spec: AttackSpec | None,
    *,
    batch_size: int,
    seed: int,
    title: str,
) -> Float[Tensor, "k n c"]:
    """Cosines of these images with all labels, by referee, on the CPU; under `spec` through the weights `scaled`."""
    found = []
    for batch in batches(indices, batch_size, title):
        images, targets = examples.images[batch].to(ensemble.classes[0].device), among.targets[batch]
        if spec is not None and scaled is not None:
            streams = each(seed, "weigh", ids=[examples.ids[index] for index in batch])
            images = ensemble.attacked(images, targets.to(images.device), scaled, spec, streams)
        with torch.no_grad():
            found.append(ensemble.cosines(images).cpu())
    return torch.cat(found, 1)


def read_attack(text: str) -> AttackSpec:
    """PGD's norm, eps, steps and step size. Raises UsageError for another attack, and for restarts."""
    spec = AttackSpec.parse(text)
    spec.check_pgd("weighing an ensemble", restarts=False)
    return spec


def faults(attack: str, rounds: int, templates: str) -> Iterator[str | UsageError]:
    """Faults of a call that can be found before loading anything."""
    yield from faults_of([partial(read_attack, attack)] if attack != NONE else [])
    if attack == NONE and rounds != ROUNDS:
        yield f"--rounds {rounds} are those of an attack, and --attack is none: leave out one of them"
    yield from faults_of([partial(resolve_templates, templates)])
