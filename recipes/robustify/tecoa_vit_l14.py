"""TeCoA on OpenAI's ViT-L/14 (supervised: classify under attack), with RobustVLM's released settings."""

from __future__ import annotations

from robustclip.recipes import preset


@preset("fare-vit-l14", name="tecoa-vit-l14", objective="tecoa")
def recipe() -> None:
    """TeCoA on ViT-L/14 with the settings that FARE was compared with.

      robustclip robustify tecoa-vit-l14 --data imagenet/train

    The loss is the cross-entropy among the texts of all classes (Mao et al. 2023), as RobustVLM trains it; the folders'
    names, or the lines of classnames.txt beside them, are the classes' names. Mao et al.'s own code trains ViT-B/32
    with SGD for ten epochs: other settings than these. All else is fare-vit-l14's.
    """
