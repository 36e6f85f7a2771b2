"""The table of evaluation tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.attacks.library import parts
from robustclip.attacks.spec import random_perturbation
from robustclip.data.examples import Examples
from robustclip.errors import RunError, UsageError
from robustclip.evaluation.attacked import classify_under_attack, cosines_under_noise
from robustclip.evaluation.certification import certification
from robustclip.evaluation.corruptions import corruptions
from robustclip.evaluation.edits import edits
from robustclip.evaluation.ledger import exact
from robustclip.evaluation.maps import faithfulness, maps
from robustclip.evaluation.pag import Answers, answers, draw_pairs, pull
from robustclip.evaluation.report import CLEAN, LOW_FREQUENCY, Findings, Measurement
from robustclip.evaluation.retrieval import DEPTHS, Gallery, Recall, recall, retrieve_under_attack
from robustclip.evaluation.setting import Setting, control_of, prompts_of, worst_of
from robustclip.evaluation.zeroshot import Candidates, Predictions, predictions
from robustclip.explanation.gradients import gradient_shares
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import all_cosines, batches, class_embeddings, embed_texts

ACCURACIES = (1, 5)


Task = Callable[[TwoTower, Setting, str], Findings]


def zero_shot(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """Top-1 and top-5 accuracy among the labels; only top-1 under classifier attacks (`evaluation.attacked`). The
    metric's name states a restricted label set.

    Where several attacks search one ball, what is right after all of them is told under `worst_of`'s name for it.
    """
    examples, found = setting.examples, Findings()
    among = candidates(setting)
    classes = class_embeddings(referee, among.names, setting.templates)
    choice = setting.choice(len(among.names))
    per_ball: dict[tuple[str, int], list[NDArray[np.bool_]]] = {}

    def note(attack: str, answered: Predictions, depths: Sequence[int] = ACCURACIES, ball: str = "") -> None:
        for k in depths:
            hits = (answered.ranks < k).numpy()
            found.measurements.append(Measurement(f"top-{k}{choice}", attack, hits))
            per_ball.setdefault((ball, k), []).append(hits)
        found.answers += [
            {
                "attack": attack,
                "id": name,
                "label": among.names[target],
                "rank": rank,
                "answers": [among.names[index] for index in top],
            }
            for name, target, rank, top in zip(
                examples.ids, among.targets.tolist(), answered.ranks.tolist(), answered.top.tolist(), strict=True
            )
        ]

    clean = predictions(_clean_cosines(referee, classes, setting, title), among.targets)
    note(CLEAN, clean)
    for name, scores in _noisy_cosines(referee, classes, setting, title):
        note(name, predictions(scores, among.targets))
    weights = exact(referee) if setting.ledger else ""
    for spec in setting.attacks:
        answered = classify_under_attack(
            referee,
            examples.images,
            among.targets,
            classes,
            spec,
            clean=clean,
            batch_size=setting.batch_size,
            seed=setting.seed,
            dtype=setting.dtype,
            title=f"{title} {spec}",
            ids=examples.ids,
            page=setting.ledger.page(referee.card.name, weights, "zero-shot", str(spec)) if setting.ledger else None,
        )
        note(str(spec), answered, ACCURACIES if spec.kind == "pgd" else ACCURACIES[:1], spec.ball)
    for (ball, k), outcomes in per_ball.items():
        if ball and len(outcomes) > 1:
            found.measurements.append(Measurement(f"top-{k}{choice}", worst_of(ball), np.logical_and.reduce(outcomes)))
    return found


def candidates(setting: Setting) -> Candidates:
    """The labels to choose among. Raises UsageError for a count that does not fit the set, and for attacks that need
    more labels than these."""
    among = setting.among()
    for spec in setting.attacks:
        if spec.kind != "pgd":
            parts(spec, len(among.names))
    return among


def retrieval(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """Recall at 1, 5 and 10, from images to captions and from captions to images, each under its own attack."""
    examples, found = setting.examples, Findings()
    gallery = Gallery.of(examples.captions)
    texts = embed_texts(referee, gallery.captions)

    def note(attack: str, answered: Recall) -> None:
        for way, queries, ranks in (
            ("image to text", examples.ids, answered.image_to_text),
            ("text to image", gallery.captions, answered.text_to_image),
        ):
            for k in DEPTHS:
                found.measurements.append(Measurement(f"{way} recall@{k}", attack, (ranks < k).numpy()))
            found.answers += [
                {"attack": attack, "way": way, "id": query, "rank": rank}
                for query, rank in zip(queries, ranks.tolist(), strict=True)
            ]

    clean = _clean_cosines(referee, texts, setting, title)
    note(CLEAN, recall(clean, gallery.matches))
    for name, scores in _noisy_cosines(referee, texts, setting, title):
        note(name, recall(scores, gallery.matches))
    for spec in setting.attacks:
        answered = retrieve_under_attack(
            referee,
            examples.images,
            gallery,
            texts,
            spec,
            clean=clean,
            batch_size=setting.batch_size,
            seed=setting.seed,
            dtype=setting.dtype,
            title=f"{title} {spec}",
        )
        note(str(spec), answered)
    return found


def gradients(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """The low-frequency share of the input gradients, each image's own label (or first caption) as its prompt."""
    examples = setting.examples
    prompts = prompts_of(examples)
    shares = gradient_shares(
        referee, examples.images, prompts, batch_size=setting.batch_size, dtype=setting.dtype, title=title
    ).numpy()
    if not np.isfinite(shares).any():
        raise RunError(f"all input gradients are zero or not finite ({title})")
    answers = [
        {"attack": CLEAN, "id": name, "prompt": prompt, LOW_FREQUENCY: share if np.isfinite(share) else None}
        for name, prompt, share in zip(examples.ids, prompts, shares.tolist(), strict=True)
    ]
    return Findings([Measurement(LOW_FREQUENCY, CLEAN, shares)], answers)


def pag(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """How often the judge sees what the referee pulled an image towards; before, with noise instead, and pulled."""
    if setting.judge is None or setting.pull is None:
        raise UsageError("the PAG score needs a judge and the size of its perturbation")
    examples, spec, judge, dtype = setting.examples, setting.pull, setting.judge.referee, setting.dtype
    own = prompts_of(examples)
    pairs = draw_pairs(own, examples.ids, seed=setting.seed)
    wanted = class_embeddings(referee, pairs.names, setting.templates)
    shown = class_embeddings(judge, pairs.names, setting.templates)
    parts: dict[str, list[Answers]] = {CLEAN: [], control_of(spec): [], str(spec): []}
    with attacking(judge):
        for batch in batches(torch.arange(len(examples)), setting.batch_size, f"{title} {spec}"):
            images = examples.images[batch].to(wanted.device)
            versions = (
                images,
                random_perturbation(images, spec.threat(examples.size), seed=setting.seed, indices=batch),
                pull(referee, images, wanted[pairs.targets[batch]], spec, dtype),
            )
            for answered, version in zip(parts.values(), versions, strict=True):
                answered.append(answers(judge, version, shown, pairs.choices[batch], dtype))

    found, metric = Findings(), pairs.metric(setting.judge.name)
    for attack, answered in parts.items():
        places, firsts = (torch.cat([getattr(part, name) for part in answered]) for name in ("ranks", "first"))
        found.measurements.append(Measurement(metric, attack, (places == 0).numpy()))
        found.answers += [
            {
                "attack": attack,
                "id": name,
                "own": truth,
                "target": pairs.names[target],
                "answer": pairs.names[first],
                "rank": rank,
            }
            for name, truth, target, first, rank in zip(
                examples.ids, own, pairs.targets.tolist(), firsts.tolist(), places.tolist(), strict=True
            )
        ]
    return found


TASKS: dict[str, Task] = {
    "zero-shot": zero_shot,
    "retrieval": retrieval,
    "gradients": gradients,
    "pag": pag,
    "maps": maps,
    "faithfulness": faithfulness,
    "certification": certification,
    "corruptions": corruptions,
    "edits": edits,
}


def missing_for(task: str, examples: Examples) -> str | None:
    """What `task` needs and the examples have not, in words; None if nothing is missing."""
    labels, captions = bool(examples.label_names), bool(examples.captions)
    if task == "zero-shot" and not labels:
        return f"zero-shot needs labels, and {examples.name} has none: use --tasks retrieval, or add labels"
    if task in ("certification", "corruptions", "masking") and not labels:
        return f"{task} needs labels, and {examples.name} has none"
    if task == "retrieval" and not captions:
        return f"retrieval needs captions, and {examples.name} has none: use --tasks zero-shot, or add captions"
    if task == "gradients" and not labels and not captions:
        return f"gradients need labels or captions as prompts, and {examples.name} has neither"
    if task == "edits" and len(set(prompts_of(examples)) if labels or captions else ()) < 2:
        return f"edits need images of at least 2 different labels or captions, and {examples.name} has fewer"
    if task == "pag" and not labels and not captions:
        return f"pag needs labels or captions to pull images towards, and {examples.name} has neither"
    if task in ("maps", "faithfulness") and not labels and not captions:
        return f"{task} need texts to look for, labels or captions, and {examples.name} has neither"
    if task == "pag" and len(set(prompts_of(examples))) == 1:
        return (
            f"pag needs images of at least 2 different names, and all of {examples.name} are {prompts_of(examples)[0]}"
        )
    return None


def _clean_cosines(referee: TwoTower, texts: Tensor, setting: Setting, title: str) -> Float[Tensor, "n t"]:
    return all_cosines(
        referee,
        setting.examples.images,
        texts,
        batch_size=setting.batch_size,
        dtype=setting.dtype,
        title=f"{title} {CLEAN}",
    )


def _noisy_cosines(
    referee: TwoTower, texts: Tensor, setting: Setting, title: str
) -> list[tuple[str, Float[Tensor, "n t"]]]:
    """The control of each threat model that is attacked, under the name `control_of` gives it, once each."""
    controls = {control_of(spec): spec for spec in setting.attacks}
    return [
        (
            name,
            cosines_under_noise(
                referee,
                setting.examples.images,
                texts,
                spec,
                batch_size=setting.batch_size,
                seed=setting.seed,
                dtype=setting.dtype,
                title=f"{title} {name}",
            ),
        )
        for name, spec in controls.items()
    ]
