"""CLIPAG in the embedded world on a ViT: fine-tune emoji-vit-vanilla as `emoji` does its ResNet."""

from __future__ import annotations

from robustclip.recipes import preset


@preset("emoji", start="emoji-vit-vanilla", name="emoji-vit-robust", steps=900, lr=5e-4)
def recipe() -> None:
    """Robustify the small ViT of the embedded world, as the recipe emoji does the ResNet.

    robustclip robustify emoji-vit

    About 45 minutes on one CPU core. Where it differs from emoji: half the learning rate, and fewer steps, for a step
    costs twice as much. Every value that CLIPAG's text does not give is ours.
    """
