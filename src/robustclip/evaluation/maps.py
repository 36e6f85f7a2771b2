"""Tasks `maps` and `faithfulness`: localisation, stability under attack and faithfulness of heat maps.

Controls: a centred blob, which is independent of image and text, and for attacks noise of the same norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustclip.attacks.spec import AttackSpec
from robustclip.evaluation.named import Setting, control_of, prompts_of
from robustclip.evaluation.report import CLEAN, Findings, Measurement
from robustclip.referees.base import TwoTower
from robustclip.referees.similarity import batches, embed_texts

BLOB = "centre blob"
FAITHFULNESS = ("deletion", "insertion", "ROAD")


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
    for batch in batches(torch.arange(len(examples)), setting.batch_size, title):
        images, boxes = examples.images[batch], None if examples.boxes is None else examples.boxes[batch]
        ids = [examples.ids[index] for index in batch.tolist()]
        for spec in specs:
            looks = look(mapper, images, texts[batch], others[batch], ids=ids, spec=spec, seed=setting.seed)
            attacks = {ATTACKED: str(spec), NOISY: control_of(spec)} if spec is not None else {}
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


def _findings(parts: dict[tuple[str, str], list[Tensor]], setting: Setting, hits: str = "") -> Findings:
    """Measurements by metric and attack; a blob's are reported too, and subtracted image by image."""
    findings = Findings()
    values = {key: torch.cat(some) for key, some in parts.items()}
    ids = setting.examples.ids
    for (metric, attack), outcomes in values.items():
        if attack == BLOB:
            own = values[metric, CLEAN]
            blob = _measurement(f"{metric} of a {BLOB}", CLEAN, outcomes, metric == hits)
            findings.measurements.append(replace(blob, reference=True))
            name = named(f"{metric} minus a {BLOB}'s", setting)
            findings.measurements.append(_measurement(name, CLEAN, own - outcomes, hit=False))
        else:
            findings.measurements.append(_measurement(named(metric, setting), attack, outcomes, metric == hits))
        findings.predictions += [
            {"metric": metric, "attack": attack, "id": id_, "value": None if value != value else value}
            for id_, value in zip(ids, outcomes.tolist(), strict=True)
        ]
    return findings


def _measurement(metric: str, attack: str, outcomes: Float[Tensor, " n"] | Int[Tensor, " n"], hit: bool) -> Measurement:
    return Measurement(metric, attack, (outcomes > 0).numpy() if hit else outcomes.double().numpy())
