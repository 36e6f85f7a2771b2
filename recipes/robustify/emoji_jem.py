"""CLIP-JEM in the embedded world."""

from __future__ import annotations

from robustclip.recipes import preset


@preset(
    "emoji",
    start="emoji-robust",
    name="emoji-jem",
    objective="clip",
    random_start=False,
    energy=1.0,
    frozen_statistics=True,
    steps=120,
    batch_size=32,
    lr=5e-4,
    warmup=12,
    ema=0.98,
)
def recipe() -> None:
    """CLIP-JEM on emoji: contrastive adversarial loss plus contrastive energy loss.

    robustclip robustify emoji-jem

    Algorithm 1 of Ganz & Elad 2025 (arXiv 2408.17046): CLIP's loss in attack and update, attacks from the image itself,
    and negative samples that AdamW makes from noise. Its values were not available: the form of the energy loss, its
    weight, and the samples' steps and rate are ours. So are the start at emoji-robust (theirs: CLIP), frozen BatchNorm
    statistics, which samples would move, and the schedule. Against the same training without the energy, at equal
    FLOPs it paints no better at this size: docs/objectives.md.
    """
