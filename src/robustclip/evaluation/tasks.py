"""Evaluation tasks: zero-shot accuracy, retrieval, gradients, PAG score and heat maps; and the registry of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from robustclip.attacks.gradient import attacking
from robustclip.attacks.library import parts
from robustclip.attacks.spec import AttackSpec, random_perturbation
from robustclip.data.examples import Examples
from robustclip.errors import RunError, UsageError
from robustclip.evaluation.attacked import classify_under_attack, cosines_under_noise
from robustclip.evaluation.certification import certification
from robustclip.evaluation.corruptions import corruptions
from robustclip.evaluation.ledger import exact
from robustclip.evaluation.named import Setting, control_of, prompts_of, worst_of
from robustclip.evaluation.pag import Choices, choose, draw_pairs, pull
from robustclip.evaluation.perceptual import forced_choice
from robustclip.evaluation.report import CLEAN, LOW_FREQUENCY, Findings, Measurement
from robustclip.evaluation.retrieval import DEPTHS, Gallery, Recall, edits, recall, retrieve_under_attack
from robustclip.evaluation.zeroshot import Candidates, Predictions, predictions
from robustclip.explanation.gradients import gradient_shares
from robustclip.referees.base import TwoTower
from robustclip.referees.defended import STATIC, attackers
from robustclip.referees.similarity import all_cosines, batches, class_embeddings, embed_texts

ACCURACIES = (1, 5)
GAP = "static minus adaptive"
BLOB = "centre blob"  # the control of maps, independent of image and text
FAITHFULNESS = ("deletion", "insertion", "ROAD")


Task = Callable[[TwoTower, Setting, str], Findings]


def zero_shot(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """Top-1 and top-5 accuracy among the labels; only top-1 under classifier attacks (`evaluation.attacked`). The
    metric's name states a restricted label set.

    A defended or smoothed referee is attacked adaptively, and statically ("static l2:1.5@20"), with the gap of the two.
    If several attacks share a ball, the worst case over them is reported under the name of `worst_of`. Universal
    perturbations are the same for all referees.
    """
    examples, findings = setting.examples, Findings()
    among = candidates(setting)
    classes = class_embeddings(referee, among.names, setting.templates)
    choice = setting.choice(len(among.names))
    per_ball: dict[tuple[str, int], list[NDArray[np.bool_]]] = {}

    def note(attack: str, predicted: Predictions, depths: Sequence[int] = ACCURACIES, ball: str = "") -> None:
        for k in depths:
            hits = (predicted.ranks < k).numpy()
            findings.measurements.append(Measurement(f"top-{k}{choice}", attack, hits))
            per_ball.setdefault((ball, k), []).append(hits)
        findings.add_predictions(
            attack=attack,
            id=examples.ids,
            label=[among.names[target] for target in among.targets.tolist()],
            rank=predicted.ranks.tolist(),
            predictions=[[among.names[index] for index in top] for top in predicted.top.tolist()],
        )

    clean = predictions(_clean_cosines(referee, classes, setting, title), among.targets)
    note(CLEAN, clean)
    balls = {str(spec): spec.ball for spec in setting.attacks}
    for name, scores in _noisy_cosines(referee, classes, setting, title):
        note(name, predictions(scores, among.targets), ball=balls.get(name, ""))
    weights = exact(referee) if setting.ledger else ""
    for spec, prefix in ((spec, prefix) for spec in searched(setting) for prefix in attackers(referee)):
        name = f"{prefix}{spec}"
        attacked = classify_under_attack(
            referee,
            examples.images,
            among.targets,
            classes,
            spec,
            clean=clean,
            batch_size=setting.batch_size,
            seed=setting.seed,
            dtype=setting.dtype,
            title=f"{title} {name}",
            ids=examples.ids,
            page=setting.ledger.page(referee.card.name, weights, "zero-shot", name) if setting.ledger else None,
            static=prefix == STATIC,
        )
        note(name, attacked, ACCURACIES if spec.kind == "pgd" else ACCURACIES[:1], spec.ball)
        if prefix == STATIC:  # after the adaptive one
            adaptive, static = (outcomes.astype(float) for outcomes in per_ball[spec.ball, 1][-2:])
            findings.measurements.append(Measurement(f"top-1{choice}, {GAP}", str(spec), static - adaptive))
    for (ball, k), outcomes in per_ball.items():
        if ball and len(outcomes) > 1:
            worst = np.logical_and.reduce(outcomes)
            findings.measurements.append(Measurement(f"top-{k}{choice}", worst_of(ball), worst))
    return findings


def candidates(setting: Setting) -> Candidates:
    """The candidate labels. Raises UsageError for a count that does not fit the set, and for attacks that need more
    labels."""
    among = setting.among()
    for spec in searched(setting):
        if spec.kind != "pgd":
            parts(spec, len(among.names))
    return among


def searched(setting: Setting) -> list[AttackSpec]:
    """The attacks that search, all but stored perturbations."""
    return [spec for spec in setting.attacks if spec.kind != "universal"]


def retrieval(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """Recall at 1, 5 and 10, from images to captions and from captions to images, each under its own attack, or under
    the same universal perturbation."""
    examples, findings = setting.examples, Findings()
    gallery = Gallery.of(examples.captions)
    texts = embed_texts(referee, gallery.captions)

    def note(attack: str, recalled: Recall) -> None:
        for way, queries, ranks in (
            ("image to text", examples.ids, recalled.image_to_text),
            ("text to image", gallery.captions, recalled.text_to_image),
        ):
            for k in DEPTHS:
                findings.measurements.append(Measurement(f"{way} recall@{k}", attack, (ranks < k).numpy()))
            findings.add_predictions(attack=attack, way=way, id=queries, rank=ranks.tolist())

    clean = _clean_cosines(referee, texts, setting, title)
    note(CLEAN, recall(clean, gallery.matches))
    for name, scores in _noisy_cosines(referee, texts, setting, title):
        note(name, recall(scores, gallery.matches))
    for spec in searched(setting):
        attacked = retrieve_under_attack(
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
        note(str(spec), attacked)
    return findings


def gradients(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """The low-frequency share of input gradients, with each image's label (or first caption) as its prompt."""
    examples = setting.examples
    prompts = prompts_of(examples)
    shares = gradient_shares(
        referee, examples.images, prompts, batch_size=setting.batch_size, dtype=setting.dtype, title=title
    ).numpy()
    if not np.isfinite(shares).any():
        raise RunError(f"all input gradients are zero or not finite ({title})")
    findings = Findings([Measurement(LOW_FREQUENCY, CLEAN, shares)])
    defined = [share if np.isfinite(share) else None for share in shares.tolist()]
    findings.add_predictions(attack=CLEAN, id=examples.ids, prompt=prompts, **{LOW_FREQUENCY: defined})
    return findings


def pag(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """How often the judge predicts the target of the referee's attack: on clean, noisy and attacked images."""
    if setting.judge is None or setting.pull is None:
        raise UsageError("the PAG score needs a judge and an attack")
    examples, spec, judge, dtype = setting.examples, setting.pull, setting.judge.referee, setting.dtype
    own = prompts_of(examples)
    pairs = draw_pairs(own, examples.ids, seed=setting.seed)
    texts = class_embeddings(referee, pairs.names, setting.templates)
    judge_texts = class_embeddings(judge, pairs.names, setting.templates)
    parts: dict[str, list[Choices]] = {CLEAN: [], control_of(spec): [], str(spec): []}
    with attacking(judge):
        for batch in batches(torch.arange(len(examples)), setting.batch_size, f"{title} {spec}"):
            images = examples.images[batch].to(texts.device)
            versions = (
                images,
                random_perturbation(images, spec.threat(examples.size), seed=setting.seed, indices=batch),
                pull(referee, images, texts[pairs.targets[batch]], spec, dtype),
            )
            for chosen, version in zip(parts.values(), versions, strict=True):
                chosen.append(choose(judge, version, judge_texts, pairs.choices[batch], dtype))

    findings, metric = Findings(), pairs.metric(setting.judge.name)
    for attack, chosen in parts.items():
        places, firsts = (torch.cat([getattr(part, name) for part in chosen]) for name in ("ranks", "first"))
        findings.measurements.append(Measurement(metric, attack, (places == 0).numpy()))
        findings.add_predictions(
            attack=attack,
            id=examples.ids,
            own=own,
            target=[pairs.names[target] for target in pairs.targets.tolist()],
            prediction=[pairs.names[first] for first in firsts.tolist()],
            rank=places.tolist(),
        )
    return findings


def maps(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """Localisation, if the data have boxes, clean and under attack; and similarity of clean and attacked maps.

    The text of an image is its label, or else its first caption; the attack is CLIPAG's Eq. 4. An empty map is a miss
    of the pointing game, and NaN for other metrics.
    """
    from robustclip.explanation.looks import ATTACKED, ENERGY, NOISY, POINTING, SCORE, look, negate, numbers
    from robustclip.explanation.maps import Mapper, centre_blob, energy_in_box, pointing_hit

    examples, prompts = setting.examples, prompts_of(setting.examples)
    mapper = Mapper(referee, setting.method, setting.layer, dtype=setting.dtype, seed=setting.seed)
    texts, others = (embed_texts(referee, these) for these in (prompts, [negate(text) for text in prompts]))
    parts: dict[tuple[str, str], list[Tensor]] = {}
    specs: Sequence[AttackSpec | None] = setting.attacks or [None]
    controls = {control_of(spec): spec for spec in reversed(setting.attacks)}  # once for all attacks of a ball
    for batch in batches(torch.arange(len(examples)), setting.batch_size, title):
        images, boxes = examples.images[batch], None if examples.boxes is None else examples.boxes[batch]
        ids = [examples.ids[index] for index in batch.tolist()]
        for spec in specs:
            looks = look(mapper, images, texts[batch], others[batch], ids=ids, spec=spec, seed=setting.seed)
            attacks = {} if spec is None else {ATTACKED: str(spec)}
            if spec is not None and controls[control_of(spec)] == spec:
                attacks[NOISY] = control_of(spec)
            for version, by_metric in numbers(looks, boxes).items():
                if version in attacks or spec == specs[0]:
                    for metric, values in by_metric.items():
                        if metric != SCORE:
                            parts.setdefault((metric, attacks.get(version, CLEAN)), []).append(values)
        if boxes is not None:
            blob = centre_blob(*examples.size).expand(len(boxes), -1, -1)
            parts.setdefault((POINTING, BLOB), []).append(pointing_hit(blob, boxes).float())
            parts.setdefault((ENERGY, BLOB), []).append(energy_in_box(blob, boxes))
    return _findings(parts, setting, hits=POINTING)


def faithfulness(referee: TwoTower, setting: Setting, title: str) -> Findings:
    """Deletion, insertion and ROAD of maps of clean images, in units of the cosine, and minus those of a centred blob;
    NaN for an empty map."""
    from robustclip.explanation.gradcam import road
    from robustclip.explanation.maps import Mapper, centre_blob, deletion, insertion

    examples, texts = setting.examples, embed_texts(referee, prompts_of(setting.examples))
    mapper = Mapper(referee, setting.method, setting.layer, dtype=setting.dtype, seed=setting.seed)
    parts: dict[tuple[str, str], list[Tensor]] = {}
    for batch in batches(torch.arange(len(examples)), setting.batch_size, title):
        images, theirs = examples.images[batch].to(texts.device), texts[batch]
        ids = [examples.ids[index] for index in batch.tolist()]
        heat = mapper(images, theirs, ids)
        blob = centre_blob(*examples.size).expand(len(batch), -1, -1)

        def score(pixels: Tensor, theirs: Tensor = theirs) -> Tensor:
            return mapper.scores(pixels, theirs)

        for kind, of in ((CLEAN, heat.maps), (BLOB, blob)):
            road_of = road(score, images, of, ids=ids, seed=setting.seed)
            values = (deletion(score, images, of), insertion(score, images, of), road_of)
            for metric, of_metric in zip(FAITHFULNESS, values, strict=True):
                parts.setdefault((metric, kind), []).append(of_metric.masked_fill(heat.empty, torch.nan))
    return _findings(parts, setting)


def named(metric: str, setting: Setting) -> str:
    """A metric's name with method and layer: "pointing game (gradcam)", "... (gradcam at trunk.layer3.0)"."""
    return f"{metric} ({setting.method}{f' at {setting.layer}' if setting.layer else ''})"


TASKS: dict[str, Task] = {
    "zero-shot": zero_shot,
    "retrieval": retrieval,
    "gradients": gradients,
    "pag": pag,
    "maps": maps,
    "faithfulness": faithfulness,
    "distance": forced_choice,
    "certification": certification,
    "corruptions": corruptions,
    "edits": edits,
}


def missing_for(task: str, examples: Examples, *, unattacked: bool = False) -> str | None:
    """Message about what `task` needs and the examples lack; None if nothing is missing."""
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
    if task == "maps" and examples.boxes is None and unattacked:
        return f"maps need boxes to point into or an attack, and {examples.name} has no boxes: add --attack l2:1.5@20"
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
    """By name, what does not depend on the referee: the control of each attack (`control_of`), once each, and
    universal perturbations."""
    specs = {control_of(spec): spec for spec in setting.attacks}
    specs |= {str(spec): spec for spec in setting.attacks if spec.kind == "universal"}
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
                delta=setting.stored.get(name),
            ),
        )
        for name, spec in specs.items()
    ]


def _findings(parts: dict[tuple[str, str], list[Tensor]], setting: Setting, hits: str = "") -> Findings:
    """Measurements by metric and attack; a blob's are reported too, and subtracted image by image."""
    findings = Findings()
    values = {key: torch.cat(some) for key, some in parts.items()}
    for (metric, attack), outcomes in values.items():
        if attack == BLOB:
            own = values[metric, CLEAN]
            blob = _measurement(f"{metric} of a {BLOB}", CLEAN, outcomes, metric == hits)
            findings.measurements.append(replace(blob, reference=True))
            name = named(f"{metric} minus a {BLOB}'s", setting)
            findings.measurements.append(_measurement(name, CLEAN, own - outcomes, hit=False))
        else:
            findings.measurements.append(_measurement(named(metric, setting), attack, outcomes, metric == hits))
        defined = [None if value != value else value for value in outcomes.tolist()]
        findings.add_predictions(metric=metric, attack=attack, id=setting.examples.ids, value=defined)
    return findings


def _measurement(metric: str, attack: str, outcomes: Float[Tensor, " n"] | Int[Tensor, " n"], hit: bool) -> Measurement:
    return Measurement(metric, attack, (outcomes > 0).numpy() if hit else outcomes.double().numpy())
