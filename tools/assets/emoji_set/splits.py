"""The fixed splits: held-out concepts, the judge's labels, and the images held back from the judge."""

from __future__ import annotations

from collections import defaultdict

from .concepts import Concept, family, keyed
from .styles import GUIDE_STYLES, STYLES, UNSEEN_STYLES

HELD_OUT = 100
JUDGE_LABELS = 200


def make_splits(concepts: list[Concept], drawn: dict[str, list[str]]) -> dict:
    """The content of splits.json. `drawn` gives the styles that draw each concept id.

    A concept can be held out only if no other shares its family (else a twin would stay in training) and all styles
    of the unseen group and four of the guides draw it. The judge's labels are drawn by all styles and are one a family.
    """
    members: dict[str, list[Concept]] = defaultdict(list)
    for concept in concepts:
        members[family(concept.unicode_label)].append(concept)
    alone = {group[0].id for group in members.values() if len(group) == 1}
    held_out = _held_out([c for c in concepts if c.id in alone], concepts, drawn)
    complete = [
        min(candidates, key=lambda c: keyed("family", c.id))
        for group in members.values()
        if (candidates := [c for c in group if set(drawn[c.id]) == set(STYLES) and c.id not in held_out])
    ]
    labels = sorted(sorted(complete, key=lambda c: keyed("judge", c.id))[:JUDGE_LABELS], key=concepts.index)
    held_back = {
        concept.id: [
            min(styles, key=lambda style: keyed("held-back", concept.id, style))
            for styles in (GUIDE_STYLES, UNSEEN_STYLES)
        ]
        for concept in labels
    }
    return {
        "guide_styles": list(GUIDE_STYLES),
        "unseen_styles": list(UNSEEN_STYLES),
        "heldout_concepts": [c.id for c in concepts if c.id in held_out],
        "judge_heldback": held_back,
    }


def _held_out(candidates: list[Concept], concepts: list[Concept], drawn: dict[str, list[str]]) -> set[str]:
    """About HELD_OUT concepts, spread over the groups in proportion to their size."""
    chosen: set[str] = set()
    for group in dict.fromkeys(c.group for c in concepts):
        share = round(HELD_OUT * sum(c.group == group for c in concepts) / len(concepts))
        eligible = [
            c
            for c in candidates
            if c.group == group
            and set(UNSEEN_STYLES) <= set(drawn[c.id])
            and len(set(GUIDE_STYLES) & set(drawn[c.id])) >= 4
        ]
        chosen |= {c.id for c in sorted(eligible, key=lambda c: keyed("held-out", c.id))[:share]}
    return chosen
