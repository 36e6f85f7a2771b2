"""Train the embedded judge: another architecture and seed than the guides, on all drawing styles."""

from __future__ import annotations

from robustclip.recipes import preset


@preset(
    "pretrain/emoji-vanilla", name="emoji-judge", tower="ese_vovnet19b_slim", split="judge-train", steps=3600, seed=1
)
def recipe() -> None:
    """Train emoji-judge, which scores what the guides paint and is never optimised against.

    robustclip robustify pretrain/emoji-judge

    About half an hour on one CPU core. Sees all eight styles except the held-out concepts and two images of each of the
    200 committed labels, on which it is measured (`judge-heldback`). VoVNet is another family than the guides'
    ResNet. All values are ours.
    """
