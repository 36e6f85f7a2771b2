"""AGFT in the embedded world."""

from __future__ import annotations

from robustclip.recipes import preset


@preset("emoji", name="emoji-agft", objective="agft")
def recipe() -> None:
    """AGFT on emoji: targets under attack are emoji-vanilla's softened predictions on the clean images.

    robustclip robustify emoji-agft

    No labels: the targets are the original's softmax over the names of all concepts, its logits divided by
    `--temperature` (2.5 is that of the released command). All else is the recipe emoji's, and so ours: the released
    attack is L-inf 1/255 in two steps, its optimiser SGD. Comparison of all objectives: docs/objectives.md.
    """
