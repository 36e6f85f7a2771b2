"""FARE in the embedded world."""

from __future__ import annotations

from robustclip.recipes import preset


@preset(
    "emoji",
    name="emoji-fare",
    objective="fare",
    norm="linf",
    eps=4 / 255,
    attack_steps=10,
    step_size=1 / 255,
    attack_momentum=0.9,
)
def recipe() -> None:
    """FARE on emoji: preserve emoji-vanilla's clean embeddings under RobustVLM's attack.

    robustclip robustify emoji-fare

    Uses neither texts nor labels. The attack is the released one at eps 4/255 (PGD-10, step 1/255, momentum 0.9); rate,
    schedule and batch are the recipe emoji's, and so ours. A step costs three times that of emoji's PGD-2:
    `--attack-steps 2` is affordable on a CPU. Comparison of all objectives: docs/objectives.md.
    """
