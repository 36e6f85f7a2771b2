"""Train the embedded judge that shares no image with the guides: on the unseen styles only."""

from __future__ import annotations

from robustclip.recipes import preset


@preset(
    "pretrain/emoji-vanilla",
    name="emoji-judge-disjoint",
    tower="ese_vovnet19b_slim",
    split="unseen-train",
    steps=1000,
    seed=2,
)
def recipe() -> None:
    """Train emoji-judge-disjoint, a second opinion on what the guides paint.

    robustclip robustify pretrain/emoji-judge-disjoint

    About ten minutes on two CPU cores. Sees twemoji and openmoji only, so that it shares no image with a guide;
    with a quarter of the images of emoji-judge it is the weaker judge, and the one whose agreement cannot be memory.
    All values are ours.
    """
